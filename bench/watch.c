/*
 * Those who look at the running program while it works: a scraper of its metrics, so often a second, and
 * open pages. In C, because they stand elsewhere in real life: written in Node they took as much CPU
 * as what they look at, on the cores that are measured.
 *
 *     watch PORT SCRAPES PAGES      SCRAPES a second of /metrics, PAGES connections to /events
 *
 * Prints {"scrapes":N,"events":N}, what it has seen so far: once when each of them has seen something, and
 * for each line on stdin. Ends with stdin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { PAGES_MAX = 16, BYTES = 64 << 10 };

static int port;
static uint64_t scrapes, events;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int ask(int fd, const char *path) {
  if (fd < 0) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
  }
  char request[128];
  int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", path);
  if (write(fd, request, (size_t)length) != length) die("write");
  return fd;
}

/* The answer to a scrape, as far as it has come. True: it is whole. */
static char answer[BYTES + 1];
static size_t have;

static bool scraped(int fd) {
  ssize_t got = read(fd, answer + have, BYTES - have);
  if (got <= 0) die("a scrape ended early");
  have += (size_t)got;
  answer[have] = 0;
  char *head = strstr(answer, "\r\n\r\n"), *length = strstr(answer, "content-length: ");
  if (head == NULL) return false;
  if (strncmp(answer, "HTTP/1.1 200 ", 13) != 0 || length == NULL || length > head) die("not an answer to a scrape");
  size_t whole = (size_t)(head + 4 - answer) + strtoul(length + 16, NULL, 10);
  if (whole > BYTES) die("an answer to a scrape is too long");
  if (have < whole) return false;
  have = 0;
  return true;
}

/* Counts the status events in what comes, wherever it has been cut. */
static void look(int fd, size_t *matched) {
  static const char wanted[] = "event: status\n";
  char bytes[BYTES];
  ssize_t got = read(fd, bytes, sizeof bytes);
  if (got <= 0) die("a page's stream ended");
  for (ssize_t i = 0; i < got; i++) {
    *matched = bytes[i] == wanted[*matched] ? *matched + 1 : bytes[i] == wanted[0];
    if (wanted[*matched] != 0) continue;
    events++;
    *matched = 0;
  }
}

static void tell(void) {
  printf("{\"scrapes\":%lu,\"events\":%lu}\n", scrapes, events);
  fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc != 4 || atoi(argv[2]) < 1 || atoi(argv[3]) > PAGES_MAX) {
    fprintf(stderr, "usage: watch PORT SCRAPES PAGES\n");
    return 2;
  }
  port = atoi(argv[1]);
  int pages = atoi(argv[3]);
  /* stdin, the clock, the scraper, the pages. */
  struct pollfd fds[3 + PAGES_MAX] = {{.fd = STDIN_FILENO, .events = POLLIN}};
  size_t matched[PAGES_MAX] = {0};
  bool seen[PAGES_MAX] = {false}, told = false;
  int clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  struct timespec step = {.tv_nsec = 1000000000L / atoi(argv[2])};
  if (step.tv_nsec == 1000000000L) step = (struct timespec){.tv_sec = 1};
  if (clock < 0 || timerfd_settime(clock, 0, &(struct itimerspec){step, step}, NULL) < 0) die("timerfd");
  fds[1] = (struct pollfd){.fd = clock, .events = POLLIN};
  fds[2] = (struct pollfd){.fd = ask(-1, "/metrics"), .events = POLLIN};
  bool asked = true;
  for (int i = 0; i < pages; i++) fds[3 + i] = (struct pollfd){.fd = ask(-1, "/events"), .events = POLLIN};
  for (;;) {
    if (poll(fds, 3 + (nfds_t)pages, -1) < 0) die("poll");
    if (fds[0].revents) {
      char line[64];
      if (read(STDIN_FILENO, line, sizeof line) <= 0) return 0;
      tell();
    }
    if (fds[1].revents) {
      uint64_t ticks;
      if (read(clock, &ticks, sizeof ticks) < 0) die("timerfd");
      if (!asked) ask(fds[2].fd, "/metrics");
      asked = true;
    }
    if (fds[2].revents && scraped(fds[2].fd)) {
      scrapes++;
      asked = false;
    }
    bool all = scrapes > 0;
    for (int i = 0; i < pages; i++) {
      uint64_t before = events;
      if (fds[3 + i].revents) look(fds[3 + i].fd, &matched[i]);
      seen[i] |= events > before;
      all &= seen[i];
    }
    if (all && !told) tell();
    told |= all;
  }
}
