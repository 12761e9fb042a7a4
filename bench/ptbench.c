// Load for a TLS-passthrough proxy, without the cost of TLS itself: a client sends one real ClientHello record, the
// server takes all of it, answers with BYTES bytes and closes. A proxy cannot tell this from TLS that it passes on.
//
//   ptbench server PORT BYTES [stay]                          on 127.0.0.1; `stay` keeps connections open afterwards
//   ptbench client HOST PORT NAME CONCURRENCY SECONDS BYTES   a new connection for each that has ended
//   ptbench paced  HOST PORT NAME RATE SECONDS BYTES          RATE new connections a second, whatever became of others
//   ptbench hold   HOST PORT NAME COUNT SECONDS               COUNT open connections, each of which has got its byte
//
// A connection counts as done when the server's end of the stream has come after exactly BYTES bytes; anything else is
// a failure, and so is what has not ended 5 s after SECONDS. Each client prints one line of JSON at its end and exits
// with 1 if anything failed; `hold` prints {"ready": COUNT} before, and ends early when its standard input does.
//
// NAME is the server name to ask for. "n#.example.com/1000" asks for n00000 to n00999, all over the place.
//
// `paced` is an open loop: connections begin at the times of a Poisson process with a fixed seed, the same for every
// proxy, and their latency counts from that time, so that a proxy which falls behind is not spared the queue
// (no "coordinated omission"). Latencies end with the last byte of the answer.
#include "common.h"

#define MAX_DIALLING 256      // connections that `hold` has under way at once
#define MAX_PACED 8192        // open connections of `paced`; those that are due beyond wait, and their clocks run
#define TRUNCATE_FROM 100000  // answers of this size are thrown away in the kernel: the client's CPU is not the subject
#define DIGITS 5

// ---- the ClientHello ----------------------------------------------------------------------------------

static unsigned char hello[2048];
static int hello_size;
static unsigned char *digits;  // where the number in the name goes, if it has one
static unsigned names = 1;

static int put16(unsigned char *at, int value) {
  at[0] = value >> 8;
  at[1] = value;
  return 2;
}

static int put_extension(unsigned char *at, int type, const void *content, int size) {
  put16(at, type);
  put16(at + 2, size);
  memcpy(at + 4, content, size);
  return 4 + size;
}

static void build_hello(const char *pattern) {
  static const unsigned char suites[] = {0, 6, 0x13, 1, 0x13, 2, 0x13, 3}, compressions[] = {1, 0};
  static const unsigned char versions[] = {2, 3, 4}, groups[] = {0, 2, 0, 0x1d}, algorithms[] = {0, 2, 4, 3};
  static const unsigned char alpn[] = "\0\x0c\x02h2\x08http/1.1", padding[300];
  char name[256];
  size_t length = strcspn(pattern, "/");
  const char *mark = memchr(pattern, '#', length);
  if (length > 200) die("the name is too long");
  if (mark) {
    length = snprintf(name, sizeof name, "%.*s%0*d%.*s", (int)(mark - pattern), pattern, DIGITS, 0,
                      (int)(pattern + length - mark - 1), mark + 1);
    names = strchr(pattern, '/') ? strtoul(strchr(pattern, '/') + 1, NULL, 10) : 1;
  } else {
    memcpy(name, pattern, length);
  }

  unsigned char *body = hello + 9, *at = body;  // after the headers of the record and of the message
  at += put16(at, 0x0303);
  for (int i = 0; i < 32; i++) *at++ = i * 7 + 1;
  *at++ = 32;
  for (int i = 0; i < 32; i++) *at++ = i;
  memcpy(at, suites, sizeof suites), at += sizeof suites;
  memcpy(at, compressions, sizeof compressions), at += sizeof compressions;
  unsigned char *extensions = at;
  at += 2;
  at += put16(at, 0);  // server_name
  at += put16(at, length + 5);
  at += put16(at, length + 3);
  *at++ = 0;
  at += put16(at, length);
  memcpy(at, name, length);
  if (mark) digits = at + (mark - pattern);
  at += length;
  at += put_extension(at, 0x2b, versions, sizeof versions);
  at += put_extension(at, 0x0a, groups, sizeof groups);
  at += put_extension(at, 0x0d, algorithms, sizeof algorithms);
  at += put_extension(at, 0x10, alpn, sizeof alpn - 1);
  at += put_extension(at, 0x15, padding, sizeof padding);
  put16(extensions, at - extensions - 2);
  hello[0] = 22;
  put16(hello + 1, 0x0301);
  put16(hello + 3, at - body + 4);
  hello[5] = 1;
  hello[6] = 0;
  put16(hello + 7, at - body);
  hello_size = at - hello;
}

static void choose_name(void) {
  if (!digits) return;
  char number[DIGITS + 1];
  snprintf(number, sizeof number, "%0*u", DIGITS, (unsigned)(roll() % names) % 100000);
  memcpy(digits, number, DIGITS);
}

// ---- the server ---------------------------------------------------------------------------------------

struct served {
  long hello_left;  // bytes of the ClientHello that have not come; -1: none has
  long left;        // bytes of the answer that were not sent
  int waits;        // for room to send
};

static void server_end(int fd) { close(fd); }

static void server_step(int ep, int fd, struct served *c, int stay) {
  static unsigned char in[65536];
  if (c->hello_left) {
    ssize_t got = read(fd, in, sizeof in);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return server_end(fd);
    if (c->hello_left < 0) {
      if (got < 5) return server_end(fd);  // never seen: the clients send their hello at once
      c->hello_left = 5 + (in[3] << 8 | in[4]);
    }
    c->hello_left -= got;
    if (c->hello_left < 0) return server_end(fd);  // more than was sent: the client will count a failure
    if (c->hello_left) return;
  } else if (!c->left) {  // `stay`: nothing is left to do but to notice the end
    ssize_t got = read(fd, in, sizeof in);
    if (got == 0 || (got < 0 && errno != EAGAIN)) server_end(fd);
    return;
  }
  while (c->left > 0) {
    ssize_t sent = write(fd, scratch, c->left > (long)sizeof scratch ? (long)sizeof scratch : c->left);
    if (sent < 0 && errno == EAGAIN) {
      if (!c->waits) watch(ep, EPOLL_CTL_MOD, fd, EPOLLOUT);
      c->waits = 1;
      return;
    }
    if (sent < 0) return server_end(fd);
    c->left -= sent;
  }
  if (!stay) return server_end(fd);
  if (c->waits) watch(ep, EPOLL_CTL_MOD, fd, EPOLLIN);
}

static void serve(int port, long bytes, int stay) {
  static struct served table[MAX_FD];
  int listener = listening(port), one = 1;
  int ep = epoll_create1(0);
  watch(ep, EPOLL_CTL_ADD, listener, EPOLLIN);
  struct epoll_event events[EVENTS];
  for (;;) {
    int count = epoll_wait(ep, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd, c;
      if (fd != listener) {
        server_step(ep, fd, &table[fd], stay);
        continue;
      }
      while ((c = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (c >= MAX_FD) die("descriptor table");
        setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        table[c] = (struct served){.hello_left = -1, .left = bytes};
        watch(ep, EPOLL_CTL_ADD, c, EPOLLIN);
      }
      if (errno == EMFILE || errno == ENFILE) die("accept");
    }
  }
}

// ---- the clients --------------------------------------------------------------------------------------

enum mode { CLIENT, PACED, HOLD };

struct dialled {
  int sent;
  long got;
  double began, full;
};

static struct sockaddr_in target;
static struct dialled table[MAX_FD];
static int ep, live;

static void dial(double began) {
  int fd = connecting(&target);
  if (fd < 0) return fail("connect");
  table[fd] = (struct dialled){.began = began};
  watch(ep, EPOLL_CTL_ADD, fd, EPOLLOUT);
  live++;
}

static void end(int fd, const char *why) {
  struct dialled *c = &table[fd];
  if (why) {
    fail(why);
  } else {
    took(c->full - c->began);
    done++;
  }
  close(fd);
  live--;
}

static void step(int fd, enum mode mode, long want) {
  struct dialled *c = &table[fd];
  errno = 0;
  if (!c->sent) {
    choose_name();
    if (write(fd, hello, hello_size) != hello_size) return end(fd, "sending the hello");
    c->sent = 1;
    watch(ep, EPOLL_CTL_MOD, fd, EPOLLIN);
    return;
  }
  ssize_t got = recv(fd, scratch, sizeof scratch, want >= TRUNCATE_FROM ? MSG_TRUNC : 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got < 0) return end(fd, "receiving");
  if (got == 0) return end(fd, mode == HOLD ? "a held connection ended" : c->got == want ? NULL : "bytes are missing");
  c->got += got;
  total += got;
  if (c->got > want) return end(fd, "more bytes than were sent");
  if (c->got == want) {
    c->full = now();
    if (mode == HOLD) done++;
  }
}

static int load(enum mode mode, double amount, double seconds, long want) {
  struct epoll_event events[EVENTS];
  double began = now(), stop = began + seconds, due = began;
  int timer = -1, told = 0;
  long opened = 0;
  ep = epoll_create1(0);
  if (mode == PACED) {
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(ep, EPOLL_CTL_ADD, timer, EPOLLIN);
  }
  if (mode == HOLD) watch(ep, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
  for (;;) {
    double t = now();
    if (t > stop + GRACE || (t > stop && (live == 0 || mode == HOLD))) break;
    if (mode == CLIENT)
      while (t < stop && live < amount) dial(t);
    if (mode == HOLD)
      while (opened < amount && opened - done - failed < MAX_DIALLING) dial(t), opened++;
    if (mode == PACED) {
      while (due <= t && due < stop && live < MAX_PACED) {
        dial(due);
        due += pause_of(amount);
      }
      if (due < stop && live < MAX_PACED) arm(timer, due);
    }
    if (mode == HOLD && !told && done + failed == (long)amount) {
      printf("{\"ready\": %ld}\n", done);
      fflush(stdout);
      told = 1;
    }
    int count = epoll_wait(ep, events, EVENTS, 100);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd == timer) {
        disarm(timer);
      } else if (mode == HOLD && fd == STDIN_FILENO) {
        stop = 0;
      } else {
        step(fd, mode, want);
      }
    }
  }
  double elapsed = now() - began;
  errno = ETIMEDOUT;
  if (mode != HOLD)
    for (; live > 0; live--) fail("still open after the end");
  report(elapsed);
  return failed > 0 || (mode == HOLD && done < (long)amount);
}

int main(int argc, char **argv) {
  prepare();
  const char *mode = argc > 1 ? argv[1] : "";
  if (argc >= 4 && !strcmp(mode, "server")) serve(atoi(argv[2]), atol(argv[3]), argc > 4);
  int paced = !strcmp(mode, "paced"), hold = !strcmp(mode, "hold"), client = !strcmp(mode, "client");
  if (argc != (hold ? 7 : 8) || !(paced || hold || client)) {
    fprintf(stderr, "ptbench: wrong usage; it is told at the top of ptbench.c\n");
    return 2;
  }
  target = address_of(argv[2], argv[3]);
  build_hello(argv[4]);
  return load(hold ? HOLD : paced ? PACED : CLIENT, atof(argv[5]), atof(argv[6]), hold ? 1 : atol(argv[7]));
}
