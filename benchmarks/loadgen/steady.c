/* echo and lines: connections that stay open, each with a fixed number of messages in flight. */
#include "steady.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

enum { EVENTS = 1024, BUFFER = 1 << 18 };
enum { LINGER_NS = 30000000 }; /* how long to look for bytes that nobody asked for, after the last echo */

void steady_drop(struct steady *self, struct session *session)
{
    channel_close(&session->channel);
    self->alive--;
}

static void watch(struct steady *self, struct session *session, int operation, bool writable)
{
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = session};
    epoll_ctl(self->epoll, operation, session->channel.fd, &event);
    session->wants_to_write = writable;
}

/* Sends what has begun and is not out yet. */
static void flush(struct steady *self, struct session *session)
{
    uint64_t queued = session->begun * self->options->size;
    while (session->sent < queued) {
        ssize_t done = channel_write(&session->channel, pattern_at(session->number, session->sent),
                                     (size_t)(queued - session->sent));
        if (done == CHANNEL_AGAIN)
            break;
        if (done <= 0) {
            fail_with(self->result, CLOSED, 1, "connection %d: send: %s", session->number, strerror(errno));
            steady_drop(self, session);
            return;
        }
        session->sent += (uint64_t)done;
    }
    bool blocked = session->sent < queued;
    if (blocked != session->wants_to_write)
        watch(self, session, EPOLL_CTL_MOD, blocked);
}

void steady_begin(struct steady *self, struct session *session, uint64_t count, uint64_t at)
{
    for (uint64_t index = 0; index < count; index++)
        session->begun_at[session->begun++ % (uint64_t)self->options->in_flight] = at;
    flush(self, session);
}

static void finish_messages(struct steady *self, struct session *session)
{
    uint64_t now = nanoseconds(), before = session->finished;
    uint64_t finished = session->received / self->options->size;
    for (; session->finished < finished; session->finished++) {
        uint64_t begun_at = session->begun_at[session->finished % (uint64_t)self->options->in_flight];
        if (self->measuring && begun_at >= self->counted_from)
            histogram_record(&self->result->latency, now - begun_at);
    }
    if (finished > before && !self->stopping)
        steady_begin(self, session, finished - before, now);
}

/* False when nothing more can be read for now, or the connection is gone. */
static bool read_once(struct steady *self, struct session *session)
{
    static unsigned char buffer[BUFFER];
    ssize_t size = channel_read(&session->channel, buffer, sizeof buffer);
    if (size == CHANNEL_AGAIN)
        return false;
    if (size <= 0) {
        fail_with(self->result, CLOSED, 1, "connection %d: closed by the server after %llu bytes", session->number,
                  (unsigned long long)session->received);
        steady_drop(self, session);
        return false;
    }
    if (!check_echo(self->result, session->number, session->sent, session->received, buffer, (size_t)size)) {
        steady_drop(self, session);
        return false;
    }
    session->received += (uint64_t)size;
    return true;
}

static void on_readable(struct steady *self, struct session *session)
{
    bool more;
    do
        more = read_once(self, session) && session->channel.tls
            && (session->received < session->sent || channel_holds_bytes(&session->channel));
    while (more);
    if (session->channel.fd >= 0)
        finish_messages(self, session);
}

void steady_turn(struct steady *self, uint64_t until, uint64_t now)
{
    struct epoll_event events[EVENTS];
    int timeout = until > now ? (int)((until - now) / 1000000) + 1 : 0;
    int count = epoll_wait(self->epoll, events, EVENTS, timeout);
    for (int index = 0; index < count; index++) {
        struct session *session = events[index].data.ptr;
        if (events[index].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && session->channel.fd >= 0)
            on_readable(self, session);
        if (events[index].events & EPOLLOUT && session->channel.fd >= 0)
            flush(self, session);
    }
}

static uint64_t run_until(struct steady *self, uint64_t until)
{
    uint64_t now = nanoseconds();
    while (now < until && self->alive) {
        steady_turn(self, until, now);
        now = nanoseconds();
    }
    return now;
}

static bool open_sessions(struct steady *self)
{
    for (int number = 0; number < self->options->connections; number++) {
        struct session *session = &self->sessions[number];
        session->number = number;
        session->begun_at = calloc((size_t)self->options->in_flight, sizeof *session->begun_at);
        errno = 0;
        if (!channel_open(&session->channel, self->options)) {
            fail_with(self->result, CONNECT, 1, "connection %d: %s", number, errno ? strerror(errno) : "TLS handshake");
            return false;
        }
        self->alive++;
        watch(self, session, EPOLL_CTL_ADD, false);
    }
    return true;
}

uint64_t steady_unanswered(const struct steady *self)
{
    uint64_t count = 0;
    for (int number = 0; number < self->options->connections; number++)
        if (self->sessions[number].channel.fd >= 0)
            count += self->sessions[number].begun - self->sessions[number].finished;
    return count;
}

/* Waits for the answers that are still out, beginning nothing new. */
static void await_answers(struct steady *self)
{
    self->stopping = true;
    uint64_t now = nanoseconds(), limit = now + (uint64_t)(self->options->patience * 1e9);
    while (now < limit && self->alive && steady_unanswered(self))
        now = run_until(self, now + 2000000 < limit ? now + 2000000 : limit);
    self->stopping = false;
}

/* Waits for the last answers, then a moment for bytes that nobody asked for. */
static void settle(struct steady *self)
{
    await_answers(self);
    uint64_t missing = steady_unanswered(self);
    if (missing)
        fail_with(self->result, MISSING, missing, "%llu messages without their echo %.1f s after the last was sent",
                  (unsigned long long)missing, self->options->patience);
    self->stopping = true;
    run_until(self, nanoseconds() + LINGER_NS);
}

/* One echo on every connection before the clock runs, so that the server has accepted all of them: without this the
 * first messages of some of 512 connections were seen to wait for most of a second, inside the window. */
static void greet(struct steady *self)
{
    for (int number = 0; number < self->options->connections; number++)
        steady_begin(self, &self->sessions[number], 1, nanoseconds());
    await_answers(self);
}

bool steady_open(struct steady *self, const struct options *options, struct result *result)
{
    *self = (struct steady){.options = options, .result = result, .epoll = epoll_create1(EPOLL_CLOEXEC)};
    self->sessions = calloc((size_t)options->connections, sizeof *self->sessions);
    if (!open_sessions(self))
        return false;
    greet(self);
    return true;
}

void steady_conclude(struct steady *self, struct usage before, uint64_t duration)
{
    struct result *result = self->result;
    self->measuring = false;
    result->usage = usage_between(before, usage_now(self->options));
    result->operations = result->latency.total;
    result->seconds = (double)duration / 1e9;
    result->rate = (double)result->operations / result->seconds;
}

void steady_close(struct steady *self)
{
    settle(self);
    for (int number = 0; number < self->options->connections; number++)
        if (self->sessions[number].channel.fd >= 0)
            channel_close(&self->sessions[number].channel);
}

static void measure(struct steady *self)
{
    const struct options *options = self->options;
    uint64_t start = run_until(self, nanoseconds() + (uint64_t)(options->warmup * 1e9));
    struct usage before = usage_now(options);
    self->measuring = true;
    uint64_t end = run_until(self, start + (uint64_t)(options->seconds * 1e9));
    steady_conclude(self, before, end - start);
}

void run_steady(const struct options *options, struct result *result)
{
    struct steady self;
    if (!steady_open(&self, options, result))
        return;
    for (int number = 0; number < options->connections; number++)
        if (self.sessions[number].begun == self.sessions[number].finished && self.sessions[number].channel.fd >= 0)
            steady_begin(&self, &self.sessions[number], (uint64_t)options->in_flight, nanoseconds());
    measure(&self);
    steady_close(&self);
}
