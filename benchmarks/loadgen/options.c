#include "options.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: loadgen MODE --port N [options]\n"
    "  echo    every connection sends a message, waits for its echo, sends the next\n"
    "  lines   the same with lines, --in-flight of them on each connection\n"
    "  paced   --rate messages a second altogether, on one connection after the other, at random times that\n"
    "          do not depend on the answers; latency runs from the time at which a message was due\n"
    "  churn   connect, one message out and back, close; --connections at a time\n"
    "  storm   --connections connects at once, from connect() to the first echo\n"
    "  burst   as storm, but each client leaves when it is served, and who is not served within --limit\n"
    "          has timed out, which is a result and not an error\n"
    "  idle    open --connections, one echo each, hold them until a line or the end of stdin\n"
    "  udp     --connections sockets, --in-flight datagrams of each on their way; without its reply after\n"
    "          --patience seconds a datagram is lost, which is an error, but with --lossy\n"
    "  sessions  a datagram there and back from each of --connections source addresses, one after the other,\n"
    "          then as idle\n"
    "options: --host 127.0.0.1 --connections 64 --size 64 --in-flight 1 (lines: 16) --repeat 1\n"
    "         --rate 5000 (paced)\n"
    "         --warmup 0.3 --seconds 1 --patience 2 --limit 30 --hold 120 (seconds)\n"
    "         --tls (echo and lines; TLS 1.3, certificate not verified)\n"
    "         --watch PID[,PID...] (report the CPU time these use)\n"
    "         --features (print what was built in, and exit)\n"
    "Prints one line of JSON; exit status 1 when there were errors, 2 when the command line is wrong.\n";

static void fail(const char *message, const char *value)
{
    fprintf(stderr, "loadgen: %s: %s\n%s", message, value, USAGE);
    exit(2);
}

static long number(const char *name, const char *text, long minimum, long maximum)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < minimum || value > maximum)
        fail(name, text);
    return value;
}

static double seconds(const char *name, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value <= 600))
        fail(name, text);
    return value;
}

static void parse_watched(struct options *self, const char *text)
{
    char *copy = strdup(text), *rest = copy;
    for (char *part; (part = strsep(&rest, ","));) {
        if (self->watched_count == MAXIMUM_WATCHED)
            fail("too many processes to watch", text);
        self->watched[self->watched_count++] = (pid_t)number("--watch", part, 1, 1 << 30);
    }
    free(copy);
}

static void set_mode(struct options *self, const char *name)
{
    static const char *names[MODES] = {"echo", "lines", "paced", "churn", "storm", "burst",
                                        "idle", "udp",   "sessions"};
    for (int index = 0; index < MODES; index++)
        if (strcmp(name, names[index]) == 0) {
            self->mode = (enum mode)index;
            self->mode_name = names[index];
            return;
        }
    fail("unknown mode", name);
}

static void set_option(struct options *self, int option, const char *value)
{
    switch (option) {
    case 'a':
        if (inet_pton(AF_INET, value, &self->address.sin_addr) != 1)
            fail("--host must be an IPv4 address", value);
        break;
    case 'p': self->address.sin_port = htons((uint16_t)number("--port", value, 1, 65535)); break;
    case 'c': self->connections = (int)number("--connections", value, 1, 1000000); break;
    case 's': self->size = (size_t)number("--size", value, 1, 1 << 24); break;
    case 'k': self->in_flight = (int)number("--in-flight", value, 1, 4096); break;
    case 'R': self->rate = (double)number("--rate", value, 1, 10000000); break;
    case 'r': self->repeat = (int)number("--repeat", value, 1, 1000); break;
    case 'w': self->warmup = seconds("--warmup", value); break;
    case 'd': self->seconds = seconds("--seconds", value); break;
    case 'P': self->patience = seconds("--patience", value); break;
    case 'L': self->limit = seconds("--limit", value); break;
    case 'H': self->hold = seconds("--hold", value); break;
    case 't': self->tls = true; break;
    case 'l': self->lossy = true; break;
    case 'W': parse_watched(self, value); break;
    case 'f':
#ifdef HAVE_OPENSSL
        puts("tls");
#endif
        exit(0);
    case 'h': fputs(USAGE, stdout); exit(0);
    default: exit(2);
    }
}

struct options options_parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"host", 1, 0, 'a'}, {"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"size", 1, 0, 's'},
        {"in-flight", 1, 0, 'k'}, {"repeat", 1, 0, 'r'}, {"warmup", 1, 0, 'w'}, {"seconds", 1, 0, 'd'},
        {"patience", 1, 0, 'P'}, {"limit", 1, 0, 'L'}, {"hold", 1, 0, 'H'}, {"tls", 0, 0, 't'},
        {"lossy", 0, 0, 'l'}, {"rate", 1, 0, 'R'},
        {"watch", 1, 0, 'W'}, {"features", 0, 0, 'f'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0},
    };
    struct options self = {
        .address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
        .connections = 64, .size = 64, .repeat = 1, .warmup = 0.3, .seconds = 1, .patience = 2,
        .limit = 30, .hold = 120, .rate = 5000,
    };
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;)
        set_option(&self, option, optarg);
    if (optind != argc - 1)
        fail("one mode is needed", optind < argc ? argv[optind + 1] : "none given");
    set_mode(&self, argv[optind]);
    if (!self.in_flight)
        self.in_flight = self.mode == MODE_LINES ? 16 : 1;
    if (self.mode == MODE_PACED)
        self.in_flight = PACED_IN_FLIGHT;
    if (!self.address.sin_port)
        fail("--port", "is needed");
    if (self.mode == MODE_LINES && self.size < 2)
        fail("--size", "a line has at least two bytes");
    if (self.mode == MODE_SESSIONS && self.size > 65507)
        fail("--size", "a datagram has at most 65507 bytes");
    if (self.mode == MODE_UDP && (self.size < 8 || self.size > 65507))
        fail("--size", "a datagram has 8 to 65507 bytes, the first 8 of them its number");
    if ((double)self.size * self.in_flight > 1 << 26)
        fail("--size times --in-flight", "more than 64 MiB on one connection");
    if (self.tls && self.mode != MODE_ECHO && self.mode != MODE_LINES)
        fail("--tls goes with echo and lines, not with", self.mode_name);
    return self;
}
