/* Connections that stay open, and the messages on them: what the modes with such connections share. */
#ifndef STEADY_H
#define STEADY_H

#include "channel.h"
#include "loadgen.h"

struct session {
    int number;
    struct channel channel;
    uint64_t begun;      /* messages */
    uint64_t finished;   /* messages echoed in full */
    uint64_t sent;       /* bytes */
    uint64_t received;   /* bytes */
    uint64_t *begun_at;  /* ring of the messages in flight */
    bool wants_to_write;
};

struct steady {
    const struct options *options;
    struct result *result;
    struct session *sessions;
    int alive;
    int epoll;
    bool measuring;
    uint64_t counted_from; /* while measuring: messages that were begun before this are not counted */
    bool stopping;         /* an answer does not begin the next message */
};

/* Opens all connections, and has one echo on each. False, and the reason is counted, when one cannot be opened. */
bool steady_open(struct steady *self, const struct options *options, struct result *result);

/* Begins `count` messages and sends what the socket takes. Their latency runs from `at`. */
void steady_begin(struct steady *self, struct session *session, uint64_t count, uint64_t at);

/* Deals with what has come in, waiting for it until `until` at most; not at all when that is not after `now`. */
void steady_turn(struct steady *self, uint64_t until, uint64_t now);

/* Gives up a connection. */
void steady_drop(struct steady *self, struct session *session);

/* The number of messages whose echo is not there yet. */
uint64_t steady_unanswered(const struct steady *self);

/* Fills in the result from the latencies that were recorded, for a window of `duration` nanoseconds. */
void steady_conclude(struct steady *self, struct usage before, uint64_t duration);

/* Waits for the last answers, looks for bytes that nobody asked for, closes all. */
void steady_close(struct steady *self);

#endif
