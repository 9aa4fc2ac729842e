/* A WebSocket client that only counts: it reads frame headers and the first bytes of each message,
 * so that the server, not the client, is what is measured. It is no general client.
 *
 * usage: count PORT REQUEST [-n FRAMES] [-s FILE EVERY]
 *
 * Connects to 127.0.0.1:PORT, sends REQUEST (one JSON text), and reads until the server's `end` or
 * until FRAMES ticks have come. -s writes the first and every EVERY-th tick to FILE, one a line.
 * Prints one JSON object; messages that are no ticks go to stderr. Exit 1 when the server closes
 * early or breaks the protocol. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void send_all(int fd, const void *data, size_t size) {
  const char *at = data;
  while (size) {
    ssize_t sent = write(fd, at, size);
    if (sent <= 0) die("write");
    at += sent;
    size -= sent;
  }
}

/* Clients must mask; a key of zero leaves the payload as it is. */
static void send_frame(int fd, int opcode, const void *payload, size_t size) {
  unsigned char head[14] = {0x80 | opcode};
  size_t length = 2;
  if (size < 126) {
    head[1] = 0x80 | size;
  } else {
    head[1] = 0x80 | 126;
    head[2] = size >> 8;
    head[3] = size & 255;
    length = 4;
  }
  memset(head + length, 0, 4);
  send_all(fd, head, length + 4);
  send_all(fd, payload, size);
}

static int starts(const unsigned char *payload, uint64_t size, const char *with) {
  size_t length = strlen(with);
  return size >= length && memcmp(payload, with, length) == 0;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: count PORT REQUEST [-n FRAMES] [-s FILE EVERY]\n");
    return 2;
  }
  uint64_t limit = UINT64_MAX, every = 0;
  FILE *sample = NULL;
  for (int i = 3; i < argc; i++) {
    if (!strcmp(argv[i], "-n") && i + 1 < argc) limit = strtoull(argv[++i], NULL, 10);
    else if (!strcmp(argv[i], "-s") && i + 2 < argc) {
      sample = fopen(argv[i + 1], "w");
      if (!sample) die(argv[i + 1]);
      every = strtoull(argv[i + 2], NULL, 10);
      i += 2;
    }
  }
  const char *request = argv[2];

  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  char hello[512];
  int length = snprintf(hello, sizeof hello,
                        "GET / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        "Sec-WebSocket-Version: 13\r\n\r\n",
                        argv[1]);
  send_all(fd, hello, length);

  unsigned char *buffer = malloc(BUFFER + 1);
  size_t have = 0, used = 0;
  unsigned char *body = NULL;
  while (!body) {
    ssize_t got = read(fd, buffer + have, BUFFER - have);
    if (got <= 0) die("handshake");
    have += got;
    buffer[have] = 0;
    body = (unsigned char *)strstr((char *)buffer, "\r\n\r\n");
  }
  if (!starts(buffer, have, "HTTP/1.1 101")) {
    fprintf(stderr, "%s\n", buffer);
    return 1;
  }
  used = body + 4 - buffer;

  double asked = now(), read_at = asked, first = 0, last = 0;
  send_frame(fd, 1, request, strlen(request));
  uint64_t ticks = 0, messages = 0, bytes = 0;
  char end[4096] = "null";
  for (int running = 1; running;) {
    while (running && have - used >= 2) {
      const unsigned char *frame = buffer + used;
      uint64_t size = frame[1] & 127;
      size_t head = 2;
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
      if (frame[1] & 128 || size > BUFFER - 16) {
        fprintf(stderr, "a masked or oversized frame\n");
        return 1;
      }
      if (have - used < head + size) break;
      const unsigned char *payload = frame + head;
      used += head + size;
      if (frame[0] == 0x81 && starts(payload, size, "{\"type\":\"tick\"")) {
        if (!ticks++) first = read_at;
        last = read_at;
        bytes += size;
        if (sample && (ticks - 1) % every == 0) {
          fwrite(payload, 1, size, sample);
          fputc('\n', sample);
        }
        if (ticks >= limit) running = 0;
      } else if (frame[0] == 0x81) {
        messages++;
        fprintf(stderr, "%.*s\n", size > 600 ? 600 : (int)size, payload);
        if (starts(payload, size, "{\"type\":\"end\"")) {
          snprintf(end, sizeof end, "%.*s", (int)size, payload);
          running = 0;
        } else if (starts(payload, size, "{\"type\":\"error\"")) {
          return 1;
        }
      } else if (frame[0] == 0x89) {
        send_frame(fd, 10, payload, size);
      } else {
        fprintf(stderr, "unexpected frame 0x%02x after %llu ticks\n", frame[0],
                (unsigned long long)ticks);
        return 1;
      }
    }
    if (!running) break;
    memmove(buffer, buffer + used, have - used);
    have -= used;
    used = 0;
    ssize_t got = read(fd, buffer + have, BUFFER - have);
    if (got <= 0) {
      fprintf(stderr, "closed by the server after %llu ticks\n", (unsigned long long)ticks);
      return 1;
    }
    have += got;
    read_at = now();
  }
  if (sample) fclose(sample);
  printf("{\"ticks\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"first_tick_ms\":%.3f,\"end\":%s}\n",
         (unsigned long long)ticks, (unsigned long long)bytes, last - first,
         ticks ? (first - asked) * 1e3 : 0.0, end);
  unsigned char bye[2] = {1000 >> 8, 1000 & 255};
  send_frame(fd, 8, bye, 2);
  return 0;
}
