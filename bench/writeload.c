/* writeload: writers that append to runs at an even pace, repeat themselves, are cut off, and measure the answers.
 *
 * Responsible for the writers' side of a benchmark: one connection each, requests that are due at fixed moments,
 * however late the answers are. Not responsible for the runs, nor for judging the figures.
 *
 *   writeload --port P --targets FILE --rate R --appends N [options]
 *
 *   --targets FILE       one writer a line: request path, token, epoch, with blanks between
 *   --rate R             appends a second over all writers in turn
 *   --appends N          of each writer
 *   --event-bytes B      size of an appended event, about (100)
 *   --warm-up S          appends due in the first S seconds are not measured (1)
 *   --get                GET the paths instead, at the same pace, repeated and cut alike: what HTTP itself costs
 *
 * Each writer sends its appends one after the other, the next one no sooner than the one before is answered. Every
 * 10th is sent once more after its answer. After every 50th the connection is cut: half of these once the answer was
 * read; a quarter when it has come, unread; a quarter at once. What has had no answer is sent again, on a new
 * connection.
 *
 * Latency is the moment at which an answer has come in whole minus the moment at which its append was due; only first
 * sends that were answered count. `late` is how much later than due the client sent what nothing else held up. On
 * stderr: `measuring {...}` when the warm-up is over. On stdout, at the end: one JSON object. Any answer but the right
 * one ends it with code 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "measure.h"

#define HEAD_BYTES 1024
#define REQUEST_BYTES 8192
#define ANSWER_BYTES 16384
#define MAX_EVENT_BYTES 4096
#define BARE_EVENT_BYTES 75 /* without its filling */
#define START_MS 50

/* First: as it is due. Repeat: it was answered. Again: nobody knows what became of it. */
enum Attempt { FIRST, REPEAT, AGAIN };
enum Cut { NONE, AT_ONCE, UNREAD, READ };

typedef struct {
  int fd, index;
  bool connected, busy;
  char path[256], head[HEAD_BYTES], request[REQUEST_BYTES], answer[ANSWER_BYTES];
  size_t size, got; /* of the request, of what has come of the answer */
  int number;       /* of the append under way, or of the next one; from 1 */
  enum Attempt attempt;
  enum Cut cut;
  int64_t due, free_since;
} Writer;

static struct {
  const char *targets;
  int port, appends, event_bytes;
  double rate, warm_up;
  bool get;
} opt = {.event_bytes = 100, .warm_up = 1};

static struct {
  uint64_t appends, repeats, cut_at_once, cut_unread, cut_read, again_new, again_known, lost_connections, held_up;
} count;

static Writer *writers;
static int writer_count, epoll, timer, done;
static int64_t begun;
static Histogram latency, late;
static struct rusage usage_at_measuring;
static int64_t measuring_from, measuring_since;

/* What is asked. */

static int64_t due_of(const Writer *w) {
  double before = (double)(w->number - 1) * writer_count + w->index;
  return begun + (int64_t)(before / opt.rate * SECOND);
}

/* Counted on by the writer's index, so that they do not all do the same at once. */
static enum Cut cut_of(const Writer *w) {
  static const enum Cut in_turn[] = {AT_ONCE, READ, UNREAD, READ};
  int n = w->number + w->index;
  return n % 50 ? NONE : in_turn[(n / 50 + w->index) % 4];
}

static bool is_repeated(const Writer *w) { return (w->number + w->index) % 10 == 5; }

static void make_request(Writer *w) {
  if (opt.get) {
    w->size = (size_t)snprintf(w->request, REQUEST_BYTES, "%s\r\n", w->head);
    return;
  }
  char event[MAX_EVENT_BYTES + BARE_EVENT_BYTES + 32];
  int pad = opt.event_bytes > BARE_EVENT_BYTES ? opt.event_bytes - BARE_EVENT_BYTES : 0;
  int n = snprintf(event, sizeof event,
                   "{\"type\":\"custom.tick\",\"payload\":{\"n\":%d,\"at\":\"@%" PRId64 "@\",\"pad\":\"%*s\"}}\n",
                   w->number, now(), pad, "");
  w->size = (size_t)snprintf(w->request, REQUEST_BYTES, "%sProducer-Seq: %d\r\nContent-Length: %d\r\n\r\n%s", w->head,
                             w->number, n, event);
}

/* Connections. */

static void watch(Writer *w, uint32_t events, int op) {
  struct epoll_event e = {.events = events, .data.ptr = w};
  if (epoll_ctl(epoll, op, w->fd, &e)) die("epoll_ctl");
}

static void connect_writer(Writer *w) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
  int one = 1;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  w->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (w->fd < 0) die("socket");
  setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  w->connected = false;
  w->got = 0;
  if (connect(w->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
  watch(w, EPOLLOUT, EPOLL_CTL_ADD);
}

static void reconnect(Writer *w) {
  close(w->fd);
  connect_writer(w);
}

/* On the connection that is there, or as soon as there is one. */
static void post(Writer *w) {
  w->got = 0;
  if (!w->connected) return;
  if (send(w->fd, w->request, w->size, MSG_NOSIGNAL) != (ssize_t)w->size) {
    count.lost_connections++;
    w->attempt = AGAIN;
    reconnect(w);
  } else if (w->attempt == FIRST && w->cut == AT_ONCE) {
    count.cut_at_once++;
    w->attempt = AGAIN;
    reconnect(w);
  }
}

static void connected(Writer *w) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  if (error) die("connect");
  w->connected = true;
  watch(w, EPOLLIN, EPOLL_CTL_MOD);
  if (w->busy) post(w);
}

/* An append's course. */

static void begin(Writer *w, int64_t t) {
  w->busy = true;
  w->attempt = FIRST;
  w->cut = cut_of(w);
  make_request(w);
  if (w->free_since > w->due) count.held_up++;
  else if (w->due >= measuring_from) add(&late, t - w->due);
  post(w);
}

static void next_append(Writer *w, int64_t t) {
  w->busy = false;
  w->free_since = t;
  if (w->cut == READ) {
    count.cut_read++;
    reconnect(w);
  }
  count.appends++;
  done += w->number++ == opt.appends;
  w->due = due_of(w);
}

static void wrong(const Writer *w, int status) {
  static const char *const names[] = {"first", "repeated", "sent again"};
  fprintf(stderr, "writeload: %s, number %d, %s: %d\n%.*s\n", w->path, w->number, names[w->attempt], status,
          (int)w->got, w->answer);
  exit(1);
}

static bool is_right(const Writer *w, int status, const char *body) {
  if (opt.get) return status == 200;
  bool known = w->attempt == REPEAT || (w->attempt == AGAIN && w->cut == UNREAD);
  if (status == 204) return w->attempt != FIRST;
  const char *said = strstr(body, "\"producer_seq\":");
  return status == 200 && !known && said && atoi(said + 15) == w->number;
}

static void answered(Writer *w, int status, const char *body, int64_t t) {
  if (!is_right(w, status, body)) wrong(w, status);
  w->got = 0;
  if (w->attempt == REPEAT) count.repeats++;
  else if (w->attempt == AGAIN) (*(status == 204 ? &count.again_known : &count.again_new))++;
  else if (w->due >= measuring_from) add(&latency, t - w->due);
  if (w->attempt == FIRST && is_repeated(w)) {
    w->attempt = REPEAT;
    post(w);
  } else {
    next_append(w, t);
  }
}

/* Answers. */

static void lost(Writer *w) {
  count.lost_connections++;
  w->attempt = AGAIN; /* counts for nothing where nothing is under way */
  reconnect(w);
}

static void on_readable(Writer *w) {
  if (w->busy && w->attempt == FIRST && w->cut == UNREAD) {
    count.cut_unread++;
    w->attempt = AGAIN;
    reconnect(w);
    return;
  }
  ssize_t n = read(w->fd, w->answer + w->got, ANSWER_BYTES - 1 - w->got);
  int64_t t = now();
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0 || !w->busy) {
    lost(w);
    return;
  }
  w->got += (size_t)n;
  w->answer[w->got] = 0;
  char *body = strstr(w->answer, "\r\n\r\n"), *length = strcasestr(w->answer, "\r\nContent-Length:");
  if (!body) return;
  body += 4;
  size_t size = length && length < body ? (size_t)atoi(length + 17) : 0;
  if (w->got < (size_t)(body - w->answer) + size) return;
  answered(w, w->got > 12 ? atoi(w->answer + 9) : 0, body, t);
}

/* The loop. */

static void arm(int64_t due) {
  struct itimerspec at = {.it_value = {.tv_sec = due / SECOND, .tv_nsec = due % SECOND}};
  if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL)) die("timerfd_settime");
}

static void send_due(int64_t t) {
  int64_t next = INT64_MAX;
  for (Writer *w = writers; w < writers + writer_count; w++) {
    if (w->busy || w->number > opt.appends) continue;
    if (w->due <= t) begin(w, t);
    else if (w->due < next) next = w->due;
  }
  if (next < INT64_MAX) arm(next);
}

static void measure(int64_t t) {
  if (measuring_since || t < measuring_from) return;
  measuring_since = t;
  getrusage(RUSAGE_SELF, &usage_at_measuring);
  fprintf(stderr, "measuring {\"ns\":%" PRId64 "}\n", t);
}

static void on_timer(void) {
  uint64_t times;
  if (read(timer, &times, sizeof times) < 0 && errno != EAGAIN) die("timerfd");
}

static void on_stdin(void) {
  char text[64];
  if (read(0, text, sizeof text) <= 0) exit(1); /* whoever started us is gone */
}

static void run(void) {
  static int is_timer, is_stdin;
  struct epoll_event events[256];
  struct epoll_event from_timer = {.events = EPOLLIN, .data.ptr = &is_timer};
  struct epoll_event from_stdin = {.events = EPOLLIN, .data.ptr = &is_stdin};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &from_timer)) die("epoll_ctl");
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &from_stdin)) die("stdin must be a pipe");
  while (done < writer_count) {
    int64_t t = now();
    measure(t);
    send_due(t);
    int n = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < n; i++) {
      Writer *w = events[i].data.ptr;
      if (events[i].data.ptr == &is_timer) on_timer();
      else if (events[i].data.ptr == &is_stdin) on_stdin();
      else if (w->connected) on_readable(w);
      else connected(w);
    }
  }
}

static void report(int64_t ended) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("{\"writers\":%d,\"seconds\":%.3f,\"rate\":%.3f", writer_count, (double)(ended - begun) / SECOND,
         (double)count.appends * SECOND / (double)(ended - begun));
#define COUNT(name) printf(",\"" #name "\":%" PRIu64, count.name)
  COUNT(appends); COUNT(repeats); COUNT(cut_at_once); COUNT(cut_unread); COUNT(cut_read); COUNT(again_new);
  COUNT(again_known); COUNT(lost_connections); COUNT(held_up);
  printf(",\"measured_s\":%.3f,\"measured_cpu_s\":%.3f", (double)(ended - measuring_since) / SECOND,
         cpu_seconds(&usage) - cpu_seconds(&usage_at_measuring));
  print_histogram("latency", &latency);
  print_histogram("late", &late);
  printf("}\n");
}

/* Arguments. */

static void read_targets(void) {
  FILE *file = fopen(opt.targets, "r");
  char path[256], token[256];
  int epoch;
  if (!file) die(opt.targets);
  for (; fscanf(file, "%255s %255s %d", path, token, &epoch) == 3; writer_count++) {
    if (!(writers = realloc(writers, sizeof *writers * (size_t)(writer_count + 1)))) die("realloc");
    Writer *w = &writers[writer_count];
    memset(w, 0, sizeof *w);
    w->index = writer_count;
    w->number = 1;
    strcpy(w->path, path);
    int n = snprintf(w->head, HEAD_BYTES, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", opt.get ? "GET" : "POST", path,
                     opt.port);
    if (!opt.get)
      snprintf(w->head + n, HEAD_BYTES - (size_t)n,
               "Authorization: Bearer %s\r\nContent-Type: application/x-ndjson\r\nProducer-Epoch: %d\r\n", token,
               epoch);
  }
  fclose(file);
}

static void parse(int argc, char **argv) {
  static const struct option names[] = {
      {"port", 1, 0, 'p'}, {"targets", 1, 0, 't'}, {"rate", 1, 0, 'r'}, {"appends", 1, 0, 'n'},
      {"event-bytes", 1, 0, 'b'}, {"warm-up", 1, 0, 'w'}, {"get", 0, 0, 'g'}, {0, 0, 0, 0}};
  for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
    case 'p': opt.port = atoi(optarg); break;
    case 't': opt.targets = optarg; break;
    case 'r': opt.rate = atof(optarg); break;
    case 'n': opt.appends = atoi(optarg); break;
    case 'b': opt.event_bytes = atoi(optarg); break;
    case 'w': opt.warm_up = atof(optarg); break;
    case 'g': opt.get = true; break;
    default: exit(2);
  }
  if (!opt.port || !opt.targets || opt.rate <= 0 || opt.appends < 1 || opt.event_bytes > MAX_EVENT_BYTES) {
    fprintf(stderr, "writeload: --port, --targets, --rate and --appends are needed; an event has at most %d bytes\n",
            MAX_EVENT_BYTES);
    exit(2);
  }
}

int main(int argc, char **argv) {
  parse(argc, argv);
  read_targets();
  if (!writer_count) die("no targets");
  epoll = epoll_create1(0);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  begun = now() + START_MS * MS;
  measuring_from = begun + (int64_t)(opt.warm_up * SECOND);
  for (Writer *w = writers; w < writers + writer_count; w++) {
    w->due = due_of(w);
    connect_writer(w);
  }
  run();
  measure(measuring_from);
  report(now());
  return 0;
}
