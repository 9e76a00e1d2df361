#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifdef HAVE_OPENSSL
#include <openssl/ssl.h>

static SSL_CTX *tls_context(void)
{
    static SSL_CTX *context;
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
        SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_read_ahead(context, 1); /* one read for a record, not one for its header and one for its body */
    }
    return context;
}

static bool tls_handshake(struct channel *self)
{
    SSL *tls = SSL_new(tls_context());
    self->tls = tls;
    return SSL_set_fd(tls, self->fd) == 1 && SSL_connect(tls) == 1;
}

static ssize_t tls_outcome(SSL *tls, int done)
{
    if (done > 0)
        return done;
    switch (SSL_get_error(tls, done)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: return CHANNEL_AGAIN;
    case SSL_ERROR_ZERO_RETURN: return CHANNEL_CLOSED;
    default: return CHANNEL_BROKEN;
    }
}
#endif

static bool set_up_socket(struct channel *self)
{
    self->tls = NULL;
    self->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (self->fd < 0)
        return false;
    int on = 1;
    return setsockopt(self->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
}

static bool fail(struct channel *self)
{
    int error = errno;
    channel_close(self);
    errno = error;
    return false;
}

static bool set_non_blocking(struct channel *self)
{
    return fcntl(self->fd, F_SETFL, fcntl(self->fd, F_GETFL) | O_NONBLOCK) == 0;
}

bool channel_open(struct channel *self, const struct options *options)
{
    if (!set_up_socket(self))
        return fail(self);
    struct timeval limit = {(time_t)options->patience, (suseconds_t)(options->patience * 1e6) % 1000000};
    setsockopt(self->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(self->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(self->fd, (const struct sockaddr *)&options->address, sizeof options->address) != 0)
        return fail(self);
#ifdef HAVE_OPENSSL
    if (options->tls && !tls_handshake(self))
        return fail(self);
#endif
    return set_non_blocking(self) || fail(self);
}

bool channel_begin(struct channel *self, const struct options *options, unsigned source)
{
    if (!set_up_socket(self) || !set_non_blocking(self))
        return fail(self);
    if (ntohl(options->address.sin_addr.s_addr) >> 24 == 127) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f080001u + source)};
        int on = 1;
        setsockopt(self->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(self->fd, (const struct sockaddr *)&from, sizeof from) != 0)
            return fail(self);
    }
    if (connect(self->fd, (const struct sockaddr *)&options->address, sizeof options->address) != 0
        && errno != EINPROGRESS)
        return fail(self);
    return true;
}

static ssize_t plain_outcome(ssize_t done)
{
    if (done >= 0)
        return done;
    return errno == EAGAIN || errno == EINTR || errno == ENOTCONN ? CHANNEL_AGAIN : CHANNEL_BROKEN;
}

ssize_t channel_read(struct channel *self, void *buffer, size_t size)
{
#ifdef HAVE_OPENSSL
    if (self->tls)
        return tls_outcome(self->tls, SSL_read(self->tls, buffer, (int)size));
#endif
    return plain_outcome(recv(self->fd, buffer, size, 0));
}

ssize_t channel_write(struct channel *self, const void *data, size_t size)
{
#ifdef HAVE_OPENSSL
    if (self->tls)
        return tls_outcome(self->tls, SSL_write(self->tls, data, (int)size));
#endif
    ssize_t done = plain_outcome(send(self->fd, data, size, MSG_NOSIGNAL));
    return done == 0 ? CHANNEL_AGAIN : done;
}

bool channel_holds_bytes(const struct channel *self)
{
#ifdef HAVE_OPENSSL
    if (self->tls)
        return SSL_has_pending(self->tls);
#endif
    return self->tls != NULL;
}

void channel_close(struct channel *self)
{
#ifdef HAVE_OPENSSL
    if (self->tls) {
        SSL_shutdown(self->tls);
        SSL_free(self->tls);
    }
#endif
    if (self->fd >= 0)
        close(self->fd);
    *self = (struct channel){.fd = -1};
}
