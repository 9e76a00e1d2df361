#include "usage.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double clock_seconds(clockid_t clock)
{
    struct timespec at;
    return clock_gettime(clock, &at) == 0 ? (double)at.tv_sec + (double)at.tv_nsec / 1e9 : -1;
}

/* /proc/PID/schedstat holds the main thread only; the process's CPU clock counts the same nanoseconds for all. */
static double process_seconds(pid_t pid)
{
    clockid_t clock;
    return clock_getcpuclockid(pid, &clock) == 0 ? clock_seconds(clock) : -1;
}

static void add_ticks(pid_t pid, struct usage *usage)
{
    char path[64], text[1024] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    unsigned long user, system;
    long children_user, children_system;
    char *after_name = strrchr(text, ')'); /* the name may hold blanks and brackets */
    if (after_name
        && sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %ld %ld", &user, &system,
                  &children_user, &children_system) == 4) {
        double ticks = (double)sysconf(_SC_CLK_TCK);
        usage->server_user += (double)((long)user + children_user) / ticks;
        usage->server_system += (double)((long)system + children_system) / ticks;
        if (usage->server_cpu >= 0)
            usage->server_cpu += (double)(children_user + children_system) / ticks;
    }
}

static double waited_seconds(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/schedstat", (int)pid);
    FILE *file = fopen(path, "r");
    unsigned long long waited = 0;
    if (!file || fscanf(file, "%*u %llu", &waited) != 1)
        waited = 0;
    if (file)
        fclose(file);
    return (double)waited / 1e9;
}

struct usage usage_now(const struct options *options)
{
    struct usage now = {0};
    for (int index = 0; index < options->watched_count; index++) {
        double used = process_seconds(options->watched[index]);
        now.server_cpu = used < 0 || now.server_cpu < 0 ? -1 : now.server_cpu + used;
        add_ticks(options->watched[index], &now);
        now.server_waited += waited_seconds(options->watched[index]);
    }
    now.own_waited = waited_seconds(getpid());
    now.own_cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    return now;
}

struct usage usage_between(struct usage before, struct usage after)
{
    bool known = before.server_cpu >= 0 && after.server_cpu >= 0;
    return (struct usage){
        .server_cpu = known ? after.server_cpu - before.server_cpu : -1,
        .server_user = after.server_user - before.server_user,
        .server_system = after.server_system - before.server_system,
        .server_waited = after.server_waited - before.server_waited,
        .own_waited = after.own_waited - before.own_waited,
        .own_cpu = after.own_cpu - before.own_cpu,
    };
}
