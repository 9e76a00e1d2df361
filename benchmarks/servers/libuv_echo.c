/* libuv from C: the limit for everything that stands on libuv. */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { BACKLOG = 1024, BUFFER = 1 << 18 };

struct reply {
    uv_write_t request;
    char data[];
};

static char buffer[BUFFER]; /* one is enough: what is left of it after a write is copied */

static void on_closed(uv_handle_t *handle)
{
    free(handle);
}

static void on_written(uv_write_t *request, int status)
{
    if (status < 0 && !uv_is_closing((uv_handle_t *)request->handle))
        uv_close((uv_handle_t *)request->handle, on_closed);
    free(request);
}

static void send_rest(uv_stream_t *stream, const char *data, size_t size)
{
    struct reply *reply = malloc(sizeof *reply + size);
    memcpy(reply->data, data, size);
    uv_buf_t part = uv_buf_init(reply->data, (unsigned)size);
    uv_write(&reply->request, stream, &part, 1, on_written);
}

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *got)
{
    if (size < 0) {
        uv_close((uv_handle_t *)stream, on_closed);
        return;
    }
    uv_buf_t part = uv_buf_init(got->base, (unsigned)size);
    int written = uv_try_write(stream, &part, 1);
    size_t done = written > 0 ? (size_t)written : 0;
    if (done < (size_t)size)
        send_rest(stream, got->base + done, (size_t)size - done);
}

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *given)
{
    (void)handle, (void)suggested;
    *given = uv_buf_init(buffer, sizeof buffer);
}

static void on_connection(uv_stream_t *listener, int status)
{
    if (status < 0)
        return;
    uv_tcp_t *client = malloc(sizeof *client);
    uv_tcp_init(listener->loop, client);
    if (uv_accept(listener, (uv_stream_t *)client) != 0) {
        uv_close((uv_handle_t *)client, on_closed);
        return;
    }
    uv_tcp_nodelay(client, 1);
    uv_read_start((uv_stream_t *)client, give_buffer, on_read);
}

int main(int argc, char **argv)
{
    if (argc != 3 || strcmp(argv[1], "--port") != 0)
        return 2;
    struct sockaddr_in address;
    uv_tcp_t listener;
    uv_ip4_addr("127.0.0.1", atoi(argv[2]), &address);
    uv_tcp_init(uv_default_loop(), &listener);
    if (uv_tcp_bind(&listener, (const struct sockaddr *)&address, 0) != 0
        || uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection) != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
