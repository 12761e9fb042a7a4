// What both load generators need: time, dice, epoll, listening, connecting, and the report at the end.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define EVENTS 512
#define MAX_LATENCIES 4000000
#define GRACE 5.0  // seconds that what is under way may take to end after SECONDS
#define SOURCES 60  // clients use 127.0.0.2 to 127.0.0.61, for one address has too few ports

static char scratch[1 << 20];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
  fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
  exit(2);
}

static void watch(int ep, int op, int fd, uint32_t events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  if (epoll_ctl(ep, op, fd, &e)) die("epoll_ctl");
}

static uint64_t roll(void) {  // xorshift64, the same sequence in every run
  static uint64_t dice = 0x9e3779b97f4a7c15;
  dice ^= dice << 13;
  dice ^= dice >> 7;
  dice ^= dice << 17;
  return dice;
}

static double pause_of(double rate) {  // between two events of a Poisson process with so many a second
  return -log((roll() >> 11) * 0x1p-53 + 0x1p-54) / rate;
}

static void arm(int timer, double at) {
  struct itimerspec t = {.it_value = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - floor(at)) * 1e9)}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &t, NULL);
}

static void disarm(int timer) {
  uint64_t ticks;
  if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
}

static void prepare(void) {
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // never outlive who started us
  struct rlimit limit = {MAX_FD, MAX_FD};
  if (setrlimit(RLIMIT_NOFILE, &limit) && !getrlimit(RLIMIT_NOFILE, &limit)) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

static int listening(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, (void *)&address, sizeof address) || listen(fd, 8192)) die("listen");
  return fd;
}

static int connecting(const struct sockaddr_in *target) {  // a socket whose connection is under way; -1: it is refused
  static unsigned source = 0;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  if (fd < 0 || fd >= MAX_FD) die("socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  struct sockaddr_in local = {.sin_family = AF_INET};
  local.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + source++ % SOURCES);
  if (bind(fd, (void *)&local, sizeof local)) die("bind");
  if (!connect(fd, (const void *)target, sizeof *target) || errno == EINPROGRESS) return fd;
  close(fd);
  return -1;
}

static struct sockaddr_in address_of(const char *host, const char *port) {
  struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  if (inet_pton(AF_INET, host, &target.sin_addr) != 1) die("HOST is no IPv4 address");
  return target;
}

// ---- what came of it ----------------------------------------------------------------------------------

static double *latencies;
static long done, failed, total, kept;

static void fail(const char *why) {
  if (!failed++)
    fprintf(stderr, "%s: the first failure: %s: %s\n", program_invocation_short_name, why,
            errno ? strerror(errno) : "at its end");
}

static void took(double seconds) {
  if (!latencies) latencies = malloc(MAX_LATENCIES * sizeof *latencies);
  if (kept < MAX_LATENCIES) latencies[kept++] = seconds;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double percentile_ms(double p) { return kept ? latencies[(long)((kept - 1) * p)] * 1e3 : 0; }

static void report(double elapsed) {
  if (kept) qsort(latencies, kept, sizeof *latencies, compare);
  printf("{\"seconds\": %.3f, \"done\": %ld, \"failed\": %ld, \"bytes\": %ld, \"p50_ms\": %.4f, \"p99_ms\": %.4f}\n",
         elapsed, done, failed, total, percentile_ms(0.5), percentile_ms(0.99));
}
