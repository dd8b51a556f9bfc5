/* A log-linear histogram of durations in nanoseconds: 64 buckets for each power of two, so that
 * every percentile is right to 1.6 % from 1 ns to 18 minutes, in 9 KiB that stay in the cache. */

#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SUB_BITS = 6, SUB_COUNT = 1 << SUB_BITS, BUCKETS = (40 - SUB_BITS + 1) * SUB_COUNT };

struct histogram {
    uint32_t buckets[BUCKETS];
    uint64_t count, sum, max;
};

static inline void histogram_clear(struct histogram *h) { memset(h, 0, sizeof *h); }

static inline unsigned histogram_bucket(uint64_t value)
{
    if (value < SUB_COUNT)
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - SUB_BITS;
    unsigned bucket = (shift + 1) * SUB_COUNT + (unsigned)(value >> shift) - SUB_COUNT;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* The middle of a bucket's range. */
static inline uint64_t histogram_value(unsigned bucket)
{
    if (bucket < SUB_COUNT)
        return bucket;
    unsigned shift = bucket / SUB_COUNT - 1;
    uint64_t low = (uint64_t)(bucket % SUB_COUNT + SUB_COUNT) << shift;
    return low + ((1ull << shift) >> 1);
}

static inline void histogram_add(struct histogram *h, uint64_t value)
{
    h->buckets[histogram_bucket(value)]++;
    h->count++;
    h->sum += value;
    if (value > h->max)
        h->max = value;
}

static inline uint64_t histogram_percentile(const struct histogram *h, double percent)
{
    uint64_t rank = (uint64_t)((double)h->count * percent / 100.0), seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += h->buckets[bucket];
        if (seen > rank || (seen == h->count && seen > 0)) {
            uint64_t value = histogram_value(bucket);
            return value < h->max ? value : h->max;
        }
    }
    return 0;
}

static inline void histogram_print(const struct histogram *h)
{
    printf("{\"count\": %lu, \"mean\": %.0f, \"p50\": %lu, \"p90\": %lu, \"p99\": %lu, "
           "\"p999\": %lu, \"max\": %lu}",
           h->count, h->count ? (double)h->sum / (double)h->count : 0.0,
           histogram_percentile(h, 50), histogram_percentile(h, 90), histogram_percentile(h, 99),
           histogram_percentile(h, 99.9), h->max);
}

#endif
