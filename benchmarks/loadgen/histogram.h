/* Latencies in nanoseconds, in buckets of at most 1.6 % width: 64 to each power of two. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BITS = 6, HISTOGRAM_STEPS = 1 << HISTOGRAM_BITS, HISTOGRAM_SIZE = (65 - HISTOGRAM_BITS) * HISTOGRAM_STEPS };

struct histogram {
    uint64_t counts[HISTOGRAM_SIZE];
    uint64_t total;
    uint64_t maximum;
};

static inline unsigned histogram_index(uint64_t value)
{
    if (value < HISTOGRAM_STEPS)
        return (unsigned)value;
    unsigned shift = 63 - (unsigned)__builtin_clzll(value) - HISTOGRAM_BITS;
    return (shift << HISTOGRAM_BITS) + (unsigned)(value >> shift);
}

static inline void histogram_record(struct histogram *self, uint64_t value)
{
    self->counts[histogram_index(value)]++;
    self->total++;
    if (value > self->maximum)
        self->maximum = value;
}

/* The middle of the bucket that `index` names. */
static inline double histogram_value(unsigned index)
{
    if (index < 2 * HISTOGRAM_STEPS)
        return index;
    unsigned shift = (index >> HISTOGRAM_BITS) - 1;
    uint64_t low = (uint64_t)(index - (shift << HISTOGRAM_BITS)) << shift;
    return (double)low + (double)(1ULL << shift) / 2;
}

static inline double histogram_percentile(const struct histogram *self, double percent)
{
    uint64_t wanted = (uint64_t)((double)self->total * percent / 100.0), seen = 0;
    for (unsigned index = 0; index < HISTOGRAM_SIZE; index++) {
        seen += self->counts[index];
        if (seen > wanted)
            return histogram_value(index) < (double)self->maximum ? histogram_value(index) : (double)self->maximum;
    }
    return (double)self->maximum;
}

#endif
