/* sessions: one datagram there and back from each of many source addresses. A socket is closed when it has its reply,
 * so that the server has many peers and this process few descriptors. */
#include "loadgen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { AT_A_TIME = 64, LONGEST = 1 << 16, MOST_LOST = 20 };
/* The ports are bound by number, because a port that the kernel chooses may have been another session's before. */
enum { FIRST_SOURCE = 0x7f000101 /* 127.0.1.1 */, FIRST_PORT = 40000, PORTS = 10000 };

struct sources {
    const struct options *options;
    struct result *result;
    uint32_t next; /* the addresses that were tried */
};

struct session {
    int fd;
    int number;
    uint64_t sent_at;
};

static bool bind_next(struct sources *self, int fd)
{
    for (int tries = 0; tries < PORTS; tries++) {
        uint32_t index = self->next++;
        struct sockaddr_in source = {
            .sin_family = AF_INET,
            .sin_addr.s_addr = htonl(FIRST_SOURCE + index / PORTS),
            .sin_port = htons((uint16_t)(FIRST_PORT + index % PORTS)),
        };
        if (bind(fd, (const struct sockaddr *)&source, sizeof source) == 0)
            return true;
        if (errno != EADDRINUSE)
            return false;
    }
    return false;
}

static void set_patience(int fd, double seconds)
{
    struct timeval patience = {.tv_sec = (time_t)seconds};
    patience.tv_usec = (suseconds_t)((seconds - (double)patience.tv_sec) * 1e6);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

static bool open_session(struct sources *self, struct session *session, int number)
{
    const struct options *options = self->options;
    session->number = number;
    session->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (session->fd < 0)
        return false;
    set_patience(session->fd, options->patience);
    session->sent_at = nanoseconds();
    return bind_next(self, session->fd)
           && connect(session->fd, (const struct sockaddr *)&options->address, sizeof options->address) == 0
           && send(session->fd, pattern_at(number, 0), options->size, 0) >= 0;
}

static void close_session(struct session *session)
{
    if (session->fd >= 0)
        close(session->fd);
    session->fd = -1;
}

static void finish(struct sources *self, struct session *session)
{
    static unsigned char reply[LONGEST];
    struct result *result = self->result;
    if (session->fd < 0)
        return;
    ssize_t size = recv(session->fd, reply, sizeof reply, 0);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        fail_with(result, LOST, 1, "session %d: no reply within %.1f s", session->number, self->options->patience);
    else if (size < 0)
        fail_with(result, CONNECT, 1, "session %d: %s", session->number, strerror(errno));
    else if ((size_t)size != self->options->size
             || memcmp(reply, pattern_at(session->number, 0), (size_t)size) != 0)
        fail_with(result, CORRUPT, 1, "session %d: the reply has other bytes", session->number);
    else
        histogram_record(&result->latency, nanoseconds() - session->sent_at);
    close_session(session);
}

static bool one_batch(struct sources *self, int first, int count)
{
    struct session sessions[AT_A_TIME];
    bool opened = true;
    for (int index = 0; index < count; index++)
        if (!open_session(self, &sessions[index], first + index)) {
            fail_with(self->result, CONNECT, 1, "session %d: %s", first + index, strerror(errno));
            close_session(&sessions[index]);
            opened = false;
        }
    for (int index = 0; index < count; index++)
        finish(self, &sessions[index]);
    return opened && self->result->failures[LOST] < MOST_LOST;
}

void run_sessions(const struct options *options, struct result *result)
{
    struct sources self = {.options = options, .result = result};
    struct usage before = usage_now(options);
    uint64_t start = nanoseconds();
    bool going = true;
    for (int first = 0; going && first < options->connections; first += AT_A_TIME) {
        int rest = options->connections - first;
        going = one_batch(&self, first, rest < AT_A_TIME ? rest : AT_A_TIME);
    }
    result->seconds = (double)(nanoseconds() - start) / 1e9;
    result->usage = usage_between(before, usage_now(options));
    result->operations = result->latency.total;
    result->rate = (double)result->operations / result->seconds;
    hold(options, result->operations);
}
