/*
 * What those who look (watch.c) can be given least for: the bytes that the program answered, out of memory.
 * Beside a relay that nobody looks at, it shows what the watchers themselves take of the machine.
 *
 *     answer PORT PAGE STREAM       PAGE: a file with a whole answer to a scrape; STREAM: one with the
 *                                   head of an event stream and its first event, then sent once a second
 *
 * Ends with its driver.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { CLIENTS_MAX = 32, BYTES = 256 << 10 };

static void die(const char *what) {
  perror(what);
  exit(1);
}

static size_t load(const char *path, char *into) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, into, BYTES - 1);
  if (length <= 0) die(path);
  close(fd);
  return (size_t)length;
}

int main(int argc, char **argv) {
  static char page[BYTES], stream[BYTES];
  if (argc != 4) {
    fprintf(stderr, "usage: answer PORT PAGE STREAM\n");
    return 2;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGPIPE, SIG_IGN);
  size_t pageLength = load(argv[2], page), streamLength = load(argv[3], stream);
  char *head = strstr(stream, "\r\n\r\n");
  if (head == NULL) die("no head");
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, CLIENTS_MAX) < 0) die("listen");
  struct timespec second = {.tv_sec = 1};
  if (timerfd_settime(clock, 0, &(struct itimerspec){second, second}, NULL) < 0) die("timerfd");
  struct pollfd fds[2 + CLIENTS_MAX] = {{.fd = listener, .events = POLLIN}, {.fd = clock, .events = POLLIN}};
  int streams[2 + CLIENTS_MAX] = {0}, count = 2;
  for (;;) {
    if (poll(fds, (nfds_t)count, -1) < 0) die("poll");
    if (fds[1].revents) {
      uint64_t ticks;
      if (read(clock, &ticks, sizeof ticks) < 0) die("timerfd");
      size_t from = (size_t)(head + 4 - stream);
      for (int i = 2; i < count; i++)
        if (streams[i] && write(fds[i].fd, stream + from, streamLength - from) < 0) perror("a stream");
    }
    for (int i = count - 1; i >= 2; i--) {
      char request[1024];
      if (!fds[i].revents) continue;
      ssize_t got = read(fds[i].fd, request, sizeof request - 1);
      if (got <= 0) {
        close(fds[i].fd);
        fds[i] = fds[--count];
        streams[i] = streams[count];
        continue;
      }
      request[got] = 0;
      streams[i] = strstr(request, " /events ") != NULL;
      const char *bytes = streams[i] ? stream : page;
      size_t length = streams[i] ? streamLength : pageLength;
      if (write(fds[i].fd, bytes, length) != (ssize_t)length) die("write");
    }
    if (fds[0].revents && count < 2 + CLIENTS_MAX) {
      int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
      if (fd < 0) die("accept");
      streams[count] = 0;
      fds[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
  }
}
