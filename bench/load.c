/*
 * The load: both ends of the benchmark, so that between them stands the relay and nothing else.
 *
 *     load target PORT [-r MS]      a SOCKS5 server that grants everything and is the destination,
 *                                   and the same destination for those who ask it without SOCKS
 *     load serve PORT               the same destination without SOCKS, for the direct baseline
 *     load rr|pp|down|up|idle|fail ...   a client; see usage()
 *
 * A client is a program that knows of no proxy, or with -x one that asks a SOCKS5 server, which
 * it does as most do: by address, without a login, one message at a time.
 *
 * What a client wants from the destination it says in its first 64 bytes, `struct wish`. A client
 * prints {"ready":true} when all that it needs before the measurement stands, waits for a line on
 * stdin, works, prints one line of JSON, and holds its connections until stdin ends: so the driver
 * can read the relay's CPU clock exactly before and after the work.
 *
 * One thread, edge-triggered epoll. Bulk is discarded in the kernel (MSG_TRUNC) unless it is
 * checked, so that the load costs less than the relay.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
  MESSAGE = 64,            /* A wish, and one ping. */
  ANSWER = 128,            /* To a wish for one exchange. */
  CHUNK = 256 << 10,       /* One send or recv of bulk. */
  PERIOD = 1000003,        /* The pattern's length: a prime, so that no shift by a page fits. */
  EVENTS = 256,
  OPENING = 256,           /* Connections that are being opened at a time. */
  PATIENCE_MS = 3000,
  HANGS_MS = 40000,        /* SYNs that a busy machine drops are repeated after 1, 3, 7, 15, 31 s. */
};

struct wish {
  char mode;               /* r: one exchange, p: echo, d: send to me, u: I send. */
  bool checked;            /* The bytes follow the pattern, and their receiver compares them. */
  uint64_t ms;             /* How long to send ... */
  uint64_t bytes;          /* ... or how many bytes, if not 0. */
  char padding[MESSAGE - 24];
};
_Static_assert(sizeof(struct wish) == MESSAGE, "a wish is one message");

enum phase { GREETING, METHOD, REQUEST, WISH, HTTP, ECHOING, SENDING, RECEIVING, EXCHANGING };

/* One connection, of the destination or of a client. */
struct connection {
  int fd;
  enum phase phase;
  uint32_t serial;         /* Grows when the connection is closed: late answers know by it. */
  bool checked;
  uint64_t bytes, bytesMax;
  int64_t start, end;      /* Nanoseconds. */
  uint32_t place;          /* Of a client: which of the addresses it wants. */
  uint32_t have;           /* Bytes of an unfinished message in `part`. */
  uint8_t part[MESSAGE];
  struct connection *next; /* In the list of free ones. */
};

static int epollFd;
static uint8_t buffer[CHUNK], pattern[PERIOD + CHUNK];
static struct connection *freeConnections;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int64_t nowNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static struct connection *take(int fd, enum phase phase) {
  struct connection *c = freeConnections ? freeConnections : calloc(1, sizeof *c);
  if (c == freeConnections) freeConnections = c->next;
  uint32_t serial = c->serial;
  memset(c, 0, sizeof *c);
  c->serial = serial;
  c->fd = fd;
  c->phase = phase;
  return c;
}

static void drop(struct connection *c) {
  close(c->fd);
  c->serial++;
  c->next = freeConnections;
  freeConnections = c;
}

static void watch(struct connection *c, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = c};
  epoll_ctl(epollFd, operation, c->fd, &event);
}

/* Small messages go into empty socket buffers: a short send is an error here. */
static bool sendAll(struct connection *c, const void *bytes, size_t length) {
  return send(c->fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Of a SOCKS5 request or reply, of which 5 bytes are there. */
static size_t lengthOf(const uint8_t *message) {
  return message[3] == 1 ? 10u : message[3] == 4 ? 22u : 7u + message[4];
}

/* Sends the pattern until the connection's time or bytes are over. True: it is complete. */
static bool sendBulk(struct connection *c) {
  for (int turn = 0; turn < 16; turn++) {
    if (c->bytesMax ? c->bytes >= c->bytesMax : nowNs() >= c->end) return true;
    size_t length = CHUNK;
    if (c->bytesMax && c->bytesMax - c->bytes < length) length = c->bytesMax - c->bytes;
    ssize_t sent = send(c->fd, pattern + c->bytes % PERIOD, length, MSG_NOSIGNAL);
    if (sent < 0) return errno != EAGAIN;
    c->bytes += (uint64_t)sent;
  }
  return false; /* Level-triggered: epoll comes back at once. */
}

/* Receives until EAGAIN (0), the end (1), or an error or a wrong byte (-1). */
static int receiveBulk(struct connection *c) {
  for (;;) {
    if (c->bytesMax && c->bytes >= c->bytesMax) return 1;
    ssize_t got = recv(c->fd, buffer, CHUNK, c->checked ? 0 : MSG_TRUNC);
    if (got == 0) return 1;
    if (got < 0) return errno == EAGAIN ? 0 : -1;
    if (c->checked && memcmp(buffer, pattern + c->bytes % PERIOD, (size_t)got) != 0) return -1;
    c->bytes += (uint64_t)got;
  }
}

/* ---- the destination ------------------------------------------------------------------------ */

#define REPLY_MAX 8

static int64_t delayNs;
static int timer;

/* Handshake replies under way, in the order of their time. */
static struct delayed {
  int64_t due;
  struct connection *c;
  uint32_t serial;
  int reply;
} *late;
static size_t lateHead, lateTail, lateRoom;

static void setTimer(void) {
  struct itimerspec at = {0};
  if (lateHead < lateTail) {
    at.it_value.tv_sec = late[lateHead].due / 1000000000;
    at.it_value.tv_nsec = late[lateHead].due % 1000000000;
  }
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

enum { CHOOSE = -1, GRANT = 0 /* and SOCKS5's other replies */ };

/* False: the connection is over. */
static bool sendReply(struct connection *c, int reply) {
  if (reply == CHOOSE) return sendAll(c, (uint8_t[]){5, 0}, 2);
  return sendAll(c, (uint8_t[]){5, (uint8_t)reply, 0, 1, 0, 0, 0, 0, 0, 0}, 10) && reply == GRANT;
}

static bool answer(struct connection *c, int reply) {
  if (delayNs == 0) return sendReply(c, reply);
  if (lateTail == lateRoom) {
    memmove(late, late + lateHead, (lateTail - lateHead) * sizeof *late);
    lateTail -= lateHead;
    lateHead = 0;
    if (lateTail * 2 >= lateRoom)
      late = realloc(late, (lateRoom = lateRoom ? lateRoom * 2 : 64) * sizeof *late);
  }
  late[lateTail++] = (struct delayed){nowNs() + delayNs, c, c->serial, reply};
  if (lateTail - lateHead == 1) setTimer();
  return true;
}

static void sendLate(void) {
  uint64_t expirations;
  if (read(timer, &expirations, sizeof expirations) < 0) return;
  while (lateHead < lateTail && late[lateHead].due <= nowNs()) {
    struct delayed *one = &late[lateHead++];
    if (one->serial == one->c->serial) sendReply(one->c, one->reply);
  }
  setTimer();
}

/* An HTTP server that knows one answer: one for each empty line. */
static bool serveHttp(struct connection *c, const uint8_t *bytes, size_t length) {
  static const char response[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                                 "Content-Length: 14\r\n\r\nHello, world!\n";
  for (size_t i = 0; i < length; i++) {
    /* `have` counts how much of \r\n\r\n has been seen. */
    c->have = bytes[i] == "\r\n\r\n"[c->have] ? c->have + 1 : bytes[i] == '\r';
    if (c->have < 4) continue;
    c->have = 0;
    if (!sendAll(c, response, sizeof response - 1)) return false;
  }
  return true;
}

/* False: the connection is over. */
static bool grant(struct connection *c, const struct wish *wish) {
  c->checked = wish->checked;
  c->have = 0;
  switch (wish->mode) {
    case 'r': sendAll(c, pattern, ANSWER); return false;
    case 'p': c->phase = ECHOING; return sendAll(c, wish, MESSAGE);
    case 'u':
      c->phase = RECEIVING;
      c->bytesMax = wish->bytes;
      return true;
    case 'd':
      c->phase = SENDING;
      c->bytesMax = wish->bytes;
      c->end = nowNs() + (int64_t)wish->ms * 1000000;
      watch(c, EPOLL_CTL_MOD, EPOLLOUT);
      return true;
    default: return false;
  }
}

/* Takes what it can from bytes[0, length) and says how much that was; -1: over. */
static ssize_t understand(struct connection *c, const uint8_t *bytes, size_t length) {
  struct wish wish;
  switch (c->phase) {
    case GREETING:
      if (bytes[0] != 5) {
        c->phase = WISH;
        return 0;
      }
      if (length < 2 || length < 2u + bytes[1]) return 0;
      c->phase = REQUEST;
      return answer(c, CHOOSE) ? 2 + bytes[1] : -1;
    case REQUEST: {
      if (length < 5) return 0;
      size_t whole = lengthOf(bytes);
      if (length < whole) return 0;
      c->phase = WISH;
      /* The ports that are the numbers of SOCKS5's refusals are refused so. */
      int port = bytes[whole - 2] << 8 | bytes[whole - 1];
      return answer(c, port <= REPLY_MAX ? port : GRANT) ? (ssize_t)whole : -1;
    }
    case WISH:
      if (bytes[0] == 'G') {
        c->phase = HTTP;
        c->have = 0;
        return 0;
      }
      if (length < MESSAGE) return 0;
      memcpy(&wish, bytes, MESSAGE);
      return grant(c, &wish) ? MESSAGE : -1;
    case HTTP: return serveHttp(c, bytes, length) ? (ssize_t)length : -1;
    case ECHOING: return sendAll(c, bytes, length) ? (ssize_t)length : -1;
    default: return 0;
  }
}

/* Everything there is to read. False: the connection is over. */
static bool listenToClient(struct connection *c, uint32_t events) {
  while (c->phase < SENDING) {
    /* HTTP and echo keep no part: `have` is theirs, and is not bytes. */
    size_t kept = c->phase < HTTP ? c->have : 0;
    memcpy(buffer, c->part, kept);
    ssize_t got = recv(c->fd, buffer + kept, CHUNK - MESSAGE, 0);
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    size_t at = 0, end = kept + (size_t)got;
    while (at < end) {
      enum phase before = c->phase;
      ssize_t taken = understand(c, buffer + at, end - at);
      if (taken < 0) return false;
      at += (size_t)taken;
      if (taken == 0 && c->phase == before) break;
      if (c->phase == RECEIVING) { /* The pattern's first bytes came along. */
        if (c->checked && memcmp(buffer + at, pattern, end - at) != 0) return false;
        c->bytes = end - at;
        at = end;
      }
    }
    if (c->phase < HTTP) {
      if (end - at > MESSAGE) return false;
      memcpy(c->part, buffer + at, c->have = (uint32_t)(end - at));
    }
    if (got < CHUNK - MESSAGE && !(events & EPOLLRDHUP)) break;
  }
  if (c->phase != RECEIVING) return true;
  int result = receiveBulk(c);
  if (result == 0) return true;
  uint64_t count = result < 0 ? UINT64_MAX : c->bytes;
  sendAll(c, &count, sizeof count);
  return false;
}

static _Noreturn void serve(int port, enum phase first) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  int one = 1, listeners[2];
  for (unsigned i = 0; i < 2; i++) {
    int fd = socket(i ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (i) setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &one, sizeof one);
    setsockopt(fd, SOL_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, i ? (void *)&six : (void *)&address, i ? sizeof six : sizeof address) < 0 ||
        listen(fd, 4096) < 0)
      die("listen");
    listeners[i] = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
    epoll_ctl(epollFd, EPOLL_CTL_ADD, fd, &event);
  }
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 2};
  epoll_ctl(epollFd, EPOLL_CTL_ADD, timer, &event);
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epollFd, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      if (events[i].data.u64 == 2) {
        sendLate();
      } else if (events[i].data.u64 < 2) {
        int fd = accept4(listeners[events[i].data.u64], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) watch(take(fd, first), EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP | EPOLLET);
      } else {
        struct connection *c = events[i].data.ptr;
        bool goesOn = c->phase == SENDING ? !sendBulk(c) : listenToClient(c, events[i].events);
        if (!goesOn) drop(c);
      }
    }
  }
}

/* ---- the clients ---------------------------------------------------------------------------- */

static struct {
  char mode;
  struct sockaddr_storage first;
  int socksPort;           /* Of the SOCKS5 server on 127.0.0.1; 0: none is asked. */
  uint32_t mark;           /* By which the firewall knows a client's connections from a relay's. */
  int addresses, connections;
  double seconds, rate;
  uint64_t operations, bytes;
  bool checked;
} wanted = {.addresses = 1, .connections = 64, .seconds = 1};

static uint64_t done, failed, total;
/* Of those that failed: the connection was refused, or reset in whatever state. */
static uint64_t refused, resets;
static int live, nextAddress;
static int64_t finish;

/* Latencies, 512 steps to each power of two: a value is known to 0.2 %. */
enum { STEP_BITS = 9, STEPS = 1 << STEP_BITS };
static uint64_t histogram[2][(65 - STEP_BITS) * STEPS]; /* Whole operations, first bytes. */

static void record(int which, int64_t ns) {
  uint64_t value = ns < STEPS ? STEPS : (uint64_t)ns;
  int shift = 63 - __builtin_clzll(value) - STEP_BITS;
  histogram[which][shift * STEPS + (int)(value >> shift)]++;
}

static double quantileUs(int which, double quantile) {
  uint64_t count = 0, seen = 0;
  size_t size = sizeof histogram[which] / sizeof *histogram[which];
  for (size_t i = 0; i < size; i++) count += histogram[which][i];
  for (size_t i = 0; i < size; i++)
    if ((seen += histogram[which][i]) > quantile * (double)count) {
      size_t shift = i / STEPS > 0 ? i / STEPS - 1 : 0;
      return (double)((uint64_t)(i - shift * STEPS) << shift) / 1000;
    }
  return 0;
}

/* The n-th of the addresses: where a client wants to go. */
static struct sockaddr_storage destination(uint32_t n) {
  struct sockaddr_storage address = wanted.first;
  uint32_t *last = address.ss_family == AF_INET
                       ? &((struct sockaddr_in *)&address)->sin_addr.s_addr
                       : &((struct sockaddr_in6 *)&address)->sin6_addr.s6_addr32[3];
  *last = htonl(ntohl(*last) + n);
  return address;
}

static void over(struct connection *c, bool good) {
  if (good) done++;
  else failed++;
  live--;
  drop(c);
}

/* What the socket has against it, once: SO_ERROR is forgotten when it has been read. */
static void failedWith(int error) {
  if (error == ECONNREFUSED) refused++;
  else if (error != 0 && error != EAGAIN) resets++;
}

/* Connects to the next of the addresses, or to the SOCKS5 server that is asked for it. */
static void start(void) {
  uint32_t place = (uint32_t)(nextAddress++ % wanted.addresses);
  struct sockaddr_storage address = destination(place);
  if (wanted.socksPort != 0)
    *(struct sockaddr_in *)&address = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)wanted.socksPort),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1, fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  setsockopt(fd, SOL_TCP, TCP_NODELAY, &one, sizeof one);
  if (wanted.mark != 0 && setsockopt(fd, SOL_SOCKET, SO_MARK, &wanted.mark, sizeof wanted.mark) < 0)
    die("SO_MARK");
  struct connection *c = take(fd, wanted.socksPort != 0 ? GREETING : WISH);
  c->start = nowNs();
  c->place = place;
  c->checked = wanted.checked;
  int error = connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0;
  if (error != 0 && error != EINPROGRESS && error != ECONNREFUSED) die("connect");
  live++;
  if (error == ECONNREFUSED) { /* On this host that can be known at once. */
    failedWith(error);
    over(c, false);
    return;
  }
  watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

static void sendWish(struct connection *c) {
  struct wish wish = {.mode = wanted.mode == 'i' ? 'p' : wanted.mode, .checked = wanted.checked,
                      .ms = (uint64_t)(wanted.seconds * 1000), .bytes = wanted.bytes};
  c->phase = wanted.mode == 'd' ? RECEIVING : EXCHANGING;
  if (!sendAll(c, &wish, MESSAGE)) c->bytes = 0; /* The recv that follows will say why. */
  if (wanted.mode != 'u') return;
  c->phase = SENDING;
  c->bytesMax = wanted.bytes;
  c->end = nowNs() + (int64_t)(wanted.seconds * 1e9);
  watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

/* A message of the SOCKS5 server, `length` bytes of it. 0: not yet, -1: it refuses or is gone. */
static int receivePart(struct connection *c, size_t length) {
  ssize_t got = recv(c->fd, c->part + c->have, length - c->have, 0);
  if (got < 0) return errno == EAGAIN ? 0 : -1;
  c->have += (uint32_t)got;
  if (got == 0 || (c->have > 0 && c->part[0] != 5) || (c->have > 1 && c->part[1] != 0)) return -1;
  return c->have == length;
}

/* From the connection to the wish. False: there will be no tunnel. */
static bool ask(struct connection *c, uint32_t events) {
  if (c->phase == WISH) {
    if (events & EPOLLOUT) sendWish(c);
    return true;
  }
  if (c->phase == GREETING) {
    if (!(events & EPOLLOUT)) return true;
    c->phase = METHOD;
    return sendAll(c, (uint8_t[]){5, 1, 0}, 3);
  }
  int result;
  if (c->phase == METHOD) {
    if ((result = receivePart(c, 2)) <= 0) return result == 0;
    struct sockaddr_storage to = destination(c->place);
    bool six = to.ss_family == AF_INET6;
    uint8_t request[22] = {5, 1, 0, six ? 4 : 1};
    memcpy(request + 4, six ? (void *)&((struct sockaddr_in6 *)&to)->sin6_addr
                            : (void *)&((struct sockaddr_in *)&to)->sin_addr, six ? 16 : 4);
    memcpy(request + (six ? 20 : 8), &((struct sockaddr_in *)&to)->sin_port, 2);
    c->phase = REQUEST;
    c->have = 0;
    return sendAll(c, request, lengthOf(request));
  }
  if (c->have < 5 && (result = receivePart(c, 5)) <= 0) return result == 0;
  size_t whole = lengthOf(c->part);
  if (whole > sizeof c->part || (result = receivePart(c, whole)) < 0) return false;
  if (result > 0) sendWish(c);
  return true;
}

static bool timeIsOver(void) {
  return wanted.operations ? done >= wanted.operations : nowNs() >= finish;
}

/* One exchange: the answer, then the end; then the next connection. */
static void exchange(struct connection *c) {
  ssize_t got;
  while ((got = recv(c->fd, buffer, CHUNK, 0)) > 0) {
    if (c->bytes == 0) record(1, nowNs() - c->start);
    c->bytes += (uint64_t)got;
  }
  if (got < 0 && errno == EAGAIN) return;
  if (got < 0) failedWith(errno);
  record(0, nowNs() - c->start);
  over(c, got == 0 && c->bytes == ANSWER);
  if (wanted.rate == 0 && !timeIsOver()) start();
}

/* Before the measurement each connection has one ping, to stand for sure. */
static bool pinging;
static int standing, lost;
static struct connection **stands;

static void ping(struct connection *c) {
  ssize_t got = recv(c->fd, buffer, CHUNK, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    if (got < 0) failedWith(errno);
    lost++;
    return over(c, false);
  }
  if ((c->bytes += (uint64_t)got) < MESSAGE) return;
  c->bytes = 0;
  if (!pinging) {
    stands[standing++] = c;
    return;
  }
  int64_t now = nowNs();
  record(0, now - c->start);
  done++;
  if (timeIsOver()) {
    standing++;
    return;
  }
  c->start = now;
  sendAll(c, pattern, MESSAGE);
}

/* What the receiver counted is what counts, and what the sender sent must be the same. */
static void receiveCount(struct connection *c) {
  uint64_t count = 0;
  ssize_t got = recv(c->fd, &count, sizeof count, 0);
  if (got < 0 && errno == EAGAIN) return;
  total += got == sizeof count && count == c->bytes ? count : 0;
  over(c, got == sizeof count && count == c->bytes);
}

/* Sent again after a second, a SYN has been answered too late. */
#define STALL_NS 900000000

static int64_t slowest;
static uint64_t stalled;

/* A connection that is to fail has failed, or has not. */
static void fail(struct connection *c, bool good) {
  int64_t took = nowNs() - c->start;
  record(0, took);
  if (took > slowest) slowest = took;
  if (took > STALL_NS) stalled++;
  over(c, good);
  if (!timeIsOver()) start();
}

static void handle(struct connection *c, uint32_t events) {
  if (wanted.mode == 'f') {
    if (events & (EPOLLERR | EPOLLHUP)) fail(c, true);
    else if (events & EPOLLOUT) fail(c, false);
    return;
  }
  if (c->phase <= WISH) {
    if (!(events & (EPOLLERR | EPOLLHUP)) && ask(c, events)) return;
    int error = 0;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
    failedWith(error);
    over(c, false);
    if (wanted.mode == 'r' && wanted.rate == 0 && !timeIsOver()) start();
    return;
  }
  if (c->phase == SENDING) {
    if (!sendBulk(c)) return;
    /* Of so many bytes the destination sees the end itself: not every peer can half-close. */
    if (c->bytesMax == 0) shutdown(c->fd, SHUT_WR);
    c->phase = EXCHANGING;
    watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP | EPOLLET);
  } else if (c->phase == RECEIVING) {
    int result = receiveBulk(c);
    if (result == 0) return;
    total += c->bytes;
    over(c, result > 0 && (wanted.bytes == 0 || c->bytes == wanted.bytes));
  } else if (wanted.mode == 'r') {
    exchange(c);
  } else if (wanted.mode == 'u') {
    receiveCount(c);
  } else {
    ping(c);
  }
}

/* False: nothing happened for so long. */
static bool turn(int timeoutMs) {
  struct epoll_event events[EVENTS];
  int count = epoll_wait(epollFd, events, EVENTS, timeoutMs);
  for (int i = 0; i < count; i++) handle(events[i].data.ptr, events[i].events);
  return count > 0;
}

/* Opens the connections of pp and idle, some at a time, each with its first ping. A relay that is
 * full leaves the rest waiting: they are given up when nothing has moved for a while. */
static void standAll(void) {
  stands = calloc((size_t)wanted.connections, sizeof *stands);
  int opened = 0;
  do {
    while (opened < wanted.connections && opened - standing - (int)failed < OPENING) {
      start();
      opened++;
    }
  } while (standing + (int)failed < wanted.connections && turn(PATIENCE_MS));
}

/* So many new connections a second, however the others fare; those that are not over at the end
 * have time to be, and then they hang. */
static void startAtRate(int64_t begin) {
  for (uint64_t started = 0; nowNs() < finish;) {
    uint64_t due = (uint64_t)((double)(nowNs() - begin) / 1e9 * wanted.rate);
    for (; started < due; started++) start();
    turn(1);
  }
  while (live > 0 && nowNs() < finish + (int64_t)HANGS_MS * 1000000) turn(100);
}

static void waitForLine(void) {
  for (char c = 0; c != '\n';)
    if (read(0, &c, 1) != 1) exit(0);
}

static _Noreturn void client(void) {
  bool pings = wanted.mode == 'p' || wanted.mode == 'i';
  if (pings) standAll();
  printf("{\"ready\":true,\"standing\":%d}\n", standing);
  fflush(stdout);
  waitForLine();
  int64_t begin = nowNs();
  finish = begin + (int64_t)(wanted.seconds * 1e9);
  int count = wanted.mode == 'i' ? 0 : pings ? standing : wanted.connections;
  pinging = true;
  standing = 0;
  if (wanted.rate > 0) {
    startAtRate(begin);
    count = 0;
  }
  for (int i = 0; i < count; i++) {
    if (!pings) {
      start();
    } else {
      stands[i]->start = nowNs();
      sendAll(stands[i], pattern, MESSAGE);
    }
  }
  while (pings ? standing < count - lost : wanted.rate == 0 && live > 0) turn(-1);
  double seconds = (double)(nowNs() - begin) / 1e9;
  printf("{\"done\":%llu,\"failed\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"perSecond\":%.1f,"
         "\"gbps\":%.3f,\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"firstByteP50\":%.1f,"
         "\"slowestMs\":%.1f,\"stalled\":%llu,\"refused\":%llu,\"reset\":%llu,\"hung\":%d}\n",
         (unsigned long long)done, (unsigned long long)failed, (unsigned long long)total, seconds,
         (double)done / seconds, (double)total * 8 / seconds / 1e9, quantileUs(0, 0.5),
         quantileUs(0, 0.99), quantileUs(0, 0.999), quantileUs(1, 0.5), (double)slowest / 1e6,
         (unsigned long long)stalled, (unsigned long long)refused, (unsigned long long)resets,
         pings ? 0 : live);
  fflush(stdout);
  for (;;) waitForLine();
}

/* ---- the command line ----------------------------------------------------------------------- */

static int usage(void) {
  fprintf(stderr,
          "usage: load target PORT [-r MS]   SOCKS5 and destination; -r: handshake replies late\n"
          "       load serve PORT            destination only\n"
          "       load rr|pp|down|up|idle|fail -a ADDRESS -P PORT [-c CONNECTIONS] [-t SECONDS]\n"
          "            [-n OPERATIONS] [-b BYTES] [-d ADDRESSES] [-x SOCKS_PORT] [-m MARK] [-k] [-R RATE]\n"
          "  rr    64 bytes there, 128 back, close; -c at a time, or -R new ones a second\n"
          "  pp    64 bytes there and back, over and over, on -c connections\n"
          "  down, up   -c streams, for -t seconds or -b bytes each; -k compares every byte\n"
          "  idle  opens -c connections and holds them\n"
          "  fail  connects, to hear an error of connect(); -c at a time\n"
          "  -d    spreads the connections over so many addresses from ADDRESS on\n"
          "  -x    asks a SOCKS5 server on 127.0.0.1 to go there\n"
          "  -m    SO_MARK, for the firewall\n");
  return 2;
}

static bool parseAddress(const char *text, int port) {
  struct sockaddr_in *four = (struct sockaddr_in *)&wanted.first;
  struct sockaddr_in6 *six = (struct sockaddr_in6 *)&wanted.first;
  four->sin_port = htons((uint16_t)port); /* sin6_port is at the same place. */
  if (inet_pton(AF_INET, text, &four->sin_addr) == 1) four->sin_family = AF_INET;
  else if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) six->sin6_family = AF_INET6;
  else return false;
  return true;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  epollFd = epoll_create1(EPOLL_CLOEXEC);
  uint32_t random = 1;
  for (size_t i = 0; i < PERIOD; i++) {
    random = random * 1664525 + 1013904223;
    pattern[i] = (uint8_t)(random >> 24);
  }
  memcpy(pattern + PERIOD, pattern, CHUNK);
  if (argc < 3) return usage();

  const char *role = argv[1], *address = "";
  int port = 80;
  optind = 2;
  for (int option; (option = getopt(argc, argv, "a:P:c:t:n:b:d:r:x:m:kR:")) != -1;) {
    switch (option) {
      case 'a': address = optarg; break;
      case 'P': port = atoi(optarg); break;
      case 'c': wanted.connections = atoi(optarg); break;
      case 't': wanted.seconds = atof(optarg); break;
      case 'n': wanted.operations = strtoull(optarg, NULL, 10); break;
      case 'b': wanted.bytes = strtoull(optarg, NULL, 10); break;
      case 'd': wanted.addresses = atoi(optarg); break;
      case 'x': wanted.socksPort = atoi(optarg); break;
      case 'm': wanted.mark = (uint32_t)atoi(optarg); break;
      case 'r': delayNs = (int64_t)(atof(optarg) * 1e6); break;
      case 'k': wanted.checked = true; break;
      case 'R': wanted.rate = atof(optarg); break;
      default: return usage();
    }
  }
  if (strcmp(role, "target") == 0 && optind < argc) serve(atoi(argv[optind]), GREETING);
  if (strcmp(role, "serve") == 0 && optind < argc) serve(atoi(argv[optind]), WISH);
  static const char *roles[] = {"rr", "pp", "down", "up", "idle", "fail"};
  for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
    if (strcmp(role, roles[i]) == 0) wanted.mode = *role;
  if (wanted.mode == 0 || !parseAddress(address, port)) return usage();
  client();
}
