/* recvmmsg and sendmmsg from C, as many datagrams as there are in one call: the limit for every server. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { RECEIVE_BUFFER = 4 << 20, BATCH = 64, BUFFER = 1 << 16 };

static char buffers[BATCH][BUFFER];
static struct sockaddr_in peers[BATCH];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

static void prepare(void)
{
    for (int index = 0; index < BATCH; index++) {
        parts[index] = (struct iovec){buffers[index], BUFFER};
        messages[index].msg_hdr = (struct msghdr){
            .msg_name = &peers[index], .msg_namelen = sizeof peers[index],
            .msg_iov = &parts[index], .msg_iovlen = 1,
        };
    }
}

/* What cannot be sent is lost, as datagrams are. */
static void echo_a_batch(int fd)
{
    int count = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
    for (int index = 0; index < count; index++)
        parts[index].iov_len = messages[index].msg_len;
    for (int done = 0; done < count;) {
        int sent = sendmmsg(fd, messages + done, (unsigned)(count - done), 0);
        done += sent > 0 ? sent : 1;
    }
    for (int index = 0; index < count; index++) {
        parts[index].iov_len = BUFFER;
        messages[index].msg_hdr.msg_namelen = sizeof peers[index];
    }
}

static int bound(int port)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), receive_buffer = RECEIVE_BUFFER;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((unsigned short)port);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    return bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? fd : -1;
}

int main(int argc, char **argv)
{
    if (argc != 3 || strcmp(argv[1], "--port") != 0)
        return 2;
    int fd = bound(atoi(argv[2])), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        return 1;
    prepare();
    puts("ready");
    fflush(stdout);
    for (;;)
        if (epoll_wait(epoll, &event, 1, -1) > 0)
            echo_a_batch(fd);
        else if (errno != EINTR)
            return 1;
}
