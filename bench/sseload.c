/* sseload: opens many windows, checks that each gets every event once and in order, and measures how late.
 *
 * Responsible for the windows' side of a benchmark: connections, HTTP, SSE and WebSocket, coming back with a cursor,
 * readers that stall, counting. Not responsible for writing events, nor for judging the figures.
 *
 *   sseload --port P --windows N --paths FILE [options]
 *
 *   --host H             127.0.0.1
 *   --paths FILE         one request path a line; window i follows line i modulo their number
 *   --header "K: V"      sent with each request; may be repeated
 *   --addresses A        source addresses 127.0.0.2 ... in turn (1)
 *   --inflight N         requests without an answer while the windows are first opened (200)
 *   --since N            cursor to open with; then the first event must be N + 1. Without: whatever comes first
 *   --seq id|data        where an event's seq is: its `id:` line, or `"seq":` in its data (id)
 *   --http10             speak HTTP/1.0
 *   --websocket          open WebSockets; a seq is where `--seq data` has it, the cursor is the parameter `since_seq`
 *   --until-seq N        a window is complete at that seq (at a terminal event it is in any case)
 *   --seconds S          end so long after all windows are open; all being complete ends it earlier (30)
 *   --open-seconds S     end without them when they are not all open after so long (120)
 *   --reconnect          come back after an end, with the cursor, after the server's `retry:` plus up to a fifth of it
 *   --stalled K          the last K windows read the response head, then nothing until `resume`
 *   --progress           a `second {...}` line on stderr every second
 *
 * Commands, lines on stdin: `level N` (tell when every window is open and has seq N), `resume` (the stalled windows
 * come back with their cursor, on new connections), `finish`. On stderr, each with CLOCK_MONOTONIC as "ns":
 * `ready {...}` (all are open), `level {...}`, `parked {...}` (the server has closed every stalled window). On stdout,
 * at the end: one JSON object. Latencies are receipt minus the stamp "@<CLOCK_MONOTONIC ns>@" in an event's data, of
 * events stamped after all windows were open; histograms are [[upper bound in ns, count], ...], bounds 0.8 % apart.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "measure.h"

#define READ_BYTES (256 * 1024)
#define MAX_HEAD_BYTES 16384
#define NAMED_PATHS 5 /* of windows that are not complete, in the report */
#define DEFAULT_RETRY_MS 3000 /* what browsers take when the server says nothing */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ==" /* the example of RFC 6455, so that what it makes is known */
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
#define MAX_CONTROL_BYTES 125

/* Waiting: for its moment to connect. Parked: a stalled window without connection, until `resume`. */
enum State { WAITING, CONNECTING, HEAD, OPEN, STALLED, PARKED, CLOSED };
enum Chunk { SIZE, EXTENSION, DATA, DATA_END, LAST, TRAILER, ENDED };
enum Kind { EVENT, TERMINAL, SNAPSHOT, GAP, REJECTED, CONTROL };
enum Opcode { TEXT = 1, CLOSE = 8, PING, PONG };

typedef struct {
  int fd;
  enum State state;
  bool stalls, was_open, complete, level;
  bool chunked;
  enum Chunk chunk;
  uint64_t left; /* bytes of the chunk */
  char *carry;   /* the response head, then the line, that has not come in whole */
  size_t carried, capacity;
  enum Kind kind; /* of the frame that is coming in */
  int64_t id, stamp;
  bool filled;
  int64_t seq; /* the cursor: the last event seen; -1: none */
  uint64_t frames;
  int64_t retry_ms, due, begun, stalled_at;
  const char *path;
} Window;

static struct {
  const char *host, *paths;
  int port, windows, addresses, inflight, stalled;
  int64_t since, until_seq;
  double seconds, open_seconds;
  bool seq_in_data, http10, websocket, reconnect, progress;
  char headers[8192];
} opt = {.host = "127.0.0.1", .addresses = 1, .inflight = 200, .since = -1, .until_seq = -1, .seconds = 30,
         .open_seconds = 120};

static struct {
  uint64_t opens, refused, aborted, bad_status, no_content, clean_ends, broken_ends, frames, events, gaps, repeats,
      snapshots, gap_frames, rejected, controls, control_ids, unnumbered, heartbeats, bytes, terminal,
      stalled_closed, stalled_resumed, odd_frames;
} count;

static Window *windows;
static int epoll, inflight, once_open, failed, completed, gone, leveled;
static int64_t ready_at, level_from, level_seq = -1, next_due = INT64_MAX;
static Histogram latency, completion, leveling, stall_closing;
static struct rusage usage_at_ready;
static char buffer[READ_BYTES];

/* A window's course. */

static void wait_until(Window *w, int64_t due) {
  w->state = WAITING;
  w->due = due;
  if (due < next_due) next_due = due;
}

static double chance(void) { return (double)random() / RAND_MAX; }

static void close_connection(Window *w) {
  if (w->state == CONNECTING || w->state == HEAD) inflight--;
  close(w->fd);
  w->fd = -1;
  w->carried = 0;
}

static void give_up(Window *w) {
  w->state = CLOSED;
  gone += !w->complete;
  failed += !w->was_open;
}

/* Nobody listens, or the process went away before it answered: it may be back any moment. */
static void not_answered(Window *w, int64_t t) {
  close_connection(w);
  if (opt.reconnect)
    wait_until(w, t + (int64_t)((50 + 50 * chance()) * MS));
  else
    give_up(w);
}

static void come_back(Window *w, int64_t t) {
  close_connection(w);
  if (w->complete || !opt.reconnect)
    give_up(w);
  else
    wait_until(w, t + (int64_t)((double)w->retry_ms * (1 + chance() / 5) * MS));
}

static void check_level(Window *w, int64_t t) {
  if (level_seq < 0 || w->level || (!w->complete && (w->state != OPEN || w->seq < level_seq))) return;
  w->level = true;
  add(&leveling, t - level_from);
  if (++leveled == opt.windows)
    fprintf(stderr, "level {\"ns\":%" PRId64 ",\"seq\":%" PRId64 "}\n", t, level_seq);
}

static void watch(Window *w, uint32_t events, int op) {
  struct epoll_event e = {.events = events, .data.ptr = w};
  if (epoll_ctl(epoll, op, w->fd, &e)) die("epoll_ctl");
}

static int sse_request(const Window *w, char *request) {
  char cursor[64] = "";
  if (w->seq >= 0) snprintf(cursor, sizeof cursor, "Last-Event-ID: %" PRId64 "\r\n", w->seq);
  return snprintf(request, MAX_HEAD_BYTES, "GET %s HTTP/1.%d\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s%s\r\n",
                  w->path, opt.http10 ? 0 : 1, opt.host, opt.port, cursor, opt.headers);
}

static int websocket_request(const Window *w, char *request) {
  char cursor[64] = "";
  if (w->seq >= 0) snprintf(cursor, sizeof cursor, "?since_seq=%" PRId64, w->seq);
  return snprintf(request, MAX_HEAD_BYTES,
                  "GET %s%s HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " WS_KEY "\r\n%s\r\n",
                  w->path, cursor, opt.host, opt.port, opt.headers);
}

static void send_request(Window *w, int64_t t) {
  char request[MAX_HEAD_BYTES];
  int n = opt.websocket ? websocket_request(w, request) : sse_request(w, request);
  w->state = HEAD;
  if (send(w->fd, request, (size_t)n, MSG_NOSIGNAL) != n) {
    count.aborted++;
    not_answered(w, t);
    return;
  }
  watch(w, EPOLLIN, EPOLL_CTL_MOD);
}

static void connect_window(Window *w, int64_t t) {
  struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
  int one = 1;
  w->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (w->fd < 0) die("socket");
  setsockopt(w->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  from.sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)((w - windows) % opt.addresses));
  if (bind(w->fd, (void *)&from, sizeof from)) die("bind");
  inet_pton(AF_INET, opt.host, &to.sin_addr);
  if (!w->begun) w->begun = t;
  w->state = CONNECTING;
  w->chunk = SIZE;
  w->left = 0;
  w->kind = EVENT;
  w->id = w->stamp = -1;
  w->filled = false;
  inflight++;
  if (connect(w->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) {
    count.refused++;
    not_answered(w, t);
    return;
  }
  watch(w, EPOLLOUT, EPOLL_CTL_ADD);
}

static void connected(Window *w, int64_t t) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) {
    count.refused++;
    not_answered(w, t);
  } else {
    send_request(w, t);
  }
}

/* SSE: lines in, frames out. */

static void complete(Window *w, int64_t t) {
  if (w->complete) return;
  w->complete = true;
  completed++;
  add(&completion, t - w->begun);
}

static void follow(Window *w) {
  if (w->id < 0) {
    count.unnumbered++;
  } else if (w->seq >= 0 && w->id <= w->seq) {
    count.repeats++;
  } else {
    if (w->seq >= 0) count.gaps += (uint64_t)(w->id - w->seq - 1);
    w->seq = w->id;
  }
}

static void dispatch(Window *w, int64_t t) {
  if (!w->filled) return;
  if (w->kind == SNAPSHOT) {
    count.snapshots++;
    w->seq = w->id;
  } else if (w->kind > SNAPSHOT) {
    count.controls++;
    count.control_ids += w->id >= 0;
    count.gap_frames += w->kind == GAP;
    count.rejected += w->kind == REJECTED;
  } else {
    count.events++;
    follow(w);
    if (w->stamp >= 0 && ready_at && w->stamp >= ready_at) {
      add(&latency, t - w->stamp);
      count.frames++;
      w->frames++;
    }
    count.terminal += w->kind == TERMINAL;
  }
  if (w->kind == TERMINAL || (opt.until_seq >= 0 && w->seq >= opt.until_seq)) complete(w, t);
  w->kind = EVENT;
  w->id = w->stamp = -1;
  w->filled = false;
  check_level(w, t);
}

static bool is(const char *value, size_t n, const char *word) {
  return n == strlen(word) && !memcmp(value, word, n);
}

static enum Kind kind_of(const char *type, size_t n) {
  if (is(type, n, "run.completed") || is(type, n, "run.failed") || is(type, n, "run.cancelled")) return TERMINAL;
  if (n < 7 || memcmp(type, "stream.", 7)) return EVENT;
  if (is(type, n, "stream.snapshot")) return SNAPSHOT;
  return is(type, n, "stream.gap") ? GAP : is(type, n, "stream.rejected") ? REJECTED : CONTROL;
}

static void data(Window *w, const char *value, size_t n) {
  const char *end = value + n, *at = value, *seq;
  w->filled = true;
  while (w->stamp < 0 && (at = memchr(at, '@', (size_t)(end - at)))) {
    char *after;
    int64_t stamp = strtoll(++at, &after, 10); /* ends at the latest with the line: '\n' is in the buffer */
    if (after - at > 10 && after < end && *after == '@') w->stamp = stamp;
  }
  if (opt.seq_in_data && (seq = memmem(value, n, "\"seq\":", 6))) w->id = strtoll(seq + 6, NULL, 10);
}

/* `line` is followed by its '\n'. */
static void on_line(Window *w, const char *line, size_t n, int64_t t) {
  if (n && line[n - 1] == '\r') n--;
  if (!n) {
    dispatch(w, t);
    return;
  }
  if (*line == ':') {
    count.heartbeats++;
    return;
  }
  const char *colon = memchr(line, ':', n);
  if (!colon) return;
  size_t name = (size_t)(colon - line);
  const char *value = colon + 1 + (name + 1 < n && colon[1] == ' ');
  size_t size = n - (size_t)(value - line);
  if (is(line, name, "data")) data(w, value, size);
  else if (is(line, name, "event")) w->kind = kind_of(value, size);
  else if (is(line, name, "retry")) w->retry_ms = strtoll(value, NULL, 10);
  else if (is(line, name, "id") && !opt.seq_in_data) w->id = strtoll(value, NULL, 10);
}

static void carry(Window *w, const char *bytes, size_t n) {
  if (w->carried + n > w->capacity) {
    w->capacity = (w->carried + n) * 2;
    if (!(w->carry = realloc(w->carry, w->capacity))) die("realloc");
  }
  memcpy(w->carry + w->carried, bytes, n);
  w->carried += n;
}

static void on_body(Window *w, const char *bytes, size_t n, int64_t t) {
  const char *end = bytes + n, *newline;
  while (bytes < end && (newline = memchr(bytes, '\n', (size_t)(end - bytes)))) {
    if (w->carried) {
      carry(w, bytes, (size_t)(newline + 1 - bytes));
      size_t size = w->carried - 1;
      w->carried = 0;
      on_line(w, w->carry, size, t);
    } else {
      on_line(w, bytes, (size_t)(newline - bytes), t);
    }
    bytes = newline + 1;
  }
  if (bytes < end) carry(w, bytes, (size_t)(end - bytes));
}

/* HTTP. */

static uint64_t hex(char c) { return c <= '9' ? (uint64_t)(c - '0') : (uint64_t)((c | 32) - 'a' + 10); }

static void on_chunked(Window *w, const char *p, size_t n, int64_t t) {
  for (const char *end = p + n; p < end && w->chunk != ENDED;) {
    if (w->chunk == DATA) {
      size_t size = (uint64_t)(end - p) < w->left ? (size_t)(end - p) : (size_t)w->left;
      on_body(w, p, size, t);
      p += size;
      if (!(w->left -= size)) w->chunk = DATA_END;
      continue;
    }
    char c = *p++;
    if (w->chunk == SIZE && c != '\r' && c != '\n' && c != ';') w->left = w->left * 16 + hex(c);
    else if (w->chunk == SIZE && c == ';') w->chunk = EXTENSION;
    else if (c != '\n') { if (w->chunk == LAST && c != '\r') w->chunk = TRAILER; }
    else if (w->chunk == SIZE || w->chunk == EXTENSION) w->chunk = w->left ? DATA : LAST;
    else if (w->chunk == DATA_END) w->chunk = SIZE;
    else w->chunk = w->chunk == TRAILER ? LAST : ENDED;
  }
}

static void ended(Window *w, bool clean, int64_t t) {
  if (w->complete) {
    close_connection(w);
    w->state = CLOSED;
    return;
  }
  if (clean) count.clean_ends++;
  else count.broken_ends++;
  come_back(w, t);
}

/* WebSocket: frames in, each a whole message. */

static void on_text(Window *w, const char *text, size_t n, int64_t t) {
  const char *type = memmem(text, n, "\"type\":\"", 8), *quote;
  if (type && (quote = memchr(type + 8, '"', (size_t)(text + n - type - 8))))
    w->kind = kind_of(type + 8, (size_t)(quote - type - 8));
  data(w, text, n);
  if (w->kind > SNAPSHOT) w->id = -1; /* a seq in its payload is none of its own */
  dispatch(w, t);
}

/* One that gets lost shows as an end of the connection. */
static void send_masked(Window *w, enum Opcode opcode, const char *payload, size_t n) {
  char frame[6 + MAX_CONTROL_BYTES] = {(char)(0x80 | opcode), (char)(0x80 | n)};
  for (int i = 2; i < 6; i++) frame[i] = (char)random();
  for (size_t i = 0; i < n; i++) frame[6 + i] = payload[i] ^ frame[2 + i % 4];
  send(w->fd, frame, 6 + n, MSG_NOSIGNAL);
}

static void on_frame(Window *w, enum Opcode opcode, const char *payload, size_t n, int64_t t) {
  if (opcode == TEXT) {
    on_text(w, payload, n, t);
  } else if (opcode == PING && n <= MAX_CONTROL_BYTES) {
    count.heartbeats++;
    send_masked(w, PONG, payload, n);
  } else if (opcode == CLOSE && n <= MAX_CONTROL_BYTES) {
    int code = n >= 2 ? (unsigned char)payload[0] << 8 | (unsigned char)payload[1] : 0;
    send_masked(w, CLOSE, payload, n < 2 ? n : 2);
    ended(w, code == 1000 || code == 1001 || code == 1012, t);
  } else {
    count.odd_frames++;
  }
}

/* Returns the size of the frame that these bytes begin with, 0 where it has not come in whole. */
static size_t take_frame(Window *w, const char *bytes, size_t n, int64_t t) {
  const unsigned char *p = (const unsigned char *)bytes;
  if (n < 2) return 0;
  uint64_t size = p[1] & 0x7f;
  size_t head = size == 126 ? 4 : size == 127 ? 10 : 2;
  if (n < head) return 0;
  if (head > 2) size = 0;
  for (size_t i = 2; i < head; i++) size = size << 8 | p[i];
  if (p[1] & 0x80) head += 4;
  if (n < head || n - head < size) return 0;
  if ((p[0] & 0x70) || !(p[0] & 0x80) || (p[1] & 0x80)) count.odd_frames++; /* compressed, in parts, or masked */
  else on_frame(w, p[0] & 0x0f, bytes + head, (size_t)size, t);
  return head + (size_t)size;
}

static bool is_open(const Window *w) { return w->state == OPEN || w->state == STALLED; }

static void on_websocket(Window *w, const char *bytes, size_t n, int64_t t) {
  bool carried = w->carried;
  if (carried) {
    carry(w, bytes, n);
    bytes = w->carry;
    n = w->carried;
  }
  for (size_t size; is_open(w) && (size = take_frame(w, bytes, n, t)); bytes += size, n -= size) {
  }
  if (!is_open(w)) return; /* whatever follows a close is nothing */
  if (carried) {
    memmove(w->carry, bytes, n);
    w->carried = n;
  } else if (n) {
    carry(w, bytes, n);
  }
}

static void on_bytes(Window *w, const char *bytes, size_t n, int64_t t) {
  if (opt.websocket) on_websocket(w, bytes, n, t);
  else if (w->chunked) on_chunked(w, bytes, n, t);
  else on_body(w, bytes, n, t);
  if (w->chunked && w->chunk == ENDED) ended(w, true, t);
}

static void opened(Window *w, int64_t t) {
  count.opens++;
  inflight--;
  if (!w->was_open) once_open++;
  w->was_open = true;
  w->state = OPEN;
  if (w->stalls) {
    w->state = STALLED;
    w->stalled_at = t;
    watch(w, EPOLLRDHUP, EPOLL_CTL_MOD);
  }
  check_level(w, t);
}

static void answered(Window *w, int status, int64_t t) {
  if (status == (opt.websocket ? 101 : 200)) {
    opened(w, t);
  } else if (status == 204) { /* "do not come back": it has everything */
    count.no_content++;
    if (!w->was_open) once_open++;
    w->was_open = true;
    complete(w, t);
    close_connection(w);
    w->state = CLOSED;
    check_level(w, t);
  } else {
    if (!count.bad_status++) fprintf(stderr, "sseload: status %d for %s\n", status, w->path);
    come_back(w, t);
  }
}

static void on_head(Window *w, const char *bytes, size_t n, int64_t t) {
  carry(w, bytes, n);
  char *end = memmem(w->carry, w->carried, "\r\n\r\n", 4);
  if (!end) {
    if (w->carried > MAX_HEAD_BYTES) not_answered(w, t);
    return;
  }
  size_t head = (size_t)(end + 4 - w->carry), rest = w->carried - head;
  end[2] = 0;
  w->chunked = strcasestr(w->carry, "\r\nTransfer-Encoding: chunked") != NULL;
  int status = w->carried > 12 ? atoi(w->carry + 9) : 0;
  if (status == 101 && !strstr(w->carry, WS_ACCEPT)) status = 0;
  char *body = malloc(rest + 1);
  if (!body) die("malloc");
  memcpy(body, w->carry + head, rest);
  w->carried = 0;
  answered(w, status, t);
  if (rest && is_open(w)) on_bytes(w, body, rest, t);
  free(body);
}

static void on_readable(Window *w) {
  ssize_t n = read(w->fd, buffer, sizeof buffer - 1);
  int64_t t = now();
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n > 0) {
    count.bytes += (uint64_t)n;
    buffer[n] = 0;
    if (w->state == HEAD) on_head(w, buffer, (size_t)n, t);
    else on_bytes(w, buffer, (size_t)n, t);
  } else if (w->state == HEAD) {
    count.aborted++;
    not_answered(w, t);
  } else {
    ended(w, n == 0 && !w->chunked && !opt.websocket, t);
  }
}

static void stall_closed(Window *w) {
  int64_t t = now();
  count.stalled_closed++;
  add(&stall_closing, t - w->stalled_at);
  close_connection(w);
  w->state = PARKED;
  if ((int)count.stalled_closed == opt.stalled) fprintf(stderr, "parked {\"ns\":%" PRId64 "}\n", t);
}

static void on_event(struct epoll_event *e) {
  Window *w = e->data.ptr;
  if (w->state == CONNECTING) connected(w, now());
  else if (w->state == STALLED) stall_closed(w);
  else if (w->state == HEAD || w->state == OPEN) on_readable(w);
}

/* Commands. */

static void resume_stalled(void) {
  for (Window *w = windows; w < windows + opt.windows; w++) {
    if (w->state == STALLED) close_connection(w);
    else if (w->state != PARKED) continue;
    w->stalls = false;
    count.stalled_resumed++;
    wait_until(w, now());
  }
}

static void begin_level(int64_t seq) {
  level_seq = seq;
  level_from = now();
  leveled = 0;
  memset(&leveling, 0, sizeof leveling);
  for (Window *w = windows; w < windows + opt.windows; w++) w->level = false;
  for (Window *w = windows; w < windows + opt.windows; w++) check_level(w, level_from);
}

/* Returns whether to finish. */
static bool command(void) {
  static char text[4096];
  static size_t held;
  ssize_t n = read(0, text + held, sizeof text - 1 - held);
  if (n <= 0) return true; /* whoever started us is gone */
  held += (size_t)n;
  for (char *newline; (newline = memchr(text, '\n', held));) {
    *newline = 0;
    if (!strcmp(text, "finish")) return true;
    if (!strcmp(text, "resume")) resume_stalled();
    else if (!strncmp(text, "level ", 6)) begin_level(strtoll(text + 6, NULL, 10));
    held -= (size_t)(newline + 1 - text);
    memmove(text, newline + 1, held);
  }
  return false;
}

/* The loop. */

static void connect_due(int64_t t) {
  if (t < next_due) return;
  next_due = INT64_MAX;
  for (Window *w = windows; w < windows + opt.windows; w++) {
    if (w->state != WAITING) continue;
    if (w->due <= t && (w->was_open || inflight < opt.inflight)) connect_window(w, t);
    else if (w->due > t && w->due < next_due) next_due = w->due;
    else if (t + MS < next_due) next_due = t + MS;
  }
}

static void announce_ready(int64_t t, int64_t started) {
  ready_at = t;
  getrusage(RUSAGE_SELF, &usage_at_ready);
  fprintf(stderr, "ready {\"ns\":%" PRId64 ",\"open\":%d,\"failed\":%d,\"open_s\":%.3f}\n", t, once_open, failed,
          (double)(t - started) / SECOND);
}

static void progress(int64_t t, int64_t started) {
  static int64_t next;
  if (!opt.progress || t < next) return;
  next = t + SECOND;
  int open = 0;
  for (Window *w = windows; w < windows + opt.windows; w++) open += w->state == OPEN;
  fprintf(stderr, "second {\"s\":%.1f,\"open\":%d,\"frames\":%" PRIu64 ",\"complete\":%d}\n",
          (double)(t - started) / SECOND, open, count.frames, completed);
}

static bool over(int64_t t, int64_t started) {
  if (completed + gone >= opt.windows) return true;
  if (ready_at) return t - ready_at > (int64_t)(opt.seconds * SECOND);
  return t - started > (int64_t)(opt.open_seconds * SECOND);
}

static void run(int64_t started) {
  struct epoll_event events[1024], from_stdin = {.events = EPOLLIN, .data.ptr = NULL};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &from_stdin)) die("stdin must be a pipe");
  for (;;) {
    int64_t t = now();
    connect_due(t);
    if (!ready_at && once_open + failed >= opt.windows) announce_ready(t, started);
    progress(t, started);
    if (over(t, started)) return;
    int64_t wait_ms = next_due == INT64_MAX ? 50 : (next_due - t) / MS + 1;
    int n = epoll_wait(epoll, events, 1024, wait_ms > 50 ? 50 : (int)wait_ms);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr) on_event(&events[i]);
      else if (command()) return;
    }
  }
}

static void report(int64_t ended_at) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  uint64_t least = UINT64_MAX, most = 0;
  int64_t lowest = INT64_MAX, highest = -1;
  int open = 0;
  for (Window *w = windows; w < windows + opt.windows; w++) {
    if (w->frames < least) least = w->frames;
    if (w->frames > most) most = w->frames;
    if (w->seq < lowest) lowest = w->seq;
    if (w->seq > highest) highest = w->seq;
    open += is_open(w);
  }
  printf("{\"windows\":%d,\"once_open\":%d,\"failed\":%d,\"open\":%d,\"complete\":%d,\"ready_ns\":%" PRId64
         ",\"ended_ns\":%" PRId64,
         opt.windows, once_open, failed, open, completed, ready_at, ended_at);
#define COUNT(name) printf(",\"" #name "\":%" PRIu64, count.name)
  COUNT(opens); COUNT(refused); COUNT(aborted); COUNT(bad_status); COUNT(no_content); COUNT(clean_ends);
  COUNT(broken_ends); COUNT(frames); COUNT(events); COUNT(gaps); COUNT(repeats); COUNT(snapshots); COUNT(gap_frames);
  COUNT(rejected); COUNT(controls); COUNT(control_ids); COUNT(unnumbered); COUNT(heartbeats); COUNT(bytes);
  COUNT(terminal); COUNT(stalled_closed); COUNT(stalled_resumed); COUNT(odd_frames);
  printf(",\"min_frames\":%" PRIu64 ",\"max_frames\":%" PRIu64 ",\"min_seq\":%" PRId64 ",\"max_seq\":%" PRId64, least,
         most, lowest, highest);
  printf(",\"cpu_s\":%.3f,\"measured_s\":%.3f,\"measured_cpu_s\":%.3f", cpu_seconds(&usage),
         ready_at ? (double)(ended_at - ready_at) / SECOND : 0.,
         ready_at ? cpu_seconds(&usage) - cpu_seconds(&usage_at_ready) : 0.);
  printf(",\"incomplete\":[");
  int named = 0;
  for (Window *w = windows; w < windows + opt.windows && named < NAMED_PATHS; w++)
    if (!w->complete) printf("%s\"%s after %" PRId64 "\"", named++ ? "," : "", w->path, w->seq);
  printf("]");
  print_histogram("latency", &latency);
  print_histogram("completion", &completion);
  print_histogram("leveling", &leveling);
  print_histogram("stall_closing", &stall_closing);
  printf("}\n");
}

/* Arguments. */

static char **read_paths(const char *name, int *found) {
  FILE *file = fopen(name, "r");
  if (!file) die(name);
  char **paths = NULL, *line = NULL;
  size_t size = 0;
  for (*found = 0; getline(&line, &size, file) > 0;) {
    line[strcspn(line, "\n")] = 0;
    if (!*line) continue;
    if (!(paths = realloc(paths, sizeof *paths * (size_t)(*found + 1)))) die("realloc");
    paths[(*found)++] = strdup(line);
  }
  fclose(file);
  return paths;
}

static void add_header(const char *header) {
  size_t used = strlen(opt.headers);
  snprintf(opt.headers + used, sizeof opt.headers - used, "%s\r\n", header);
}

static void parse(int argc, char **argv) {
  static const struct option names[] = {
      {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"windows", 1, 0, 'w'}, {"paths", 1, 0, 'f'}, {"header", 1, 0, 'H'},
      {"addresses", 1, 0, 'a'}, {"inflight", 1, 0, 'i'}, {"since", 1, 0, 'c'}, {"seq", 1, 0, 'q'},
      {"http10", 0, 0, '0'}, {"websocket", 0, 0, 'W'}, {"until-seq", 1, 0, 'u'}, {"seconds", 1, 0, 's'},
      {"open-seconds", 1, 0, 'o'},
      {"reconnect", 0, 0, 'r'}, {"stalled", 1, 0, 'k'}, {"progress", 0, 0, 'g'}, {0, 0, 0, 0}};
  for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
    case 'h': opt.host = optarg; break;
    case 'p': opt.port = atoi(optarg); break;
    case 'w': opt.windows = atoi(optarg); break;
    case 'f': opt.paths = optarg; break;
    case 'H': add_header(optarg); break;
    case 'a': opt.addresses = atoi(optarg); break;
    case 'i': opt.inflight = atoi(optarg); break;
    case 'c': opt.since = atoll(optarg); break;
    case 'q': opt.seq_in_data = !strcmp(optarg, "data"); break;
    case '0': opt.http10 = true; break;
    case 'W': opt.websocket = opt.seq_in_data = true; break;
    case 'u': opt.until_seq = atoll(optarg); break;
    case 's': opt.seconds = atof(optarg); break;
    case 'o': opt.open_seconds = atof(optarg); break;
    case 'r': opt.reconnect = true; break;
    case 'k': opt.stalled = atoi(optarg); break;
    case 'g': opt.progress = true; break;
    default: exit(2);
  }
  if (!opt.port || opt.windows < 1 || !opt.paths || opt.addresses < 1) {
    fprintf(stderr, "sseload: --port, --windows and --paths are needed\n");
    exit(2);
  }
}

static void allow_files(void) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv) {
  int found;
  parse(argc, argv);
  allow_files();
  char **paths = read_paths(opt.paths, &found);
  if (!found || !(windows = calloc((size_t)opt.windows, sizeof *windows))) die("no paths");
  epoll = epoll_create1(0);
  srandom((unsigned)getpid());
  int64_t started = now();
  for (int i = 0; i < opt.windows; i++) {
    Window *w = &windows[i];
    w->fd = -1;
    w->seq = opt.since;
    w->retry_ms = DEFAULT_RETRY_MS;
    w->path = paths[i % found];
    w->stalls = i >= opt.windows - opt.stalled;
    wait_until(w, started);
  }
  run(started);
  report(now());
  return 0;
}
