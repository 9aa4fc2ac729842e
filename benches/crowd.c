#define _GNU_SOURCE
/* Many WebSocket clients in one thread that only count: one creates a session, all follow it.
 *
 * usage: crowd PORT CLIENTS CREATE SUBSCRIBE START [-t FILE]
 *
 * The first client sends CREATE, the others SUBSCRIBE; when all are answered it prints "ready" and
 * waits for a line on stdin; then the first client sends START (empty: nothing), and everybody reads
 * until `end`. -t writes two int64 for each tick of the first client: the time of day at which it
 * was read (ns), and its `timestamp` (ms); and before them the time of the answer to START, and 0.
 * Prints one JSON object. Exit 1 when something is wrong. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, KEPT = 1 << 16 };

struct client {
  int fd, answered, ended;
  uint64_t ticks, have, skip;
  unsigned char kept[KEPT]; /* the beginning of a message whose rest is to come */
};

static unsigned char *buffer;
static char end_message[4096] = "null";
static FILE *times;
static struct client *first;
static uint64_t ticks, bytes, answered, ended;
static int64_t read_at;

static int64_t now(clockid_t which) {
  struct timespec t;
  clock_gettime(which, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void send_frame(int fd, int opcode, const void *payload, size_t size) {
  unsigned char frame[4096] = {0x80 | opcode};
  size_t length = 2;
  if (size > sizeof frame - 16) exit(1);
  if (size < 126) {
    frame[1] = 0x80 | size;
  } else {
    frame[1] = 0x80 | 126;
    frame[2] = size >> 8;
    frame[3] = size & 255;
    length = 4;
  }
  memset(frame + length, 0, 4); /* clients must mask; a key of zero leaves it as it is */
  memcpy(frame + length + 4, payload, size);
  if (write(fd, frame, length + 4 + size) != (ssize_t)(length + 4 + size)) die("write");
}

static int starts(const unsigned char *payload, uint64_t size, const char *with) {
  size_t length = strlen(with);
  return size >= length && memcmp(payload, with, length) == 0;
}

static void take(struct client *c, int opcode, unsigned char *payload, uint64_t size) {
  if (opcode == 0x89) {
    send_frame(c->fd, 10, payload, size);
  } else if (opcode != 0x81) {
    fprintf(stderr, "unexpected frame 0x%02x\n", opcode);
    exit(1);
  } else if (starts(payload, size, "{\"type\":\"tick\"")) {
    ticks++;
    c->ticks++;
    bytes += size;
    if (times && c == first) {
      unsigned char *at = memmem(payload, size, "\"timestamp\":", 12);
      int64_t pair[2] = {read_at, at ? strtoll((char *)at + 12, NULL, 10) : 0};
      fwrite(pair, sizeof pair, 1, times);
    }
  } else if (starts(payload, size, "{\"type\":\"ticks\"")) {
    bytes += size;
  } else if (starts(payload, size, "{\"type\":\"session_created\"") ||
             starts(payload, size, "{\"type\":\"subscribed\"")) {
    answered += !c->answered;
    c->answered = 1;
  } else if (times && c == first && starts(payload, size, "{\"type\":\"resumed\"")) {
    int64_t pair[2] = {read_at, 0};
    fwrite(pair, sizeof pair, 1, times);
  } else if (starts(payload, size, "{\"type\":\"end\"")) {
    ended += !c->ended;
    c->ended = 1;
    if (c == first) snprintf(end_message, sizeof end_message, "%.*s", (int)size, payload);
  } else if (starts(payload, size, "{\"type\":\"error\"")) {
    fprintf(stderr, "%.*s\n", (int)size, payload);
    exit(1);
  }
}

static void receive(struct client *c) {
  memcpy(buffer, c->kept, c->have);
  ssize_t got = read(c->fd, buffer + c->have, BUFFER - c->have);
  if (got <= 0) {
    fprintf(stderr, "closed by the server\n");
    exit(1);
  }
  read_at = now(CLOCK_REALTIME);
  uint64_t have = c->have + got, used = c->skip < have ? c->skip : have;
  c->skip -= used;
  while (have - used >= 2) {
    unsigned char *frame = buffer + used;
    uint64_t size = frame[1] & 127, head = 2;
    if (size == 126) {
      if (have - used < 4) break;
      size = (uint64_t)frame[2] << 8 | frame[3];
      head = 4;
    } else if (size == 127) {
      if (have - used < 10) break;
      size = 0;
      for (int i = 2; i < 10; i++) size = size << 8 | frame[i];
      head = 10;
    }
    if (have - used < head + size) {
      if (have - used >= 64 && starts(frame + head, 16, "{\"type\":\"ticks\"")) {
        bytes += size; /* its rest need not be looked at */
        c->skip = head + size - (have - used);
        used = have;
      }
      break;
    }
    take(c, frame[0], frame + head, size);
    used += head + size;
  }
  c->have = have - used;
  if (c->have > KEPT) {
    fprintf(stderr, "a message of more than %d bytes\n", KEPT);
    exit(1);
  }
  memcpy(c->kept, buffer + used, c->have);
}

static int join(int port, struct client *c) {
  int yes = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  char hello[512];
  int length = snprintf(hello, sizeof hello,
                        "GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        "Sec-WebSocket-Version: 13\r\n\r\n",
                        port);
  if (write(c->fd, hello, length) != length) die("write");
  char last[4] = {0};
  while (memcmp(last, "\r\n\r\n", 4)) { /* what follows the answer is left for `receive` */
    memmove(last, last + 1, 3);
    if (read(c->fd, last + 3, 1) != 1) die("handshake");
  }
  return c->fd;
}

int main(int argc, char **argv) {
  if (argc < 6) {
    fprintf(stderr, "usage: crowd PORT CLIENTS CREATE SUBSCRIBE START [-t FILE]\n");
    return 2;
  }
  int count = atoi(argv[2]), poll = epoll_create1(0);
  if (argc > 7 && !strcmp(argv[6], "-t") && !(times = fopen(argv[7], "w"))) die("open");
  buffer = malloc(BUFFER);
  struct client **clients = malloc(count * sizeof *clients);
  for (int i = 0; i < count; i++) {
    clients[i] = calloc(1, sizeof **clients);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = clients[i]};
    join(atoi(argv[1]), clients[i]);
    epoll_ctl(poll, EPOLL_CTL_ADD, clients[i]->fd, &event);
  }
  first = clients[0];
  int64_t began = 0;
  struct epoll_event events[64];
  send_frame(first->fd, 1, argv[3], strlen(argv[3]));
  for (uint64_t wanted = 1; ended < (uint64_t)count;) {
    if (answered == wanted && wanted < (uint64_t)count) {
      wanted = count;
      for (int i = 1; i < count; i++) send_frame(clients[i]->fd, 1, argv[4], strlen(argv[4]));
    }
    if (!began && answered == (uint64_t)count) {
      puts("ready");
      fflush(stdout);
      getchar();
      began = now(CLOCK_MONOTONIC);
      if (*argv[5]) send_frame(first->fd, 1, argv[5], strlen(argv[5]));
    }
    int due = epoll_wait(poll, events, 64, -1);
    for (int i = 0; i < due; i++) receive(events[i].data.ptr);
  }
  double seconds = (now(CLOCK_MONOTONIC) - began) / 1e9;
  if (times) fclose(times);
  printf("{\"clients\":%d,\"ticks\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"end\":%s}\n", count,
         (unsigned long long)ticks, (unsigned long long)bytes, seconds, end_message);
  return 0;
}
