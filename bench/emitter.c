/* emitter: the least server there can be. It sends the same stamped event to every window, one after the other.
 *
 * Responsible for showing what the load client itself costs and adds. Not responsible for being a server.
 *
 *   emitter PORT WINDOWS EVENTS EVENTS_PER_SECOND PAYLOAD_BYTES
 *
 * It begins when all windows are open, and ends each with the chunked terminator. On stdout: {"cpu_s", "sent"}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int listen_on(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) {
    perror("emitter");
    exit(1);
  }
  return fd;
}

static int accept_window(int listener) {
  char request[16384];
  int one = 1, fd = accept(listener, NULL, NULL);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (read(fd, request, sizeof request) <= 0 || write(fd, HEAD, sizeof HEAD - 1) < 0) perror("emitter");
  return fd;
}

static int frame(char *out, size_t size, int seq, int pad) {
  char body[8192];
  int n = snprintf(body, sizeof body, "id: %d\nevent: custom.tick\ndata: {\"seq\":%d,\"at\":\"@%lld@\",\"pad\":\"%*s\"}\n\n",
                   seq, seq, (long long)now(), pad, "");
  return snprintf(out, size, "%x\r\n%s\r\n", n, body);
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int windows = atoi(argv[2]), events = atoi(argv[3]), pad = atoi(argv[5]);
  double gap_ns = 1e9 / atof(argv[4]);
  int listener = listen_on(atoi(argv[1])), *fds = calloc((size_t)windows, sizeof *fds);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  fprintf(stderr, "listening {\"port\":%s}\n", argv[1]);
  for (int i = 0; i < windows; i++) fds[i] = accept_window(listener);
  usleep(300000); /* the load client learns that all are open */
  int64_t begun = now(), sent = 0;
  char out[9000];
  for (int k = 0; k < events; k++) {
    int64_t wait = begun + (int64_t)(k * gap_ns) - now();
    if (wait > 0) usleep((useconds_t)(wait / 1000));
    int n = frame(out, sizeof out, k + 2, pad);
    for (int i = 0; i < windows; i++) sent += send(fds[i], out, (size_t)n, MSG_NOSIGNAL) == n;
  }
  for (int i = 0; i < windows; i++) {
    if (write(fds[i], "0\r\n\r\n", 5) < 0) continue; /* it had everything and has left */
    close(fds[i]);
  }
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  printf("{\"cpu_s\":%.3f,\"sent\":%lld}\n",
         (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6,
         (long long)sent);
  return 0;
}
