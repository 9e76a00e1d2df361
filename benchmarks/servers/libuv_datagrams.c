/* libuv's UDP from C: the limit for everything that stands on libuv. */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { RECEIVE_BUFFER = 4 << 20, BUFFER = 1 << 16 };

static char buffer[BUFFER]; /* one is enough: what cannot be sent at once is copied */

struct reply {
    uv_udp_send_t request;
    char data[];
};

static void on_sent(uv_udp_send_t *request, int status)
{
    (void)status;
    free(request);
}

static void send_later(uv_udp_t *socket, const uv_buf_t *got, const struct sockaddr *peer)
{
    struct reply *reply = malloc(sizeof *reply + got->len);
    memcpy(reply->data, got->base, got->len);
    uv_buf_t part = uv_buf_init(reply->data, (unsigned)got->len);
    if (uv_udp_send(&reply->request, socket, &part, 1, peer, on_sent) != 0)
        free(reply);
}

static void on_datagram(uv_udp_t *socket, ssize_t size, const uv_buf_t *got, const struct sockaddr *peer, unsigned flags)
{
    (void)flags;
    if (size < 0 || !peer) /* an error, or nothing more to read */
        return;
    uv_buf_t part = uv_buf_init(got->base, (unsigned)size);
    if (uv_udp_try_send(socket, &part, 1, peer) == UV_EAGAIN)
        send_later(socket, &part, peer);
}

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *given)
{
    (void)handle, (void)suggested;
    *given = uv_buf_init(buffer, sizeof buffer);
}

int main(int argc, char **argv)
{
    if (argc != 3 || strcmp(argv[1], "--port") != 0)
        return 2;
    struct sockaddr_in address;
    uv_udp_t socket;
    int receive_buffer = RECEIVE_BUFFER;
    uv_ip4_addr("127.0.0.1", atoi(argv[2]), &address);
    uv_udp_init(uv_default_loop(), &socket);
    if (uv_udp_bind(&socket, (const struct sockaddr *)&address, 0) != 0
        || uv_recv_buffer_size((uv_handle_t *)&socket, &receive_buffer) != 0
        || uv_udp_recv_start(&socket, give_buffer, on_datagram) != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
