/* Moments, histograms and CPU time, as the load clients report them. Included once by each of them. */
#ifndef MEASURE_H
#define MEASURE_H
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define MS 1000000LL
#define SECOND 1000000000LL

/* Log-linear: 128 buckets for each doubling. */
typedef struct { uint64_t bucket[64 * 128], count; int64_t max; } Histogram;

/* CLOCK_MONOTONIC, ns. */
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

static void die(const char *what) {
  fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
  exit(1);
}

static int bucket_of(int64_t ns) {
  if (ns < 128) return ns < 0 ? 0 : (int)ns;
  int shift = 63 - __builtin_clzll((uint64_t)ns) - 7;
  return shift * 128 + (int)(ns >> shift);
}

static int64_t bound_of(int bucket) {
  if (bucket < 256) return bucket;
  int shift = bucket / 128 - 1;
  return ((int64_t)(bucket - shift * 128 + 1) << shift) - 1;
}

static void add(Histogram *h, int64_t ns) {
  h->bucket[bucket_of(ns)]++;
  h->count++;
  if (ns > h->max) h->max = ns;
}

static double quantile_ms(const Histogram *h, double q) {
  uint64_t rank = (uint64_t)(q * (double)h->count), seen = 0;
  for (int i = 0; i < 64 * 128; i++)
    if ((seen += h->bucket[i]) > rank) return (double)bound_of(i) / MS;
  return (double)h->max / MS;
}

/* A further member of the JSON object on stdout. */
static void print_histogram(const char *name, const Histogram *h) {
  printf(",\"%s\":{\"count\":%" PRIu64, name, h->count);
  if (h->count)
    printf(",\"p50_ms\":%.3f,\"p95_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f", quantile_ms(h, .5), quantile_ms(h, .95),
           quantile_ms(h, .99), (double)h->max / MS);
  printf(",\"histogram\":[");
  bool first = true;
  for (int i = 0; i < 64 * 128; i++)
    if (h->bucket[i]) {
      printf("%s[%" PRId64 ",%" PRIu64 "]", first ? "" : ",", bound_of(i), h->bucket[i]);
      first = false;
    }
  printf("]}");
}

/* User and system time so far. */
static double cpu_seconds(const struct rusage *u) {
  return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) + (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) / 1e6;
}

#endif
