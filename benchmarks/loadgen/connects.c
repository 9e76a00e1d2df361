/* churn, storm, burst and idle: many connections, one message on each. */
#include "channel.h"
#include "loadgen.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 1024, BUFFER = 1 << 16, AT_ONCE_WHEN_IDLE = 128 };
enum { SOURCES = 1000, PORTS_OF_A_SOURCE = 1000 };
static const double ESTABLISH_LIMIT = 60, STORM_LIMIT = 30; /* seconds */

struct visit {
    int number;
    struct channel channel; /* fd < 0: not open */
    uint64_t begun_at;
    uint64_t sent, received; /* bytes */
    bool finished;
};

struct visits {
    const struct options *options;
    struct result *result;
    struct visit *slots;
    int slot_count;
    int open;         /* not finished yet */
    uint64_t begun;   /* of all time */
    uint64_t served;
    int epoll;
    bool close_when_served;
    bool measuring;
};

static void abandon(struct visits *self, struct visit *visit)
{
    channel_close(&visit->channel);
    self->open -= !visit->finished;
    visit->finished = true;
}

static void watch(struct visits *self, struct visit *visit, int operation)
{
    bool unsent = visit->sent < self->options->size;
    struct epoll_event event = {.events = EPOLLIN | (unsent ? EPOLLOUT : 0u), .data.ptr = visit};
    epoll_ctl(self->epoll, operation, visit->channel.fd, &event);
}

/* Sends what the socket takes; false when the connection broke. */
static bool send_message(struct visits *self, struct visit *visit)
{
    while (visit->sent < self->options->size) {
        ssize_t done = channel_write(&visit->channel, pattern_at(visit->number, visit->sent),
                                     self->options->size - (size_t)visit->sent);
        if (done == CHANNEL_AGAIN)
            return true;
        if (done < 0) {
            fail_with(self->result, CONNECT, 1, "connection %d: %s", visit->number, strerror(errno));
            abandon(self, visit);
            return false;
        }
        visit->sent += (uint64_t)done;
    }
    return true;
}

static void begin(struct visits *self, struct visit *visit)
{
    uint64_t number = self->begun++;
    *visit = (struct visit){.number = (int)(number % 4099), .begun_at = nanoseconds()};
    unsigned source = (unsigned)(self->close_when_served ? number : number / PORTS_OF_A_SOURCE) % SOURCES;
    self->open++;
    if (!channel_begin(&visit->channel, self->options, source)) {
        fail_with(self->result, CONNECT, 1, "connection %d: %s", visit->number, strerror(errno));
        abandon(self, visit);
        return;
    }
    /* On loopback the connection stands when connect() is back, so the first send mostly works at once. */
    if (send_message(self, visit))
        watch(self, visit, EPOLL_CTL_ADD);
}

static void serve(struct visits *self, struct visit *visit)
{
    visit->finished = true;
    self->open--;
    self->served++;
    if (self->measuring)
        histogram_record(&self->result->latency, nanoseconds() - visit->begun_at);
    if (self->close_when_served)
        channel_close(&visit->channel);
}

static void on_readable(struct visits *self, struct visit *visit)
{
    static unsigned char buffer[BUFFER];
    ssize_t size = channel_read(&visit->channel, buffer, sizeof buffer);
    if (size == CHANNEL_AGAIN)
        return;
    if (size <= 0)
        fail_with(self->result, CLOSED, 1, "connection %d: closed by the server after %llu bytes", visit->number,
                  (unsigned long long)visit->received);
    if (size <= 0
        || !check_echo(self->result, visit->number, visit->sent, visit->received, buffer, (size_t)size)) {
        abandon(self, visit);
        return;
    }
    visit->received += (uint64_t)size;
    if (visit->received == self->options->size)
        serve(self, visit);
}

static void on_event(struct visits *self, struct visit *visit, uint32_t events)
{
    if (visit->channel.fd >= 0 && events & EPOLLOUT && visit->sent < self->options->size)
        if (send_message(self, visit) && visit->sent == self->options->size)
            watch(self, visit, EPOLL_CTL_MOD);
    if (visit->channel.fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(self, visit);
}

static void turn(struct visits *self, int timeout, bool refill)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(self->epoll, events, EVENTS, timeout);
    for (int index = 0; index < count; index++) {
        struct visit *visit = events[index].data.ptr;
        on_event(self, visit, events[index].events);
        if (refill && visit->finished)
            begin(self, visit);
    }
}

/* Until `until`; with `refill` a new connection for each that has ended, else until none is unfinished. */
static uint64_t run_until(struct visits *self, uint64_t until, bool refill)
{
    uint64_t now = nanoseconds();
    while (now < until && (refill || self->open)) {
        turn(self, (int)((until - now) / 1000000) + 1, refill);
        now = nanoseconds();
    }
    return now;
}

static void count_missing(struct visits *self, double waited)
{
    if (self->open)
        fail_with(self->result, MISSING, (uint64_t)self->open, "%d connections without their echo after %.1f s",
                  self->open, waited);
}

static void close_all(struct visits *self)
{
    for (int index = 0; index < self->slot_count; index++)
        if (self->slots[index].channel.fd >= 0)
            channel_close(&self->slots[index].channel);
    self->open = 0;
}

static struct visits visits_create(const struct options *options, struct result *result)
{
    struct visits self = {
        .options = options, .result = result, .slot_count = options->connections,
        .epoll = epoll_create1(EPOLL_CLOEXEC), .slots = calloc((size_t)options->connections, sizeof(struct visit)),
    };
    for (int index = 0; index < self.slot_count; index++)
        self.slots[index].channel.fd = -1;
    return self;
}

void run_churn(const struct options *options, struct result *result)
{
    struct visits self = visits_create(options, result);
    self.close_when_served = true;
    for (int index = 0; index < self.slot_count; index++)
        begin(&self, &self.slots[index]);
    uint64_t start = run_until(&self, nanoseconds() + (uint64_t)(options->warmup * 1e9), true);
    struct usage before = usage_now(options);
    self.measuring = true;
    uint64_t end = run_until(&self, start + (uint64_t)(options->seconds * 1e9), true);
    self.measuring = false;
    result->usage = usage_between(before, usage_now(options));
    result->operations = result->latency.total;
    result->seconds = (double)(end - start) / 1e9;
    result->rate = (double)result->operations / result->seconds;
    run_until(&self, nanoseconds() + (uint64_t)(options->patience * 1e9), false);
    count_missing(&self, options->patience);
    close_all(&self);
}

static int compare_doubles(const void *left, const void *right)
{
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

/* Who is still waiting has waited so long at least, and is in the latencies with that. */
static void count_timeouts(struct visits *self)
{
    uint64_t now = nanoseconds();
    for (int index = 0; index < self->slot_count; index++)
        if (!self->slots[index].finished) {
            histogram_record(&self->result->latency, now - self->slots[index].begun_at);
            self->result->timeouts++;
        }
}

static double one_storm(struct visits *self)
{
    bool burst = self->options->mode == MODE_BURST;
    double limit = burst ? self->options->limit : STORM_LIMIT;
    uint64_t start = nanoseconds();
    for (int index = 0; index < self->slot_count; index++)
        begin(self, &self->slots[index]);
    uint64_t until = (burst ? nanoseconds() : start) + (uint64_t)(limit * 1e9); /* the last one has its time, too */
    uint64_t end = run_until(self, until, false);
    if (burst)
        count_timeouts(self);
    else
        count_missing(self, limit);
    close_all(self);
    return (double)(end - start) / 1e9;
}

static void storms(struct visits *self)
{
    const struct options *options = self->options;
    struct result *result = self->result;
    double *durations = calloc((size_t)options->repeat, sizeof *durations);
    self->measuring = true;
    struct usage before = usage_now(options);
    for (int index = 0; index < options->repeat; index++) {
        durations[index] = one_storm(self);
        usleep(100000); /* the server has its time to close, as between two real storms */
    }
    result->usage = usage_between(before, usage_now(options));
    result->operations = self->served;
    qsort(durations, (size_t)options->repeat, sizeof *durations, compare_doubles);
    result->seconds = durations[options->repeat / 2];
    result->rate = options->connections / result->seconds;
    free(durations);
}

void run_storm(const struct options *options, struct result *result)
{
    struct visits self = visits_create(options, result);
    storms(&self);
}

/* The clients leave when they are served, so that servers with fewer threads than clients can serve them all. */
void run_burst(const struct options *options, struct result *result)
{
    struct visits self = visits_create(options, result);
    self.close_when_served = true;
    storms(&self);
    result->rate = (double)result->operations / options->repeat / result->seconds;
}

static void establish(struct visits *self)
{
    uint64_t limit = nanoseconds() + (uint64_t)(ESTABLISH_LIMIT * 1e9);
    while (self->begun < (uint64_t)self->slot_count && nanoseconds() < limit) {
        while (self->open < AT_ONCE_WHEN_IDLE && self->begun < (uint64_t)self->slot_count)
            begin(self, &self->slots[self->begun]);
        turn(self, 100, false);
    }
    run_until(self, limit, false);
    count_missing(self, ESTABLISH_LIMIT);
}

void run_idle(const struct options *options, struct result *result)
{
    struct visits self = visits_create(options, result);
    self.measuring = true;
    struct usage before = usage_now(options);
    uint64_t start = nanoseconds();
    establish(&self);
    result->seconds = (double)(nanoseconds() - start) / 1e9;
    result->usage = usage_between(before, usage_now(options));
    result->operations = self.served;
    result->rate = (double)self.served / result->seconds;
    hold(options, self.served);
    turn(&self, 0, false); /* held connections must still be there, and silent */
    close_all(&self);
}
