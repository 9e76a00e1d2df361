#ifndef OPTIONS_H
#define OPTIONS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum mode {
    MODE_ECHO, MODE_LINES, MODE_PACED, MODE_CHURN, MODE_STORM, MODE_BURST, MODE_IDLE, MODE_UDP, MODE_SESSIONS, MODES
};
enum { MAXIMUM_WATCHED = 16, PACED_IN_FLIGHT = 1024 };

struct options {
    enum mode mode;
    const char *mode_name;
    struct sockaddr_in address;
    int connections;   /* echo, lines, paced, churn, udp: at a time; storm, burst, idle, sessions: altogether */
    size_t size;       /* bytes of a message, of a line with its newline */
    int in_flight;     /* messages on their way on each connection; paced: at most */
    double rate;       /* paced: messages a second on all connections together */
    int repeat;        /* storms or bursts one after the other */
    double warmup;     /* seconds */
    double seconds;    /* measured */
    double patience;   /* seconds without the missing answers before they count as errors */
    double limit;      /* burst: seconds after which a client that was not served has timed out */
    bool lossy;        /* udp: a lost datagram is counted, and is no error */
    double hold;       /* idle, sessions: seconds to wait at most for the word to close */
    bool tls;
    pid_t watched[MAXIMUM_WATCHED]; /* processes whose CPU time is reported */
    int watched_count;
};

/* Exits with status 2 and a message when the command line is wrong. */
struct options options_parse(int argc, char **argv);

#endif
