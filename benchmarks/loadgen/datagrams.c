/* udp: sockets that each have a fixed number of datagrams on their way, and look for lost and repeated ones. */
#include "loadgen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, BUFFER = 1 << 16 };
enum { LOOK_NS = 20000000 };   /* between two looks for datagrams that are overdue */
enum { LINGER_NS = 30000000 }; /* how long to look for replies that nobody asked for, after the last one */

/* One datagram on its way. Its number is that of the flight plus a multiple of the flights that the socket has. */
struct flight {
    uint64_t number;
    uint64_t sent_at;
    bool waiting;
    uint64_t lost;    /* the number after that of the last one counted as lost, whose reply may still come */
};

struct client {
    int number;
    int fd; /* < 0: given up */
    struct flight *flights;
};

struct datagrams {
    const struct options *options;
    struct result *result;
    struct client *clients;
    int alive;
    uint64_t waiting; /* flights */
    uint64_t looked_at;
    int epoll;
    bool measuring;
    bool stopping;
};

static void drop(struct datagrams *self, struct client *client)
{
    for (int index = 0; index < self->options->in_flight; index++)
        self->waiting -= client->flights[index].waiting;
    close(client->fd);
    client->fd = -1;
    self->alive--;
}

/* The bytes of a datagram: its number, then its piece of the socket's part of the pattern. */
static void compose(const struct datagrams *self, const struct client *client, uint64_t number, unsigned char *message)
{
    memcpy(message, pattern_at(client->number, number * self->options->size), self->options->size);
    memcpy(message, &number, sizeof number);
}

static void begin(struct datagrams *self, struct client *client, struct flight *flight)
{
    static unsigned char message[BUFFER];
    compose(self, client, flight->number, message);
    flight->sent_at = nanoseconds();
    flight->waiting = true;
    self->waiting++;
    if (send(client->fd, message, self->options->size, MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
        fail_with(self->result, CONNECT, 1, "socket %d: send: %s", client->number, strerror(errno));
        drop(self, client);
    }
}

static void next(struct datagrams *self, struct client *client, struct flight *flight)
{
    flight->waiting = false;
    self->waiting--;
    flight->number += (uint64_t)self->options->in_flight;
    if (!self->stopping)
        begin(self, client, flight);
}

/* A reply that no flight waits for: too late, or a repeated or invented one. */
static void on_unexpected(struct datagrams *self, struct client *client, struct flight *flight, uint64_t number)
{
    if (flight->lost && number + 1 == flight->lost)
        flight->lost = 0;
    else if (number < flight->number)
        fail_with(self->result, EXTRA, 1, "socket %d: datagram %llu was answered again", client->number,
                  (unsigned long long)number);
    else
        fail_with(self->result, CORRUPT, 1, "socket %d: an answer to datagram %llu, which was not sent",
                  client->number, (unsigned long long)number);
}

static void on_reply(struct datagrams *self, struct client *client, const unsigned char *reply, size_t size)
{
    static unsigned char expected[BUFFER];
    uint64_t number = 0;
    if (size != self->options->size) {
        fail_with(self->result, CORRUPT, 1, "socket %d: a reply of %zu bytes, %zu were sent", client->number, size,
                  self->options->size);
        return;
    }
    memcpy(&number, reply, sizeof number);
    struct flight *flight = &client->flights[number % (uint64_t)self->options->in_flight];
    if (!flight->waiting || flight->number != number) {
        on_unexpected(self, client, flight, number);
        return;
    }
    compose(self, client, number, expected);
    if (memcmp(expected, reply, size) != 0)
        fail_with(self->result, CORRUPT, 1, "socket %d: datagram %llu came back with other bytes", client->number,
                  (unsigned long long)number);
    else if (self->measuring)
        histogram_record(&self->result->latency, nanoseconds() - flight->sent_at);
    next(self, client, flight);
}

static void on_readable(struct datagrams *self, struct client *client)
{
    static unsigned char buffer[BUFFER];
    ssize_t size = recv(client->fd, buffer, sizeof buffer, 0);
    if (size >= 0)
        on_reply(self, client, buffer, (size_t)size);
    else if (errno != EAGAIN && errno != EINTR) {
        fail_with(self->result, CONNECT, 1, "socket %d: %s", client->number, strerror(errno));
        drop(self, client);
    }
}

static void count_lost(struct datagrams *self, struct client *client, struct flight *flight)
{
    if (self->options->lossy)
        self->result->lost++;
    else
        fail_with(self->result, LOST, 1, "socket %d: no reply to datagram %llu within %.1f s", client->number,
                  (unsigned long long)flight->number, self->options->patience);
}

static void look_for_lost(struct datagrams *self, uint64_t now)
{
    uint64_t patience = (uint64_t)(self->options->patience * 1e9);
    self->looked_at = now;
    for (int number = 0; number < self->options->connections; number++) {
        struct client *client = &self->clients[number];
        for (int index = 0; index < self->options->in_flight && client->fd >= 0; index++) {
            struct flight *flight = &client->flights[index];
            if (!flight->waiting || now < flight->sent_at + patience)
                continue;
            count_lost(self, client, flight);
            flight->lost = flight->number + 1;
            next(self, client, flight);
        }
    }
}

/* Until `until`, or, `while_waiting`, until no reply is waited for any more. */
static uint64_t run_until(struct datagrams *self, uint64_t until, bool while_waiting)
{
    struct epoll_event events[EVENTS];
    uint64_t now = nanoseconds();
    while (now < until && self->alive && (self->waiting || !while_waiting)) {
        uint64_t rest = until - now < LOOK_NS ? until - now : LOOK_NS;
        int count = epoll_wait(self->epoll, events, EVENTS, (int)(rest / 1000000) + 1);
        for (int index = 0; index < count; index++) {
            struct client *client = events[index].data.ptr;
            if (client->fd >= 0)
                on_readable(self, client);
        }
        now = nanoseconds();
        if (now >= self->looked_at + LOOK_NS)
            look_for_lost(self, now);
    }
    return now;
}

static bool open_client(struct datagrams *self, int number)
{
    struct client *client = &self->clients[number];
    client->number = number;
    client->flights = calloc((size_t)self->options->in_flight, sizeof *client->flights);
    for (int index = 0; index < self->options->in_flight; index++)
        client->flights[index].number = (uint64_t)index;
    client->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0)
        return false;
    self->alive++;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(self->epoll, EPOLL_CTL_ADD, client->fd, &event);
    return connect(client->fd, (const struct sockaddr *)&self->options->address, sizeof self->options->address) == 0;
}

static void measure(struct datagrams *self)
{
    const struct options *options = self->options;
    struct result *result = self->result;
    uint64_t start = run_until(self, nanoseconds() + (uint64_t)(options->warmup * 1e9), false);
    struct usage before = usage_now(options);
    self->measuring = true;
    uint64_t end = run_until(self, start + (uint64_t)(options->seconds * 1e9), false);
    self->measuring = false;
    result->usage = usage_between(before, usage_now(options));
    result->operations = result->latency.total;
    result->seconds = (double)(end - start) / 1e9;
    result->rate = (double)result->operations / result->seconds;
}

/* Waits for the last replies, or until they count as lost, then a moment for those that nobody asked for. */
static void settle(struct datagrams *self)
{
    self->stopping = true;
    run_until(self, nanoseconds() + (uint64_t)(self->options->patience * 1e9) + 2 * LOOK_NS, true);
    run_until(self, nanoseconds() + LINGER_NS, false);
}

void run_datagrams(const struct options *options, struct result *result)
{
    struct datagrams self = {.options = options, .result = result, .epoll = epoll_create1(EPOLL_CLOEXEC)};
    self.clients = calloc((size_t)options->connections, sizeof *self.clients);
    for (int number = 0; number < options->connections; number++)
        if (!open_client(&self, number)) {
            fail_with(result, CONNECT, 1, "socket %d: %s", number, strerror(errno));
            return;
        }
    self.looked_at = nanoseconds();
    for (int number = 0; number < options->connections; number++)
        for (int index = 0; index < options->in_flight && self.clients[number].fd >= 0; index++)
            begin(&self, &self.clients[number], &self.clients[number].flights[index]);
    measure(&self);
    settle(&self);
    for (int number = 0; number < options->connections; number++)
        if (self.clients[number].fd >= 0)
            close(self.clients[number].fd);
}
