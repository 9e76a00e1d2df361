#include "loadgen.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned char *pattern;
static size_t pattern_period, pattern_unit;

uint64_t nanoseconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

void fail_with(struct result *result, enum failure kind, uint64_t count, const char *format, ...)
{
    result->failures[kind] += count;
    if (result->first_failure[0])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(result->first_failure, sizeof result->first_failure, format, arguments);
    va_end(arguments);
}

static unsigned char next_byte(uint64_t *state, bool printable)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return printable ? (unsigned char)('!' + (*state >> 32) % 94) : (unsigned char)(*state >> 32);
}

/* The period is a prime number of units near 256 KiB, so that messages of any size meet every part of it. After it
 * comes enough of its beginning that no message in flight has to be cut. */
void pattern_create(const struct options *options)
{
    bool lines = options->mode == MODE_LINES;
    pattern_unit = lines ? options->size : 64;
    pattern_period = 4099 * pattern_unit;
    size_t longest = options->size * (size_t)options->in_flight;
    pattern = malloc(pattern_period + longest);
    if (!pattern) {
        fputs("loadgen: no memory for the messages\n", stderr);
        exit(2);
    }
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (size_t index = 0; index < pattern_period; index++)
        pattern[index] = next_byte(&state, lines);
    for (size_t index = options->size - 1; lines && index < pattern_period; index += options->size)
        pattern[index] = '\n';
    for (size_t index = 0; index < longest; index++)
        pattern[pattern_period + index] = pattern[index];
}

const unsigned char *pattern_at(int connection, uint64_t position)
{
    uint64_t start = (uint64_t)connection * 613 % 4099 * pattern_unit;
    return pattern + (start + position) % pattern_period;
}

bool check_echo(struct result *result, int connection, uint64_t sent, uint64_t position, const unsigned char *bytes,
                size_t size)
{
    if (position + size > sent) {
        fail_with(result, EXTRA, 1, "connection %d: %zu bytes more than were sent", connection,
                  (size_t)(position + size - sent));
        return false;
    }
    const unsigned char *expected = pattern_at(connection, position);
    if (memcmp(expected, bytes, size) == 0)
        return true;
    size_t at = 0;
    while (expected[at] == bytes[at])
        at++;
    fail_with(result, CORRUPT, 1, "connection %d: byte %llu is 0x%02x, 0x%02x was sent", connection,
              (unsigned long long)(position + at), bytes[at], expected[at]);
    return false;
}

void hold(const struct options *options, uint64_t held)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    printf("{\"event\": \"held\", \"connections\": %llu}\n", (unsigned long long)held);
    fflush(stdout);
    while (poll(&input, 1, (int)(options->hold * 1000)) < 0 && errno == EINTR)
        continue;
}

static uint64_t failures(const struct result *result)
{
    uint64_t all = 0;
    for (int kind = 0; kind < FAILURES; kind++)
        all += result->failures[kind];
    return all;
}

static void print_latencies(const struct histogram *latency)
{
    static const double percents[] = {1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99};
    printf("\"latency_us\": {");
    for (size_t index = 0; index < sizeof percents / sizeof *percents; index++)
        printf("\"p%g\": %.1f, ", percents[index], histogram_percentile(latency, percents[index]) / 1e3);
    printf("\"max\": %.1f}, ", (double)latency->maximum / 1e3);
}

static void print_result(const struct options *options, const struct result *result)
{
    static const char *names[FAILURES] = {"corrupt", "extra", "missing", "closed", "connect", "lost"};
    printf("{\"mode\": \"%s\", \"operations\": %llu, \"seconds\": %.6f, \"rate\": %.1f, ", options->mode_name,
           (unsigned long long)result->operations, result->seconds, result->rate);
    print_latencies(&result->latency);
    printf("\"timeouts\": %llu, \"lost\": %llu, ", (unsigned long long)result->timeouts,
           (unsigned long long)(result->lost + result->failures[LOST]));
    printf("\"errors\": %llu, \"errors_by_kind\": {", (unsigned long long)failures(result));
    for (int kind = 0; kind < FAILURES; kind++)
        printf("%s\"%s\": %llu", kind ? ", " : "", names[kind], (unsigned long long)result->failures[kind]);
    printf("}, \"first_error\": ");
    printf(result->first_failure[0] ? "\"%s\"" : "null", result->first_failure);
    if (options->watched_count && result->usage.server_cpu >= 0)
        printf(", \"server_cpu_seconds\": %.9f, \"server_user_seconds\": %.2f, \"server_system_seconds\": %.2f",
               result->usage.server_cpu, result->usage.server_user, result->usage.server_system);
    printf(", \"server_waited_seconds\": %.6f, \"own_waited_seconds\": %.6f, \"own_cpu_seconds\": %.6f}\n",
           result->usage.server_waited, result->usage.own_waited, result->usage.own_cpu);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct options options = options_parse(argc, argv);
    static struct result result;
#ifndef HAVE_OPENSSL
    if (options.tls) {
        fputs("loadgen: built without OpenSSL, --tls is not there\n", stderr);
        return 2;
    }
#endif
    signal(SIGPIPE, SIG_IGN);
    /* Every loop has a limit of its own; this ends the process if one of them were wrong. */
    double longest_storm = options.limit > 30 ? options.limit + 1 : 31;
    alarm((unsigned)(options.warmup + options.seconds + options.hold + options.repeat * longest_storm
                     + 4 * options.patience) + 90);
    pattern_create(&options);
    switch (options.mode) {
    case MODE_ECHO:
    case MODE_LINES: run_steady(&options, &result); break;
    case MODE_PACED: run_paced(&options, &result); break;
    case MODE_CHURN: run_churn(&options, &result); break;
    case MODE_STORM: run_storm(&options, &result); break;
    case MODE_BURST: run_burst(&options, &result); break;
    case MODE_IDLE: run_idle(&options, &result); break;
    case MODE_UDP: run_datagrams(&options, &result); break;
    case MODE_SESSIONS: run_sessions(&options, &result); break;
    case MODES: break;
    }
    print_result(&options, &result);
    return failures(&result) != 0;
}
