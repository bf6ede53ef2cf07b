/* writer: appends the ticks of `bench.ticks` to many runs at an even pace, as `bench.writer` does, at a fraction of its
 * cost, which on a small machine is taken from the server under test.
 *
 * Responsible for the pace and for how late it was. Not responsible for a Redis that goes away.
 *
 *   writer --url redis://[user:password@]host:port/db --script FILE --runs FILE --rate R --per-run N --payload-bytes B
 *
 *   --script FILE        app/storage/append.lua, the only way an event gets into a log
 *   --runs FILE          one run id a line; each has its first event
 *   --rate R             events a second over all runs in turn
 *   --per-run N          events of each run; 0: until a line comes on stdin
 *   --payload-bytes B    size of an event's payload, about
 *
 * What is due at a moment is appended in one round trip. On stderr `begun {"ns"}`; on stdout, at the end, one JSON
 * object. Any answer but OK ends it with code 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "measure.h"

#define CREATED_SEQ 1
#define MOST_AT_ONCE 500
#define TURN_NS (MS)
#define EVENT_BYTES 8192
#define STAMP_BYTES 60 /* what the payload takes without its filling */

static struct {
  const char *url, *script, *runs;
  double rate;
  int per_run, payload_bytes;
} options;

static char **runs, sha[41];
static int64_t run_count;
static int redis;

/* Out: commands, gathered. In: replies, of which only the end of each is looked at. */
static char out[MOST_AT_ONCE * (EVENT_BYTES + 512)], in[65536];
static size_t out_size, in_size, in_at;

static void refuse(const char *what) {
  fprintf(stderr, "writer: %s\n", what);
  exit(1);
}

static void word(const char *text, size_t size) {
  out_size += (size_t)sprintf(out + out_size, "$%zu\r\n", size);
  memcpy(out + out_size, text, size);
  memcpy(out + out_size + size, "\r\n", 2);
  out_size += size + 2;
}

static void words(int count, const char *const *each) {
  for (int i = 0; i < count; i++) word(each[i], strlen(each[i]));
}

static void flush(void) {
  for (size_t sent = 0; sent < out_size;) {
    ssize_t n = write(redis, out + sent, out_size - sent);
    if (n < 0) die("Redis");
    sent += (size_t)n;
  }
  out_size = 0;
}

/* The next line of what Redis says, without its end. */
static char *line(void) {
  for (;;) {
    char *end = memmem(in + in_at, in_size - in_at, "\r\n", 2);
    if (end) {
      char *found = in + in_at;
      *end = 0;
      in_at = (size_t)(end - in) + 2;
      if (*found == '-') refuse(found);
      return found;
    }
    memmove(in, in + in_at, in_size - in_at);
    in_size -= in_at;
    in_at = 0;
    ssize_t n = read(redis, in + in_size, sizeof in - in_size);
    if (n <= 0) die("Redis");
    in_size += (size_t)n;
  }
}

static void connect_to(const char *url) {
  char user[256] = "", password[256] = "", host[256];
  int port, db = 0;
  const char *at = strchr(url, '@'), *where = at ? at + 1 : strstr(url, "//") + 2;
  if (at && sscanf(url, "redis://%255[^:@]:%255[^@]", user, password) < 2) sscanf(url, "redis://:%255[^@]", password);
  if (sscanf(where, "%255[^:/]:%d/%d", host, &port, &db) < 2) refuse("the URL is not redis://host:port/db");
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int one = 1;
  redis = socket(AF_INET, SOCK_STREAM, 0);
  inet_pton(AF_INET, host, &to.sin_addr);
  if (connect(redis, (void *)&to, sizeof to)) die("Redis");
  setsockopt(redis, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (*password) {
    out_size += (size_t)sprintf(out, "*%d\r\n", *user ? 3 : 2);
    words(1, (const char *[]){"AUTH"});
    if (*user) words(1, (const char *[]){user});
    words(1, (const char *[]){password});
    flush();
    line();
  }
  char number[16];
  sprintf(number, "%d", db);
  out_size += (size_t)sprintf(out, "*2\r\n");
  words(2, (const char *[]){"SELECT", number});
  flush();
  line();
}

static char *content(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) die(path);
  static char text[16777216];
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  return strdup(text);
}

static void load_script(void) {
  out_size += (size_t)sprintf(out, "*3\r\n");
  words(3, (const char *[]){"SCRIPT", "LOAD", content(options.script)});
  flush();
  line();
  snprintf(sha, sizeof sha, "%s", line());
}

static void read_runs(void) {
  char *text = content(options.runs);
  runs = calloc(strlen(text) / 2 + 1, sizeof *runs);
  for (char *id = strtok(text, "\n"); id; id = strtok(NULL, "\n")) runs[run_count++] = id;
}

static void append(const char *run, int seq, const char *payload) {
  static char event[EVENT_BYTES];
  char events[128], meta[128], channel[128], previous[16], ts[32];
  struct timespec t;
  struct tm utc;
  clock_gettime(CLOCK_REALTIME, &t);
  strftime(ts, sizeof ts, "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &utc));
  snprintf(event, sizeof event,
           "{\"v\":1,\"seq\":%d,\"run_id\":\"%s\",\"type\":\"custom.tick\",\"ts\":\"%s.%03dZ\",\"payload\":%s}", seq,
           run, ts, (int)(t.tv_nsec / MS), payload);
  snprintf(events, sizeof events, "rt:{%s}:events", run);
  snprintf(meta, sizeof meta, "rt:{%s}:meta", run);
  snprintf(channel, sizeof channel, "rt:{%s}", run);
  snprintf(previous, sizeof previous, "%d", seq - 1);
  out_size += (size_t)sprintf(out + out_size, "*15\r\n");
  words(15, (const char *[]){"EVALSHA", sha, "2", events, meta, channel, "0", "", previous, "0", "0", "0",
                             "custom.tick", event, ""});
}

static void tick(const char *run, int seq) {
  char payload[EVENT_BYTES - 512];
  int pad = options.payload_bytes > STAMP_BYTES ? options.payload_bytes - STAMP_BYTES : 0;
  int n = snprintf(payload, sizeof payload, "{\"text\":\"tick %d\",\"at\":\"@%" PRId64 "@\",\"pad\":\"", seq, now());
  memset(payload + n, 'x', (size_t)pad);
  strcpy(payload + n + pad, "\"}");
  append(run, seq, payload);
}

/* Each: *2 $2 OK :head. */
static void take(int64_t replies) {
  flush();
  while (replies--) {
    line();
    line();
    if (strcmp(line(), "OK")) refuse("an event does not follow the log's head, or is fenced");
    line();
  }
}

static bool told_to_finish(int64_t ns) {
  struct pollfd in = {.fd = 0, .events = POLLIN};
  struct timespec wait = {ns / SECOND, ns % SECOND};
  return ppoll(&in, 1, &wait, NULL) > 0;
}

static void parse(int argc, char **argv) {
  static const struct option known[] = {{"url", 1, 0, 'u'},     {"script", 1, 0, 's'},        {"runs", 1, 0, 'f'},
                                        {"rate", 1, 0, 'r'},    {"per-run", 1, 0, 'n'},       {"payload-bytes", 1, 0, 'b'},
                                        {0}};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (c) {
      case 'u': options.url = optarg; break;
      case 's': options.script = optarg; break;
      case 'f': options.runs = optarg; break;
      case 'r': options.rate = atof(optarg); break;
      case 'n': options.per_run = atoi(optarg); break;
      case 'b': options.payload_bytes = atoi(optarg); break;
      default: exit(2);
    }
  }
  if (!options.url || !options.script || !options.runs || options.rate <= 0) exit(2);
  if (options.payload_bytes > EVENT_BYTES - 1024) refuse("the payload is too large");
}

int main(int argc, char **argv) {
  parse(argc, argv);
  read_runs();
  connect_to(options.url);
  load_script();
  static Histogram late;
  int64_t written = 0, total = options.per_run ? run_count * options.per_run : INT64_MAX, begun = now();
  fprintf(stderr, "begun {\"ns\": %" PRId64 "}\n", begun);
  while (written < total) {
    int64_t due_at = begun + (int64_t)((double)written / options.rate * SECOND), at = now();
    if (due_at > at) {
      if (told_to_finish(due_at - at > TURN_NS ? due_at - at : TURN_NS)) break;
      continue;
    }
    add(&late, at - due_at);
    int64_t due = (int64_t)((double)(at - begun) / SECOND * options.rate) + 1 - written;
    if (due > total - written) due = total - written;
    if (due > MOST_AT_ONCE) due = MOST_AT_ONCE;
    for (int64_t i = written; i < written + due; i++) tick(runs[i % run_count], (int)(CREATED_SEQ + 1 + i / run_count));
    take(due);
    written += due;
    if (due == MOST_AT_ONCE && told_to_finish(0)) break;
  }
  double seconds = (double)(now() - begun) / SECOND;
  printf("{\"events\":%" PRId64 ",\"seconds\":%.6f,\"rate\":%.3f,\"late_p50_ms\":%.3f,\"late_p99_ms\":%.3f,"
         "\"late_max_ms\":%.3f}\n",
         written, seconds, (double)written / seconds, quantile_ms(&late, .5), quantile_ms(&late, .99),
         (double)late.max / MS);
  return 0;
}
