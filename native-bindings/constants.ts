/**
 * The kernel's numbers, under the kernel's names: <sys/socket.h>, <netinet/tcp.h>, <sys/epoll.h>,
 * <fcntl.h>, <linux/netfilter_ipv4.h>. Values are those of the asm-generic headers, which x86,
 * arm, arm64, riscv and loongarch share. No behaviour lives here.
 */

// errno(3), as positive numbers; a failed call answers the negative.
export const EPERM = 1;
export const ENOENT = 2;
export const EINTR = 4;
export const EBADF = 9;
export const EAGAIN = 11;
export const ENOMEM = 12;
export const EACCES = 13;
export const EBUSY = 16;
export const EEXIST = 17;
export const EINVAL = 22;
export const ENFILE = 23;
export const EMFILE = 24;
export const ENOSPC = 28;
export const EPIPE = 32;
export const EPROTO = 71;
export const ENOTSOCK = 88;
export const ENOPROTOOPT = 92;
export const EPROTONOSUPPORT = 93;
export const EOPNOTSUPP = 95;
export const EAFNOSUPPORT = 97;
export const EADDRINUSE = 98;
export const EADDRNOTAVAIL = 99;
export const ENETDOWN = 100;
export const ENETUNREACH = 101;
export const ECONNABORTED = 103;
export const ECONNRESET = 104;
export const ENOBUFS = 105;
export const ENOTCONN = 107;
export const ETIMEDOUT = 110;
export const ECONNREFUSED = 111;
export const EHOSTUNREACH = 113;
export const EINPROGRESS = 115;

// socket(2), ip(7), ipv6(7)
export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_TYPE = 3;
export const SO_ERROR = 4;
export const SO_KEEPALIVE = 9;
export const SO_OOBINLINE = 10;
export const SO_LINGER = 13;
export const SO_REUSEPORT = 15;
export const SO_ACCEPTCONN = 30;
export const SO_BINDTODEVICE = 25;
export const SO_MARK = 36;
export const SO_ATTACH_REUSEPORT_CBPF = 51;
export const IPPROTO_RAW = 255;
export const SOL_IP = 0;
export const IP_FREEBIND = 15;
export const IP_TRANSPARENT = 19;
export const IP_BIND_ADDRESS_NO_PORT = 24;
export const SO_ORIGINAL_DST = 80;
export const SOL_IPV6 = 41;
export const IPV6_V6ONLY = 26;
export const IPV6_HDRINCL = 36;
export const IPV6_TRANSPARENT = 75;
export const IP6T_SO_ORIGINAL_DST = 80;

// netlink(7), rtnetlink(7), sock_diag(7)
export const AF_NETLINK = 16;
export const SOCK_RAW = 3;
export const NETLINK_ROUTE = 0;
export const NETLINK_SOCK_DIAG = 4;
export const SOL_NETLINK = 270;
export const NETLINK_GET_STRICT_CHK = 12;
export const NLM_F_REQUEST = 0x1;
export const NLM_F_DUMP = 0x300;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const SOCK_DIAG_BY_FAMILY = 20;
export const RTM_NEWROUTE = 24;
export const RTM_GETROUTE = 26;
export const RTA_DST = 1;
export const RTN_LOCAL = 2;
export const RT_TABLE_LOCAL = 255;
export const RTMGRP_LINK = 0x1;
export const RTMGRP_IPV4_IFADDR = 0x10;
export const RTMGRP_IPV6_IFADDR = 0x100;

// tcp(7)
export const SOL_TCP = 6;
export const IPPROTO_TCP = 6;
export const TCP_FIN_WAIT1 = 4;
export const TCP_FIN_WAIT2 = 5;
export const TCP_NODELAY = 1;
export const TCP_INFO = 11;
export const TCP_QUICKACK = 12;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;
export const TCP_USER_TIMEOUT = 18;
/** struct tcp_info (<linux/tcp.h>): segments in flight, and bytes that were never sent. */
export const TCPI_UNACKED = 24;
export const TCPI_NOTSENT_BYTES = 144;
export const TCP_SAVE_SYN = 27;
export const TCP_SAVED_SYN = 28;
/** ioctl: bytes sent and not yet acknowledged, plus those not yet sent. */
export const SIOCOUTQ = 0x5411;

// recv(2), send(2), shutdown(2)
export const MSG_OOB = 0x1;
export const MSG_PEEK = 0x2;
export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;

// epoll(7). struct epoll_event is packed on x86-64 only (EPOLL_PACKED in <sys/epoll.h>); elsewhere
// the 64-bit data is aligned to 8. The wrong one gives wild data, so it is decided once, here.
export const EPOLL_EVENT_SIZE = process.arch === "x64" ? 12 : 16;
export const EPOLL_EVENT_DATA = process.arch === "x64" ? 4 : 8;
export const EPOLL_CTL_ADD = 1;
export const EPOLL_CTL_DEL = 2;
export const EPOLL_CTL_MOD = 3;
export const EPOLLIN = 0x1;
export const EPOLLPRI = 0x2;
export const EPOLLOUT = 0x4;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;
export const EPOLLRDHUP = 0x2000;
export const EPOLLET = 0x80000000;
export const EPOLL_CLOEXEC = 0o2000000;

// prctl(2), capabilities(7)
export const PR_SET_KEEPCAPS = 8;
export const PR_SET_NAME = 15;
export const PR_CAPBSET_READ = 23;
export const PR_CAPBSET_DROP = 24;
export const PR_SET_NO_NEW_PRIVS = 38;
export const PR_CAP_AMBIENT = 47;
export const PR_CAP_AMBIENT_RAISE = 2;
export const CAP_NET_BIND_SERVICE = 10;
export const CAP_NET_ADMIN = 12;
export const CAP_NET_RAW = 13;
export const CAP_SYS_ADMIN = 21;
export const CAP_SYS_RESOURCE = 24;

// pipe(2), fcntl(2), splice(2), eventfd(2)
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
export const F_SETFD = 2;
export const F_SETFL = 4;
export const FD_CLOEXEC = 1;
export const F_DUPFD_CLOEXEC = 1030;
export const F_SETPIPE_SZ = 1031;
export const F_GETPIPE_SZ = 1032;
export const SPLICE_F_MOVE = 1;
export const SPLICE_F_NONBLOCK = 2;
export const EFD_NONBLOCK = 0o4000;
export const EFD_CLOEXEC = 0o2000000;

// sched(7)
export const SCHED_OTHER = 0;
export const SCHED_BATCH = 3;

/**
 * For clock_gettime(2): the CPU time of a thread of this process, as pthread_getcpuclockid(3) names it
 * (MAKE_THREAD_CPUCLOCK and CPUCLOCK_SCHED in the kernel's <linux/posix-timers.h>).
 */
export const threadCpuClock = (tid: number): number => (~tid << 3) | 6;

// adjtimex(2)
export const TIME_ERROR = 5;
/** sizeof(struct timex), far above it. */
export const TIMEX_SIZE = 512;

// getrlimit(2)
export const RLIMIT_NOFILE = 7;

/** sizeof(struct sockaddr_in6): room for the address of either family. */
export const SOCKADDR_SIZE = 28;
