/*
 * The limit: what a transparent SOCKS5 relay costs when it is written in C with nothing around it.
 *
 * One thread, edge-triggered epoll, the same algorithm as transplice: recv/send through one shared
 * buffer while traffic is small, splice(2) through pooled 1 MiB pipes once it is bulk. It moves
 * bytes, half-closes and resets correctly, and has nothing else: no configuration, no deadlines,
 * no log, no admission. It exists so that transplice has something honest to be held against;
 * every system call that can be left out is left out.
 *
 *     limit LISTEN_PORT UPSTREAM_IP UPSTREAM_PORT [-p] [-q QUEUE]
 *
 * Listens on 127.0.0.1 and ::1. With -p greeting and request leave in one write. With -q every SYN
 * that comes into the NFQUEUE is let go at once, unread, by one send for all of a turn: the least
 * that it costs to have been asked for each connection before it is made.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
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
#include <unistd.h>

#define ORIGINAL_DST 80 /* SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST */

enum {
  SMALL = 16 << 10,      /* One recv of small traffic; a full one means bulk. */
  COPY = 256 << 10,      /* One recv of bulk traffic when no pipe is to be had. */
  PIPE = 1 << 20,        /* fs.pipe-max-size, and what a pipe carries in one splice. */
  PIPE_MIN = 64 << 10,   /* Less than this is worse than copying. */
  PIPES_SPARE = 16,
  SPLICES_PER_TURN = 8,  /* Fairness: 8 MiB of one direction before the others have their turn. */
  ACCEPTS_PER_TURN = 32,
  EVENTS = 256,
  REPLY_MAX = 262,       /* The longest SOCKS5 reply: 4 + 1 + 255 + 2. */
  QUEUE_KNOCKS = 2,      /* In epoll, behind the listeners' 0 and 1. */
  SYNS_PER_TURN = 32,
  SYN_MESSAGE = 512,
  SYN_BYTES = 128,       /* Copied of each: what whoever reads it would want of it. */
};

enum phase { CONNECTING, GREETING, REQUEST, RELAY };

struct side {
  int fd;
  uint32_t mask;         /* What epoll was told. EPOLLOUT is added by the first EAGAIN of a send. */
  bool readable, writable;
  bool ending;           /* FIN or an error was announced: a short read is not the last one. */
  bool broken;           /* EPOLLERR. */
};

/* One direction: from side[i] to side[!i]. */
struct flow {
  bool bulk, done;       /* done: FIN was read, and everything before it was sent. */
  int pipe[2];
  size_t piped;          /* Bytes in the pipe. A pipe is filled only when it is empty. */
  uint8_t *kept;         /* What a send would not take, when there is no pipe. */
  size_t keptAt, keptEnd;
};

struct tunnel {
  enum phase phase;
  bool queued;
  struct side side[2];   /* The client, the upstream. */
  struct flow flow[2];
  uint8_t request[22], requestLength;
  uint8_t reply[REPLY_MAX];
  uint16_t replyLength;
  struct tunnel *next;   /* In the queue, or in the list of free ones. */
};

static int epollFd, listeners[2];
static struct sockaddr_storage upstream;
static socklen_t upstreamLength;
static bool pipelined;
static uint8_t buffer[COPY];
static int spare[PIPES_SPARE][2], spares;
static struct tunnel *freeTunnels, *queueHead, **queueTail = &queueHead;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void enqueue(struct tunnel *t) {
  if (t->queued) return;
  t->queued = true;
  t->next = NULL;
  *queueTail = t;
  queueTail = &t->next;
}

/* ---- pipes ---------------------------------------------------------------------------------- */

static bool takePipe(struct flow *f) {
  if (spares > 0) {
    memcpy(f->pipe, spare[--spares], sizeof f->pipe);
    return true;
  }
  if (pipe2(f->pipe, O_NONBLOCK | O_CLOEXEC) < 0) return false;
  /* An unprivileged user has 64 MiB of pipes; past that the kernel refuses, or gives 8 KiB. */
  if (fcntl(f->pipe[1], F_SETPIPE_SZ, PIPE) < 0) fcntl(f->pipe[1], F_SETPIPE_SZ, PIPE / 4);
  if (fcntl(f->pipe[1], F_GETPIPE_SZ) >= PIPE_MIN) return true;
  close(f->pipe[0]);
  close(f->pipe[1]);
  f->pipe[0] = -1;
  return false;
}

/* Gives the pipe back if it is empty; closes it otherwise. */
static void givePipe(struct flow *f) {
  if (f->pipe[0] < 0) return;
  if (f->piped == 0 && spares < PIPES_SPARE) {
    memcpy(spare[spares++], f->pipe, sizeof f->pipe);
  } else {
    close(f->pipe[0]);
    close(f->pipe[1]);
  }
  f->pipe[0] = -1;
}

/* ---- a tunnel's ends ------------------------------------------------------------------------ */

static void release(struct tunnel *t) {
  for (int i = 0; i < 2; i++) {
    close(t->side[i].fd);
    givePipe(&t->flow[i]);
    free(t->flow[i].kept);
  }
  t->next = freeTunnels;
  freeTunnels = t;
}

/* A plain close would turn a reset into a clean end: the other peer would take half for whole. */
static void reset(struct tunnel *t) {
  struct linger now = {1, 0};
  for (int i = 0; i < 2; i++)
    setsockopt(t->side[i].fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  release(t);
}

static void listenTo(struct tunnel *t, int i, int operation, uint32_t mask) {
  struct epoll_event event = {.events = mask, .data.u64 = (uintptr_t)t | (unsigned)i};
  t->side[i].mask = mask;
  epoll_ctl(epollFd, operation, t->side[i].fd, &event);
}

/* After a send that would not take everything: EPOLL_CTL_MOD looks again, so no edge is lost. */
static void blocked(struct tunnel *t, int i) {
  t->side[i].writable = false;
  if (!(t->side[i].mask & EPOLLOUT))
    listenTo(t, i, EPOLL_CTL_MOD, t->side[i].mask | EPOLLOUT);
}

/* ---- relay ---------------------------------------------------------------------------------- */

/* Sends to side `to`; what it will not take is kept in the flow. -1: the tunnel is broken. */
static int deliver(struct tunnel *t, struct flow *f, int to, const uint8_t *bytes, size_t length) {
  ssize_t sent = send(t->side[to].fd, bytes, length, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN) return -1;
    sent = 0;
  }
  if ((size_t)sent == length) return 0;
  blocked(t, to);
  f->keptAt = 0;
  f->keptEnd = length - (size_t)sent;
  f->kept = malloc(f->keptEnd);
  memcpy(f->kept, bytes + sent, f->keptEnd);
  return 0;
}

/* The kept bytes first. 0: sent, 1: not yet, -1: broken. */
static int deliverKept(struct tunnel *t, struct flow *f, int to) {
  if (!t->side[to].writable) return 1;
  ssize_t sent =
      send(t->side[to].fd, f->kept + f->keptAt, f->keptEnd - f->keptAt, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN) return -1;
    sent = 0;
  }
  if ((f->keptAt += (size_t)sent) < f->keptEnd) {
    blocked(t, to);
    return 1;
  }
  free(f->kept);
  f->kept = NULL;
  return 0;
}

static void ended(struct tunnel *t, struct flow *f, int to) {
  f->done = true;
  /* If the other direction has ended too, close() will send the FIN. */
  if (!t->flow[to].done) shutdown(t->side[to].fd, SHUT_WR);
}

/* 0: waits for the kernel. 1: would go on, but it is others' turn. -1: broken. */
static int copySome(struct tunnel *t, int i) {
  struct flow *f = &t->flow[i];
  struct side *from = &t->side[i];
  for (int turn = 0; turn < SPLICES_PER_TURN; turn++) {
    if (!from->readable || !t->side[!i].writable) return 0;
    size_t room = f->bulk ? COPY : SMALL;
    ssize_t got = recv(from->fd, buffer, room, 0);
    if (got < 0) {
      from->readable = false;
      return errno == EAGAIN ? 0 : -1;
    }
    if (got == 0) {
      ended(t, f, !i);
      return 0;
    }
    if ((size_t)got < room && !from->ending) from->readable = false;
    if (deliver(t, f, !i, buffer, (size_t)got) < 0) return -1;
    if (got == SMALL && !f->bulk) {
      f->bulk = true;
      return f->kept ? 0 : 1;
    }
    if (f->kept) return 0;
  }
  return 1;
}

/* As copySome. The flow holds a pipe, until the source says EAGAIN. */
static int spliceSome(struct tunnel *t, int i) {
  struct flow *f = &t->flow[i];
  struct side *from = &t->side[i], *to = &t->side[!i];
  size_t moved = 0;
  for (int turn = 0; turn < SPLICES_PER_TURN; turn++) {
    if (f->piped == 0) {
      if (!from->readable) break;
      ssize_t got =
          splice(from->fd, NULL, f->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (got < 0) {
        if (errno != EAGAIN) return -1;
        from->readable = false;
        break;
      }
      if (got == 0) {
        ended(t, f, !i);
        break;
      }
      f->piped = (size_t)got;
    }
    if (!to->writable) return 0;
    ssize_t put =
        splice(f->pipe[0], NULL, to->fd, NULL, f->piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (put < 0) {
      if (errno != EAGAIN) return -1;
      put = 0;
    }
    f->piped -= (size_t)put;
    moved += (size_t)put;
    if (f->piped > 0) {
      blocked(t, !i);
      return 0;
    }
  }
  if (from->readable && !f->done) return 1;
  givePipe(f);
  if (moved < SMALL) f->bulk = false;
  return 0;
}

static int run(struct tunnel *t, int i) {
  struct flow *f = &t->flow[i];
  if (f->done) return t->side[i].broken ? -1 : 0;
  if (f->kept) {
    int result = deliverKept(t, f, !i);
    if (result != 0) return result < 0 ? -1 : 0;
  }
  if (!f->bulk) {
    int result = copySome(t, i);
    if (result <= 0 || !f->bulk) return result;
  }
  if (f->pipe[0] < 0 && (!t->side[i].readable || !takePipe(f))) return copySome(t, i);
  return spliceSome(t, i);
}

static void relay(struct tunnel *t) {
  int up = run(t, 0);
  int down = up < 0 ? -1 : run(t, 1);
  if (up < 0 || down < 0) return reset(t);
  if (t->flow[0].done && t->flow[1].done) return release(t);
  if (up > 0 || down > 0) enqueue(t);
}

/* ---- handshake ------------------------------------------------------------------------------ */

/* The length of the message that the upstream owes; 0: not whole yet; -1: refused or nonsense. */
static int messageLength(enum phase phase, const uint8_t *in, size_t length) {
  if (phase == GREETING) return length < 2 ? 0 : in[0] == 5 && in[1] == 0 ? 2 : -1;
  if (length < 5) return 0;
  if (in[0] != 5 || in[1] != 0) return -1;
  size_t whole = in[3] == 1 ? 10u : in[3] == 4 ? 22u : in[3] == 3 ? 7u + in[4] : 0u;
  return whole == 0 ? -1 : length < whole ? 0 : (int)whole;
}

static void handshake(struct tunnel *t) {
  struct side *up = &t->side[1];
  if (!up->readable) return;
  memcpy(buffer, t->reply, t->replyLength);
  ssize_t got = recv(up->fd, buffer + t->replyLength, SMALL, 0);
  if (got < 0 && errno == EAGAIN) {
    up->readable = false;
    return;
  }
  if (got <= 0) return reset(t);
  if (!up->ending) up->readable = false;
  size_t at = 0, end = t->replyLength + (size_t)got;
  while (t->phase != RELAY) {
    int length = messageLength(t->phase, buffer + at, end - at);
    if (length < 0) return reset(t);
    if (length == 0) {
      memcpy(t->reply, buffer + at, end - at);
      t->replyLength = (uint16_t)(end - at);
      return;
    }
    at += (size_t)length;
    if (t->phase == GREETING && !pipelined &&
        send(up->fd, t->request, t->requestLength, MSG_NOSIGNAL) != t->requestLength)
      return reset(t);
    t->phase = t->phase == GREETING ? REQUEST : RELAY;
  }
  /* What came behind the reply is the client's. */
  if (end > at && deliver(t, &t->flow[1], 0, buffer + at, end - at) < 0) return reset(t);
  /* Most clients have spoken by now: the first recv need not wait for epoll to say so. */
  t->side[0].readable = true;
  listenTo(t, 0, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP | EPOLLET);
  relay(t);
}

/* 0: sent. 1: the connection is not established yet. -1: it failed. */
static int greet(struct tunnel *t) {
  static const uint8_t greeting[] = {5, 1, 0};
  uint8_t both[sizeof greeting + sizeof t->request];
  memcpy(both, greeting, sizeof greeting);
  memcpy(both + sizeof greeting, t->request, t->requestLength);
  ssize_t length = (ssize_t)sizeof greeting + (pipelined ? t->requestLength : 0);
  ssize_t sent = send(t->side[1].fd, both, (size_t)length, MSG_NOSIGNAL);
  if (sent < 0 && errno == EAGAIN) return 1;
  if (sent != length) return -1;
  t->phase = GREETING;
  return 0;
}

static void turn(struct tunnel *t) {
  t->queued = false;
  if (t->phase == RELAY) return relay(t);
  if (t->phase == CONNECTING) {
    if (!t->side[1].writable) return;
    if (greet(t) < 0) return reset(t);
  }
  handshake(t);
}

/* Writes the SOCKS5 request for where the client wanted to go. False: nobody knows. */
static bool originalDestination(struct tunnel *t, bool v6) {
  struct sockaddr_in6 six;
  struct sockaddr_in *four = (struct sockaddr_in *)&six;
  socklen_t length = v6 ? sizeof six : sizeof *four;
  if (getsockopt(t->side[0].fd, v6 ? SOL_IPV6 : SOL_IP, ORIGINAL_DST, &six, &length) < 0)
    return false;
  uint8_t *out = t->request;
  memcpy(out, (uint8_t[]){5, 1, 0, v6 ? 4 : 1}, 4);
  memcpy(out + 4, v6 ? (void *)&six.sin6_addr : (void *)&four->sin_addr, v6 ? 16 : 4);
  memcpy(out + (v6 ? 20 : 8), v6 ? &six.sin6_port : &four->sin_port, 2);
  t->requestLength = v6 ? 22 : 10;
  return true;
}

/* False: nothing to accept. */
static bool acceptOne(int listener, bool v6) {
  int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (client < 0) return errno == ECONNABORTED || errno == EINTR;
  struct tunnel *t = freeTunnels ? freeTunnels : malloc(sizeof *t);
  if (t == freeTunnels) freeTunnels = t->next;
  memset(t, 0, sizeof *t);
  t->flow[0].pipe[0] = t->flow[1].pipe[0] = -1;
  t->side[0] = (struct side){.fd = client, .writable = true};
  t->side[1] = (struct side){
      .fd = socket(upstream.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
      .writable = true,
  };
  int one = 1;
  if (t->side[1].fd < 0 || !originalDestination(t, v6)) goto failed;
  setsockopt(t->side[1].fd, SOL_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(t->side[1].fd, (struct sockaddr *)&upstream, upstreamLength) < 0 &&
      errno != EINPROGRESS)
    goto failed;
  /* On loopback the connection stands before connect() returns EINPROGRESS. */
  int waits = greet(t);
  if (waits < 0) goto failed;
  t->side[1].writable = waits == 0;
  listenTo(t, 1, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP | EPOLLET | (waits ? EPOLLOUT : 0u));
  return true;
failed:
  reset(t);
  return true;
}

/* ---- the queue of SYNs ---------------------------------------------------------------------- */

struct verdict {
  struct nlmsghdr message;
  struct nfgenmsg queue;
  struct nlattr attribute;
  struct nfqnl_msg_verdict_hdr header;
};

static int queueFd = -1;
static uint16_t queueNumber;

static size_t attribute(uint8_t *at, uint16_t type, const void *bytes, size_t length) {
  struct nlattr head = {.nla_len = (uint16_t)(NLA_HDRLEN + length), .nla_type = type};
  memcpy(at, &head, sizeof head);
  memcpy(at + NLA_HDRLEN, bytes, length);
  return NLA_ALIGN(NLA_HDRLEN + length);
}

static void openQueue(int number) {
  queueNumber = (uint16_t)number;
  queueFd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_NETFILTER);
  struct sockaddr_nl name = {.nl_family = AF_NETLINK};
  int one = 1, room = 4 << 20;
  if (queueFd < 0 || bind(queueFd, (void *)&name, sizeof name) < 0) die("netlink");
  setsockopt(queueFd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
  setsockopt(queueFd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one);
  struct {
    struct nlmsghdr message;
    struct nfgenmsg queue;
    uint8_t rest[64];
  } ask = {{.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
           {.version = NFNETLINK_V0, .res_id = htons(queueNumber)}, {0}};
  struct nfqnl_msg_config_cmd command = {.command = NFQNL_CFG_CMD_BIND};
  struct nfqnl_msg_config_params copy = {.copy_range = htonl(SYN_BYTES), .copy_mode = NFQNL_COPY_PACKET};
  uint32_t most = htonl(65536), open = htonl(NFQA_CFG_F_FAIL_OPEN);
  uint8_t *at = ask.rest;
  at += attribute(at, NFQA_CFG_CMD, &command, sizeof command);
  at += attribute(at, NFQA_CFG_PARAMS, &copy, sizeof copy);
  at += attribute(at, NFQA_CFG_QUEUE_MAXLEN, &most, sizeof most);
  at += attribute(at, NFQA_CFG_MASK, &open, sizeof open);
  at += attribute(at, NFQA_CFG_FLAGS, &open, sizeof open);
  ask.message.nlmsg_len = (uint32_t)(at - (uint8_t *)&ask);
  struct {
    struct nlmsghdr message;
    struct nlmsgerr error;
  } answer;
  if (send(queueFd, &ask, ask.message.nlmsg_len, 0) < 0 ||
      recv(queueFd, &answer, sizeof answer, 0) < 0 || (errno = -answer.error.error) != 0)
    die("NFQUEUE");
}

/* Level-triggered: what is left over is told of again. */
static void letSynsGo(void) {
  static uint8_t messages[SYNS_PER_TURN][SYN_MESSAGE];
  static struct iovec parts[SYNS_PER_TURN];
  static struct mmsghdr heads[SYNS_PER_TURN];
  struct verdict verdicts[SYNS_PER_TURN];
  for (int i = 0; i < SYNS_PER_TURN; i++) {
    parts[i] = (struct iovec){messages[i], SYN_MESSAGE};
    heads[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
  }
  int got = recvmmsg(queueFd, heads, SYNS_PER_TURN, MSG_DONTWAIT, NULL), count = 0;
  for (int i = 0; i < got; i++) {
    struct nlmsghdr *message = (void *)messages[i];
    if (message->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)) continue;
    /* The packet's header is the first attribute. */
    struct nfqnl_msg_packet_hdr *packet =
        (void *)(messages[i] + NLMSG_HDRLEN + sizeof(struct nfgenmsg) + NLA_HDRLEN);
    verdicts[count++] = (struct verdict){
        .message = {.nlmsg_len = sizeof *verdicts, .nlmsg_flags = NLM_F_REQUEST,
                    .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT},
        .queue = {.version = NFNETLINK_V0, .res_id = htons(queueNumber)},
        .attribute = {NLA_HDRLEN + sizeof verdicts->header, NFQA_VERDICT_HDR},
        .header = {htonl(NF_ACCEPT), packet->packet_id},
    };
  }
  if (count > 0) send(queueFd, verdicts, (size_t)count * sizeof *verdicts, MSG_DONTWAIT);
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void mark(const struct epoll_event *event) {
  struct tunnel *t = (struct tunnel *)(uintptr_t)(event->data.u64 & ~(uint64_t)1);
  struct side *side = &t->side[event->data.u64 & 1];
  uint32_t events = event->events;
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) side->ending = side->readable = true;
  if (events & EPOLLIN) side->readable = true;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) side->writable = true;
  if (events & EPOLLERR) side->broken = true;
  enqueue(t);
}

static int openListener(int family, int port) {
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port),
                             .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1, fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(fd, SOL_TCP, TCP_NODELAY, &one, sizeof one); /* Inherited by what it accepts. */
  if (bind(fd, family == AF_INET ? (void *)&four : (void *)&six,
           family == AF_INET ? sizeof four : sizeof six) < 0 || listen(fd, 4096) < 0)
    die("listen");
  return fd;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: limit LISTEN_PORT UPSTREAM_IP UPSTREAM_PORT [-p] [-q QUEUE]\n");
    return 2;
  }
  struct sockaddr_in *four = (struct sockaddr_in *)&upstream;
  struct sockaddr_in6 *six = (struct sockaddr_in6 *)&upstream;
  if (inet_pton(AF_INET, argv[2], &four->sin_addr) == 1) {
    four->sin_family = AF_INET, upstreamLength = sizeof *four;
  } else if (inet_pton(AF_INET6, argv[2], &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6, upstreamLength = sizeof *six;
  } else {
    fprintf(stderr, "limit: %s is not an IP address\n", argv[2]);
    return 2;
  }
  four->sin_port = htons((uint16_t)atoi(argv[3])); /* sin6_port is at the same place. */
  for (int i = 4; i < argc; i++) {
    if (strcmp(argv[i], "-p") == 0) pipelined = true;
    if (strcmp(argv[i], "-q") == 0 && i + 1 < argc) openQueue(atoi(argv[++i]));
  }
  signal(SIGPIPE, SIG_IGN); /* splice(2) has no MSG_NOSIGNAL. */
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  epollFd = epoll_create1(EPOLL_CLOEXEC);
  for (unsigned i = 0; i < 2; i++) {
    listeners[i] = openListener(i ? AF_INET6 : AF_INET, atoi(argv[1]));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
    epoll_ctl(epollFd, EPOLL_CTL_ADD, listeners[i], &event);
  }
  if (queueFd >= 0) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = QUEUE_KNOCKS};
    epoll_ctl(epollFd, EPOLL_CTL_ADD, queueFd, &event);
  }
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epollFd, events, EVENTS, queueHead ? 0 : -1);
    /* First mark, then run: nothing is closed, and no fd reused, while events are unread. */
    bool knocked[3] = {false, false, false};
    for (int i = 0; i < count; i++) {
      if (events[i].data.u64 < 3) knocked[events[i].data.u64] = true;
      else mark(&events[i]);
    }
    struct tunnel *t = queueHead; /* Steal the queue: who is ready again runs in the next turn. */
    queueHead = NULL;
    queueTail = &queueHead;
    while (t) {
      struct tunnel *next = t->next;
      turn(t);
      t = next;
    }
    if (knocked[QUEUE_KNOCKS]) letSynsGo();
    for (int i = 0; i < 2; i++)
      for (int n = 0; knocked[i] && n < ACCEPTS_PER_TURN && acceptOne(listeners[i], i == 1); n++) {
      }
  }
}
