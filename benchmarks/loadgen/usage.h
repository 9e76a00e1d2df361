/* CPU time of other processes, with the threads that have ended already. */
#ifndef USAGE_H
#define USAGE_H

#include "options.h"

struct usage {
    double server_cpu;    /* seconds; from the processes' CPU clocks (ns), negative when one cannot be read, and
                           * in ticks of 10 ms for their children that have been waited for */
    double server_user;   /* seconds, in ticks of 10 ms: only good for the share of user and system time */
    double server_system;
    double server_waited; /* seconds that the main thread of the servers was ready and something else ran */
    double own_cpu;       /* seconds of this process */
    double own_waited;
};

struct usage usage_now(const struct options *options);
struct usage usage_between(struct usage before, struct usage after);

#endif
