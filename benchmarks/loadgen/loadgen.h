/* What the modes share: the clock, the bytes that are sent, and the result. */
#ifndef LOADGEN_H
#define LOADGEN_H

#include "histogram.h"
#include "options.h"
#include "usage.h"

enum failure { CORRUPT, EXTRA, MISSING, CLOSED, CONNECT, LOST, FAILURES };

struct result {
    uint64_t operations; /* in the measured window, or served connections */
    uint64_t timeouts;   /* burst: clients that were not served in time */
    uint64_t lost;       /* udp: datagrams without a reply, where that is no error */
    double seconds;      /* of that window; storm, burst: the median of the repeats */
    double rate;         /* operations a second; storm: of the median one */
    struct histogram latency;
    struct usage usage;
    uint64_t failures[FAILURES];
    char first_failure[160];
};

uint64_t nanoseconds(void);

/* Counts a failure and keeps the text of the first one. */
void fail_with(struct result *result, enum failure kind, uint64_t count, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The endless stream of bytes that every connection sends, each from a position of its own: random, so that an echo
 * that is shifted, repeated or another connection's does not compare equal. Lines have a newline at their end. */
const unsigned char *pattern_at(int connection, uint64_t position);
void pattern_create(const struct options *options);

/* Compares what came in at `position` of the connection's stream with what was sent; false is counted. */
bool check_echo(struct result *result, int connection, uint64_t sent, uint64_t position, const unsigned char *bytes,
                size_t size);

/* Says that `held` connections or sessions are there, and waits for the word to go on, or the end of the input. */
void hold(const struct options *options, uint64_t held);

void run_steady(const struct options *options, struct result *result);
void run_paced(const struct options *options, struct result *result);
void run_churn(const struct options *options, struct result *result);
void run_storm(const struct options *options, struct result *result);
void run_burst(const struct options *options, struct result *result);
void run_idle(const struct options *options, struct result *result);
void run_datagrams(const struct options *options, struct result *result);
void run_sessions(const struct options *options, struct result *result);

#endif
