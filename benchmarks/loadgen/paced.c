/* paced: messages leave when their time has come, whether the answers to earlier ones are there or not. */
#include "steady.h"

#include <math.h>

/* The latency of a message runs from the time at which it was due, so that a server that pauses is charged with all
 * that were due meanwhile, and not only with the one that it paused on (this is known as coordinated omission).
 *
 * The gaps are exponentially distributed, as between messages of many clients that know nothing of each other. The
 * generator starts from the same number in each run: every server is sent the same messages at the same times. */
struct pace {
    uint64_t random; /* the generator's state */
    double gap;      /* nanoseconds from one message to the next, on average */
    double due;      /* of the next message, in nanoseconds of the clock */
    uint64_t begun;  /* messages; they go to one connection after the other */
};

static void schedule_next(struct pace *self)
{
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    double fraction = ((double)(self->random >> 11) + 1) / 9007199254740992.0; /* 2^53: above 0, at most 1 */
    self->due -= log(fraction) * self->gap;
}

static void begin_next(struct pace *self, struct steady *steady)
{
    struct session *session = &steady->sessions[self->begun++ % (uint64_t)steady->options->connections];
    uint64_t waiting = session->begun - session->finished;
    if (session->channel.fd >= 0 && waiting == (uint64_t)steady->options->in_flight) {
        fail_with(steady->result, MISSING, waiting, "connection %d: %llu messages wait for their echo", session->number,
                  (unsigned long long)waiting);
        steady_drop(steady, session);
    }
    if (session->channel.fd >= 0)
        steady_begin(steady, session, 1, (uint64_t)self->due);
    schedule_next(self);
}

/* From `start` for `duration` nanoseconds. The clock and the sockets are polled, because a sleep would end too late. */
static void send_when_due(struct pace *self, struct steady *steady, uint64_t start, uint64_t duration)
{
    uint64_t end = start + duration;
    self->due = (double)start;
    schedule_next(self);
    for (uint64_t now = nanoseconds(); steady->alive && self->due < (double)end; now = nanoseconds()) {
        while (self->due < (double)end && self->due <= (double)now)
            begin_next(self, steady);
        steady_turn(steady, 0, now);
    }
}

static void await_answers(struct steady *steady)
{
    uint64_t now = nanoseconds(), limit = now + (uint64_t)(steady->options->patience * 1e9);
    for (; now < limit && steady->alive && steady_unanswered(steady); now = nanoseconds())
        steady_turn(steady, 0, now);
}

/* All messages that were due in the window are counted, also those whose answers come after it. */
static void measure(struct steady *steady)
{
    const struct options *options = steady->options;
    struct pace pace = {.random = 0x9e3779b97f4a7c15u, .gap = 1e9 / options->rate};
    uint64_t duration = (uint64_t)(options->seconds * 1e9);
    send_when_due(&pace, steady, nanoseconds(), (uint64_t)(options->warmup * 1e9));
    struct usage before = usage_now(options);
    steady->counted_from = nanoseconds();
    steady->measuring = true;
    send_when_due(&pace, steady, steady->counted_from, duration);
    await_answers(steady);
    steady_conclude(steady, before, duration);
}

void run_paced(const struct options *options, struct result *result)
{
    struct steady steady;
    if (!steady_open(&steady, options, result))
        return;
    steady.stopping = true;
    measure(&steady);
    steady_close(&steady);
}
