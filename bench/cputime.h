/* What a process and a core did between two moments: CPU time of all threads of the server (exact,
 * from its process clock), its split into user and system (ticks of /proc/PID/stat, so good to
 * 10 ms), how long the server's core was not idle (/proc/stat), and the load's own CPU time. */

#ifndef CPUTIME_H
#define CPUTIME_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct cputime {
    uint64_t wall, server, load; /* nanoseconds */
    uint64_t user, system;       /* ticks of the server */
    uint64_t core_busy, core_all; /* ticks of its core */
};

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) != 0)
        return 0;
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void read_process_ticks(pid_t pid, struct cputime *c)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    /* The command's name may contain anything: the numbers start behind its last bracket. */
    char *fields = strrchr(text, ')');
    if (fields)
        sscanf(fields + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &c->user,
               &c->system);
}

static inline void read_core_ticks(int core, struct cputime *c)
{
    char line[512], name[16];
    FILE *file = fopen("/proc/stat", "r");
    if (!file)
        return;
    size_t length = (size_t)snprintf(name, sizeof name, "cpu%d ", core);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, name, length) != 0)
            continue;
        uint64_t user, nice, system, idle, iowait, irq, softirq, steal;
        if (sscanf(line + length, "%lu %lu %lu %lu %lu %lu %lu %lu", &user, &nice, &system, &idle,
                   &iowait, &irq, &softirq, &steal) == 8) {
            c->core_busy = user + nice + system + irq + softirq + steal;
            c->core_all = c->core_busy + idle + iowait;
        }
        break;
    }
    fclose(file);
}

static inline struct cputime cputime_now(pid_t server, int core)
{
    struct cputime c = {0};
    clockid_t clock;
    if (server > 0) {
        if (clock_getcpuclockid(server, &clock) == 0)
            c.server = clock_ns(clock);
        read_process_ticks(server, &c);
    }
    if (core >= 0)
        read_core_ticks(core, &c);
    c.load = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    c.wall = clock_ns(CLOCK_MONOTONIC);
    return c;
}

/* From one moment to another. */
struct usage {
    struct cputime from, to;
};

static inline double usage_seconds(struct usage u) { return (double)(u.to.wall - u.from.wall) / 1e9; }

static inline double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0.0;
}

/* Prints "cpu_us" (of the server, per piece of work) and friends. */
static inline void usage_print(struct usage u, uint64_t work)
{
    struct cputime a = u.from, b = u.to;
    uint64_t wall = b.wall - a.wall, server = b.server - a.server;
    uint64_t user = b.user - a.user, system = b.system - a.system;
    double us = work ? (double)server / 1000.0 / (double)work : 0.0;
    double user_part = share(user, user + system);
    printf("\"cpu_us\": %.4f, \"cpu_us_user\": %.4f, \"cpu_us_system\": %.4f, "
           "\"server_busy\": %.4f, \"core_busy\": %.4f, \"load_busy\": %.4f",
           us, us * user_part, us * (1.0 - user_part), share(server, wall),
           share(b.core_busy - a.core_busy, b.core_all - a.core_all), share(b.load - a.load, wall));
}

#endif
