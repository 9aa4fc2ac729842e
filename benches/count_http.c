/* An HTTP client that only counts the lines of a stream: it finds line ends and looks at the first
 * bytes of each, so that the server, not the client, is what is measured. It is no general client.
 *
 * usage: count_http PORT PATH [-s FILE EVERY]
 *
 * Sends GET PATH to 127.0.0.1:PORT and reads the chunked answer to its end. -s writes the first and
 * every EVERY-th tick to FILE, one a line. Prints one JSON object. Exit 1 when the server closes
 * early or answers with anything but 200. */
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

enum { BUFFER = 1 << 20, LINE = 1 << 16 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static char line[LINE + 1], end[LINE + 1] = "null";
static size_t length;
static uint64_t ticks, lines, bytes, every;
static double first, last;
static FILE *sample;

static void finish_line(const char *text, size_t size, double at) {
  if (size > 7 && !memcmp(text, "{\"seq\":", 7)) {
    if (!ticks++) first = at;
    last = at;
    bytes += size + 1;
    if (sample && (ticks - 1) % every == 0) {
      fwrite(text, 1, size, sample);
      fputc('\n', sample);
    }
  } else {
    lines++;
    fprintf(stderr, "%.*s\n", size > 300 ? 300 : (int)size, text);
    if (size > 13 && !memcmp(text, "{\"type\":\"end\"", 13)) snprintf(end, sizeof end, "%.*s", (int)size, text);
  }
}

/* A line that lies whole within what was read is not copied. */
static void take(const char *data, size_t size, double at) {
  while (size) {
    const char *stop = memchr(data, '\n', size);
    size_t part = stop ? (size_t)(stop - data) : size;
    if (stop && !length) {
      finish_line(data, part, at);
    } else {
      if (length + part > LINE) die("a line that is too long");
      memcpy(line + length, data, part);
      length += part;
      if (stop) {
        finish_line(line, length, at);
        length = 0;
      }
    }
    if (!stop) return;
    data += part + 1;
    size -= part + 1;
  }
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: count_http PORT PATH [-s FILE EVERY]\n");
    return 2;
  }
  if (argc == 6 && !strcmp(argv[3], "-s")) {
    if (!(sample = fopen(argv[4], "w"))) die(argv[4]);
    every = strtoull(argv[5], NULL, 10);
  }
  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  char hello[1024];
  int size = snprintf(hello, sizeof hello, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", argv[2], argv[1]);
  if (write(fd, hello, size) != size) die("write");

  char *buffer = malloc(BUFFER + 1), *body = NULL;
  size_t have = 0, used;
  while (!body) {
    ssize_t got = read(fd, buffer + have, BUFFER - have);
    if (got <= 0) die("no answer");
    have += got;
    buffer[have] = 0;
    body = strstr(buffer, "\r\n\r\n");
  }
  if (strncmp(buffer, "HTTP/1.1 200", 12)) {
    fprintf(stderr, "%s\n", buffer);
    return 1;
  }
  used = body + 4 - buffer;
  uint64_t left = 0;
  double read_at = now();
  for (int skip = 0, running = 1; running;) {
    while (used < have) {
      if (left) {
        size_t part = have - used < left ? have - used : left;
        take(buffer + used, part, read_at);
        used += part;
        left -= part;
        if (!left) skip = 1;
        continue;
      }
      char *stop = memchr(buffer + used, '\n', have - used);
      if (!stop) break;
      if (!skip) {
        left = strtoull(buffer + used, NULL, 16);
        if (!left) running = 0;
      }
      skip = 0;
      used = stop + 1 - buffer;
      if (!running) break;
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
  printf("{\"ticks\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"end\":%s}\n", (unsigned long long)ticks,
         (unsigned long long)bytes, last - first, end);
  return 0;
}
