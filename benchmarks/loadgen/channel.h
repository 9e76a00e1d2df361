/* One TCP connection, plain or TLS, non-blocking once it is open. */
#ifndef CHANNEL_H
#define CHANNEL_H

#include "options.h"

#include <sys/types.h>

enum { CHANNEL_CLOSED = 0, CHANNEL_AGAIN = -1, CHANNEL_BROKEN = -2 };

struct channel {
    int fd;
    void *tls; /* SSL *, or NULL */
};

/* Connects, and does the TLS handshake, waiting for both at most `patience` seconds. False with errno or a TLS error. */
bool channel_open(struct channel *self, const struct options *options);

/* Begins to connect without waiting, from the loopback address with this number: the ports of one address do not
 * last for many connections. False with errno. */
bool channel_begin(struct channel *self, const struct options *options, unsigned source);

/* Both give the number of bytes, or one of the CHANNEL_ values. */
ssize_t channel_read(struct channel *self, void *buffer, size_t size);
ssize_t channel_write(struct channel *self, const void *data, size_t size);

/* Whether bytes that were already taken from the socket wait for a read; epoll does not tell about them. */
bool channel_holds_bytes(const struct channel *self);

void channel_close(struct channel *self);

#endif
