// Load for a proxy at which TLS ends: HTTP/1.1 over TLS 1.3, and, behind the proxy, its backend over plain HTTP/1.1.
//
//   sitebench server      PORT                                   on 127.0.0.1; GET /N gives N bytes, a body is read
//   sitebench requests    HOST PORT NAME COUNT SECONDS           COUNT connections, a request on each after the last
//   sitebench paced       HOST PORT NAME COUNT SECONDS RATE      RATE requests a second over COUNT connections
//   sitebench connections HOST PORT NAME COUNT SECONDS           COUNT at any time, each for one request
//   sitebench down        HOST PORT NAME BYTES SECONDS           one GET whose answer has so many bytes
//   sitebench up          HOST PORT NAME BYTES SECONDS           one POST whose body has
//   sitebench hold        HOST PORT NAME COUNT SECONDS           COUNT connections that have had their request
//
// A client first opens its connections (`connections`, `down` and `up`: one) and has a request answered on each of
// them. Then it prints {"ready": COUNT} and waits for its standard input to end: who started it can look at the proxy
// in between, so that what is measured holds no handshake that is not its subject. Then comes the load; `hold` has
// none, it stays for SECONDS at most until its input ends, and sees to it that no connection is lost.
//
// A request counts as done when a 200 with a Content-Length and exactly that many bytes of body have come. Anything
// else is a failure: so are another TLS than 1.3, a resumed session, a connection that ends, and what has not ended 5 s
// after SECONDS. At its end a client prints one line of JSON; it exits with 1 if anything failed.
//
// `paced` is an open loop: requests are due at the times of a Poisson process with a fixed seed, the same for every
// proxy. One that is due while every connection is busy waits its turn, and its latency counts from when it was due, so
// that a proxy which falls behind is not spared the queue (no "coordinated omission").
//
// The certificate is not verified: the bench does that once for each proxy, and here it would only cost the clients.
#include "common.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#define MAX_HEAD 4096
#define MAX_DIALLING 64   // handshakes under way at once while connections are opened
#define MAX_DUE 1000000   // requests of `paced` that wait for a connection
#define OPENING 60.0      // seconds that opening the connections may take
#define SMALL 100         // bytes of the answer to what does not ask for a number of them
#define TURN 8            // reads of a body before others have theirs

static int head_of(const char *head, const char *name, char *value, size_t size) {  // 1: it has such a field
  const char *at = strcasestr(head, name);
  if (!at) return 0;
  at += strlen(name);
  at += strspn(at, " ");
  snprintf(value, size, "%.*s", (int)strcspn(at, "\r\n"), at);
  return 1;
}

// ---- the backend --------------------------------------------------------------------------------------

struct served {
  char head[MAX_HEAD];
  int have;
  long body;  // bytes of the request's body that have not come
  long left;  // bytes of the answer's body that were not sent
  int waits;  // for room to send
};

static void server_answer(int ep, int fd, struct served *c) {
  while (c->left > 0) {
    ssize_t sent = write(fd, scratch, c->left > (long)sizeof scratch ? (long)sizeof scratch : c->left);
    if (sent < 0 && errno == EAGAIN) {
      if (!c->waits) watch(ep, EPOLL_CTL_MOD, fd, EPOLLOUT);
      c->waits = 1;
      return;
    }
    if (sent < 0) {
      close(fd);
      return;
    }
    c->left -= sent;
  }
  if (c->waits) watch(ep, EPOLL_CTL_MOD, fd, EPOLLIN);
  c->waits = 0;
}

static void server_begin_answer(int ep, int fd, struct served *c, long bytes) {
  char out[512 + SMALL];
  int size = snprintf(out, sizeof out - SMALL,
                      "HTTP/1.1 200 OK\r\nServer: sitebench\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                      "Content-Type: application/octet-stream\r\nContent-Length: %ld\r\n\r\n",
                      bytes);
  c->have = 0;
  if (bytes <= SMALL) {  // head and body in one packet, as a backend sends them that cares
    memset(out + size, 'x', bytes);
    size += bytes;
    bytes = 0;
  }
  if (send(fd, out, size, bytes ? MSG_MORE : 0) != size) {
    close(fd);
    return;
  }
  c->left = bytes;
  server_answer(ep, fd, c);
}

static void server_step(int ep, int fd, struct served *c) {
  if (c->left > 0) return server_answer(ep, fd, c);
  for (int turn = 0; turn < TURN; turn++) {
    ssize_t got;
    if (c->body > 0) {
      long room = c->body > (long)sizeof scratch ? (long)sizeof scratch : c->body;
      got = recv(fd, scratch, room, MSG_TRUNC);  // thrown away in the kernel
    } else {
      got = recv(fd, c->head + c->have, MAX_HEAD - 1 - c->have, 0);
    }
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      close(fd);
      return;
    }
    if (c->body > 0) {
      if ((c->body -= got)) continue;
      return server_begin_answer(ep, fd, c, SMALL);
    }
    c->have += got;
    c->head[c->have] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), value[32];
    if (!end && c->have < MAX_HEAD - 1) continue;
    if (!end || head_of(c->head, "\r\nTransfer-Encoding:", value, sizeof value)) {
      fprintf(stderr, "sitebench: a head of %d bytes, or a chunked body, is not for this backend\n", c->have);
      close(fd);
      return;
    }
    if (head_of(c->head, "\r\nContent-Length:", value, sizeof value)) {
      c->body = atol(value) - (c->have - (end + 4 - c->head));
      if (c->body > 0) continue;
      c->body = 0;
    }
    long bytes = strncmp(c->head, "GET /", 5) ? 0 : atol(c->head + 5);
    return server_begin_answer(ep, fd, c, bytes > 0 ? bytes : SMALL);
  }
}

static void serve(int port) {
  static struct served table[MAX_FD];
  int listener = listening(port), one = 1, ep = epoll_create1(0);
  watch(ep, EPOLL_CTL_ADD, listener, EPOLLIN);
  struct epoll_event events[EVENTS];
  for (;;) {
    int count = epoll_wait(ep, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd, c;
      if (fd != listener) {
        server_step(ep, fd, &table[fd]);
        continue;
      }
      while ((c = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (c >= MAX_FD) die("descriptor table");
        setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        table[c].have = table[c].body = table[c].left = table[c].waits = 0;
        watch(ep, EPOLL_CTL_ADD, c, EPOLLIN);
      }
      if (errno == EMFILE || errno == ENFILE) die("accept");
    }
  }
}

// ---- the clients --------------------------------------------------------------------------------------

enum mode { REQUESTS, PACED, CONNECTIONS, DOWN, UP, HOLD };
static const char *modes[] = {"requests", "paced", "connections", "down", "up", "hold"};

enum state { CONNECTING, WRITING, READING, RESTING };

struct client {
  SSL *ssl;
  enum state state;
  int watched;        // the events that epoll looks for
  int greeted;        // the connection has had its first answer
  double began;       // when its request was due
  const char *out;    // what is left of the request's head
  int out_left;
  long body_left;     // and of its body
  char head[MAX_HEAD];
  int have;
  long want, got;     // bytes of the answer's body; `want` is -1 until its head is complete
};

static struct client table[MAX_FD];
static struct sockaddr_in target;
static SSL_CTX *context;
static const char *name;
static enum mode mode;
static int ep, live, open_ones, measuring;
static char small_request[512], large_request[512];
static int small_size, large_size;
static long large_body, large_answer = SMALL;
static double stop;
static int resting[MAX_FD], first_resting, count_resting;    // connections without a request, the first longest
static double waiting[MAX_DUE];                              // when requests were due that have no connection yet
static int first_waiting, count_waiting;

static void step(int fd);

static void end(int fd, const char *why) {
  struct client *c = &table[fd];
  if (why) fail(why);
  if (c->ssl) {
    if (!why) SSL_shutdown(c->ssl);
    SSL_free(c->ssl);
    c->ssl = NULL;
  }
  close(fd);
  live--;
  open_ones -= c->greeted;
}

static void look_for(int fd, int events) {
  if (table[fd].watched == events) return;
  table[fd].watched = events;
  watch(ep, EPOLL_CTL_MOD, fd, events);
}

static int may_wait(int fd, int result, const char *what) {  // 1: for the peer; 0: the connection has ended
  int error = SSL_get_error(table[fd].ssl, result);
  if (error == SSL_ERROR_WANT_READ) look_for(fd, EPOLLIN);
  if (error == SSL_ERROR_WANT_WRITE) look_for(fd, EPOLLIN | EPOLLOUT);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return 1;
  if (error == SSL_ERROR_SSL && !failed) ERR_print_errors_fp(stderr);
  end(fd, what);
  return 0;
}

static void dial(void) {
  int fd = connecting(&target);
  if (fd < 0) return fail("connect");
  struct client *c = &table[fd];
  c->ssl = SSL_new(context);
  if (!c->ssl || !SSL_set_fd(c->ssl, fd) || !SSL_set_tlsext_host_name(c->ssl, name)) die("a TLS client");
  SSL_set_connect_state(c->ssl);
  c->state = CONNECTING;
  c->began = now();
  c->greeted = 0;
  c->watched = EPOLLOUT;
  watch(ep, EPOLL_CTL_ADD, fd, EPOLLOUT);
  live++;
}

static void request(int fd, double due) {
  struct client *c = &table[fd];
  int large = measuring && (mode == DOWN || mode == UP);
  c->out = large ? large_request : small_request;
  c->out_left = large ? large_size : small_size;
  c->body_left = large ? large_body : 0;
  c->began = due;
  c->have = 0;
  c->got = 0;
  c->want = -1;
  c->state = WRITING;
  step(fd);
}

static void rest(int fd) {
  table[fd].state = RESTING;
  resting[(first_resting + count_resting++) % MAX_FD] = fd;
}

static void rested(double due) {  // a request for the connection that has rested longest
  int fd = resting[first_resting];
  first_resting = (first_resting + 1) % MAX_FD;
  count_resting--;
  request(fd, due);
}

static void answered(int fd) {
  struct client *c = &table[fd];
  double t = now();
  if (!measuring) {
    c->greeted = 1;
    open_ones++;
    rest(fd);
    return;
  }
  took(t - c->began);
  done++;
  total += c->got + (mode == UP ? large_body : 0);
  if (mode == CONNECTIONS) return end(fd, NULL);
  if (mode == REQUESTS && t < stop) return request(fd, t);
  rest(fd);
  if (mode == PACED && count_waiting) {
    double due = waiting[first_waiting];
    first_waiting = (first_waiting + 1) % MAX_DUE;
    count_waiting--;
    rested(due);
  }
}

static const char *take_head(struct client *c, const char *data, int size) {  // why it is no good, else NULL
  int room = MAX_HEAD - 1 - c->have, before = c->have, some = size < room ? size : room;
  memcpy(c->head + c->have, data, some);
  c->head[c->have += some] = 0;
  char *blank = strstr(c->head, "\r\n\r\n"), value[32];
  if (!blank) return some < size ? "an endless head" : NULL;
  *blank = 0;
  if (strncmp(c->head, "HTTP/1.1 200 ", 13)) return "an answer other than 200";
  if (!head_of(c->head, "\r\nContent-Length:", value, sizeof value)) return "an answer without Content-Length";
  c->want = atol(value);
  c->got = size - (blank + 4 - c->head - before);
  return c->want == (measuring ? large_answer : SMALL) ? NULL : "an answer of the wrong size";
}

static void receive(int fd) {
  struct client *c = &table[fd];
  for (int turn = 0; turn < TURN || SSL_pending(c->ssl); turn++) {
    ERR_clear_error();
    int got = SSL_read(c->ssl, scratch, sizeof scratch);
    if (got <= 0) {
      may_wait(fd, got, c->state == READING ? "the connection ended before the answer" : "an idle connection ended");
      return;
    }
    const char *why = NULL;
    if (c->state == RESTING) return end(fd, "bytes that nobody asked for");
    if (c->want < 0)
      why = take_head(c, scratch, got);
    else
      c->got += got;
    if (!why && c->want >= 0 && c->got > c->want) why = "more bytes than were announced";
    if (why) return end(fd, why);
    if (c->got == c->want) return answered(fd);
  }
}

static void step(int fd) {
  struct client *c = &table[fd];
  errno = 0;
  if (c->state == CONNECTING) {
    ERR_clear_error();
    int result = SSL_do_handshake(c->ssl);
    if (result != 1) {
      may_wait(fd, result, "the handshake");
      return;
    }
    if (SSL_version(c->ssl) != TLS1_3_VERSION) return end(fd, "another TLS than 1.3");
    if (SSL_session_reused(c->ssl)) return end(fd, "a resumed session");
    return request(fd, c->began);
  }
  while (c->state == WRITING) {
    const char *from = c->out_left ? c->out : scratch;
    long left = c->out_left ? c->out_left : c->body_left, most = sizeof scratch;
    ERR_clear_error();
    int sent = SSL_write(c->ssl, from, left < most ? left : most);
    if (sent <= 0) {
      may_wait(fd, sent, "sending");
      return;
    }
    if (c->out_left)
      c->out += sent, c->out_left -= sent;
    else
      c->body_left -= sent;
    if (c->out_left || c->body_left) continue;
    c->state = READING;
    look_for(fd, EPOLLIN);
    return;  // the answer cannot be here yet
  }
  receive(fd);
}

// Steps what has events; whether standard input ended.
static int turn(int timer) {
  struct epoll_event events[EVENTS];
  int count = epoll_wait(ep, events, EVENTS, 100), ended = 0;
  for (int i = 0; i < count; i++) {
    int fd = events[i].data.fd;
    if (fd == timer)
      disarm(timer);
    else if (fd == STDIN_FILENO)
      ended = 1;
    else
      step(fd);
  }
  return ended;
}

static void open_connections(long wanted) {
  double until = now() + OPENING;
  while (open_ones < wanted && !failed) {
    while (live < wanted && live - open_ones < MAX_DIALLING && !failed) dial();
    turn(-1);
    errno = ETIMEDOUT;
    if (now() > until) fail("opening the connections");
  }
  printf("{\"ready\": %d}\n", open_ones);
  fflush(stdout);
}

static void wait_for_word(void) {
  char word[64];
  while (read(STDIN_FILENO, word, sizeof word) > 0) {
  }
}

static void hold(double seconds) {
  double until = now() + seconds;
  watch(ep, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
  while (now() < until && !failed && !turn(-1)) {
  }
  done = open_ones;
}

static void load(long count, double seconds, double rate) {
  double began = now(), due = began;
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  watch(ep, EPOLL_CTL_ADD, timer, EPOLLIN);
  stop = began + seconds;
  measuring = 1;
  if (mode == CONNECTIONS)
    while (count_resting) end(resting[--count_resting], NULL);
  else if (mode != PACED)
    for (int left = count_resting; left; left--) rested(began);
  while (!failed) {
    double t = now();
    if (mode == CONNECTIONS)
      while (t < stop && live < count) dial();
    if (mode == PACED) {
      for (; due <= t && due < stop; due += pause_of(rate)) {
        if (count_resting)
          rested(due);
        else if (count_waiting < MAX_DUE)
          waiting[(first_waiting + count_waiting++) % MAX_DUE] = due;
        else
          fail("too many requests wait");
      }
      if (due < stop) arm(timer, due);
    }
    int busy = live - count_resting;
    if ((t > stop || mode == DOWN || mode == UP) && !busy) break;
    if (t > stop + GRACE) {
      errno = ETIMEDOUT;
      fail("still busy after the end");
    }
    turn(timer);
  }
  report(now() - began);
}

int main(int argc, char **argv) {
  prepare();
  if (argc == 3 && !strcmp(argv[1], "server")) serve(atoi(argv[2]));
  int which = 0;
  while (which < HOLD + 1 && (argc < 2 || strcmp(argv[1], modes[which]))) which++;
  if (argc != (which == PACED ? 8 : 7) || which > HOLD) {
    fprintf(stderr, "sitebench: wrong usage; it is told at the top of sitebench.c\n");
    return 2;
  }
  mode = which;
  target = address_of(argv[2], argv[3]);
  name = argv[4];
  long amount = atol(argv[5]);
  double seconds = atof(argv[6]);
  static const unsigned char alpn[] = "\x08http/1.1";
  context = SSL_CTX_new(TLS_client_method());
  // The suite that browsers offer first. Left to themselves OpenSSL's peers would take AES-256, and Go's AES-128.
  if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
      !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") ||
      SSL_CTX_set_alpn_protos(context, alpn, sizeof alpn - 1))
    die("TLS");
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_read_ahead(context, 1);  // a system call for what is there, rather than two for each record
  const char *fields = "User-Agent: sitebench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n";
  small_size = snprintf(small_request, sizeof small_request, "GET / HTTP/1.1\r\nHost: %.200s\r\n%s\r\n", name, fields);
  if (mode == UP) {
    large_body = amount;
    large_size = snprintf(large_request, sizeof large_request,
                          "POST /sink HTTP/1.1\r\nHost: %.200s\r\n%sContent-Length: %ld\r\n\r\n", name, fields, amount);
  } else {
    if (mode == DOWN) large_answer = amount;
    large_size = snprintf(large_request, sizeof large_request, "GET /%ld HTTP/1.1\r\nHost: %.200s\r\n%s\r\n", amount,
                          name, fields);
  }
  ep = epoll_create1(0);
  long opened = mode == REQUESTS || mode == PACED || mode == HOLD ? amount : 1;
  open_connections(opened);
  if (failed) return 1;
  if (mode == HOLD) {
    hold(seconds);
    report(0);
    return failed > 0 || done < amount;
  }
  wait_for_word();
  load(amount, seconds, which == PACED ? atof(argv[7]) : 0);
  return failed > 0;
}
