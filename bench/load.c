/* The load: one thread that keeps many connections busy, checks every byte that comes back, and
 * says what it cost the server.
 *
 * Each connection's outgoing bytes are a stream of its own: a repeating random pattern, entered at
 * another place per connection. The pattern's length is a prime, so that consecutive messages
 * differ, and it lies in memory once, so that making and checking content is a pointer and a memcmp.
 *
 * A message has a sender and one or more receivers: in an echo they are the same connection, in a
 * relay two of a pair, in a push the first connection and all of them. When every receiver has a
 * message whole, the message is complete, and in a closed loop the sender sends the next one.
 *
 * Tasks:
 *   loop   closed loop for --seconds after --warmup, --depth messages in flight per sender
 *   burst  every connection sends one message at once; the time until the last is back
 *   hold   open the connections, one echo each, say so, keep them until standard input ends
 *   churn  connect, one echo, orderly close in both directions, again; --connections at a time
 *
 * One JSON object goes to standard output. Any wrong byte, lost connection or exceeded --limit ends
 * the program with a message on standard error and status 2.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cputime.h"
#include "histogram.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum {
    CHUNK = 1 << 20,          /* most bytes per send or receive */
    EVENTS = 256,             /* most readiness events per poll */
    UNANSWERED = 128,         /* opened and not answered yet: fits any system's accept queue */
    PORTS_PER_SOURCE = 20000, /* fewer than the usual range of ephemeral ports */
    CHURN_SOURCES = 200,      /* a closed port rests for a minute: spread them */
};

/* ---- Options ---- */

enum shape { ECHO, RELAY, PUSH };

static struct {
    const char *task;
    enum shape shape;
    int port, connections, idle, depth, server_pid, server_core, limit;
    size_t size;
    double seconds, warmup;
} option = {.connections = 64, .depth = 1, .size = 128, .seconds = 1, .warmup = 0.3,
            .server_core = -1, .limit = 60};

static _Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        fail("out of memory");
    return memset(memory, 0, bytes);
}

static enum shape parse_shape(const char *name)
{
    if (strcmp(name, "echo") == 0)
        return ECHO;
    if (strcmp(name, "relay") == 0)
        return RELAY;
    if (strcmp(name, "push") == 0)
        return PUSH;
    fail("unknown shape %s", name);
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, 0, 'p'},       {"connections", required_argument, 0, 'c'},
        {"idle", required_argument, 0, 'i'},       {"size", required_argument, 0, 'm'},
        {"depth", required_argument, 0, 'd'},      {"seconds", required_argument, 0, 's'},
        {"warmup", required_argument, 0, 'w'},     {"shape", required_argument, 0, 'h'},
        {"server-pid", required_argument, 0, 'P'}, {"server-core", required_argument, 0, 'C'},
        {"limit", required_argument, 0, 'l'},      {0, 0, 0, 0},
    };
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (name) {
        case 'p': option.port = atoi(optarg); break;
        case 'c': option.connections = atoi(optarg); break;
        case 'i': option.idle = atoi(optarg); break;
        case 'm': option.size = strtoul(optarg, NULL, 10); break;
        case 'd': option.depth = atoi(optarg); break;
        case 's': option.seconds = atof(optarg); break;
        case 'w': option.warmup = atof(optarg); break;
        case 'h': option.shape = parse_shape(optarg); break;
        case 'P': option.server_pid = atoi(optarg); break;
        case 'C': option.server_core = atoi(optarg); break;
        case 'l': option.limit = atoi(optarg); break;
        default: exit(2);
        }
    }
    option.task = optind < argc ? argv[optind] : "loop";
    if (option.port < 1 || option.connections < 1 || option.size < 1 || option.depth < 1)
        fail("--port, --connections, --size and --depth must be positive");
    if (option.shape == RELAY && option.connections % 2 != 0)
        fail("a relay needs an even number of connections");
    if (option.shape == PUSH && option.depth != 1)
        fail("a push goes one message at a time");
}

/* ---- Content ---- */

static char content[65521 + CHUNK], incoming[CHUNK];
static uint32_t period;

static void make_content(void)
{
    uint64_t x = 0x9e3779b97f4a7c15u;
    period = option.size <= 2048 ? 4093 : 65521; /* small messages shall not fill the cache */
    for (size_t i = 0; i < period; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        content[i] = (char)(x >> 32);
    }
    for (size_t i = period; i < sizeof content; i++)
        content[i] = content[i - period];
}

static uint32_t advance(uint32_t offset, size_t bytes)
{
    return (uint32_t)((offset + bytes) % period);
}

/* ---- Connections ---- */

struct connection {
    int fd;
    uint32_t send_offset, receive_offset; /* in the sender's content */
    size_t unsent, received;              /* bytes to send; bytes of the message that is arriving */
    struct connection *sender;            /* whose messages arrive here */
    int deliveries;                       /* receivers that have the message at the tail whole */
    uint32_t head, tail;                  /* messages sent, messages complete */
    uint64_t *sent_at, first_sent_at;     /* of the messages between tail and head: a ring */
    uint64_t opened_at, round_trips;
    bool closing;
} __attribute__((aligned(64)));

static struct connection *all, **senders;
static int all_count, sender_count, receivers = 1;
static int epoll;
static bool closed_loop, measuring, churning;
static uint64_t outstanding, completed; /* messages in flight; messages complete while measuring */
static struct histogram latency;

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static struct sockaddr_in loopback(uint32_t host, int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host)};
}

static uint32_t source_of_next(void)
{
    static uint32_t opened;
    uint32_t number = opened++;
    return 1 + (churning ? number % CHURN_SOURCES : number / PORTS_PER_SOURCE);
}

static void connect_one(struct connection *c)
{
    const int on = 1;
    struct sockaddr_in source = loopback(source_of_next(), 0), target = loopback(0, option.port);
    c->opened_at = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) != 0)
        fail("bind: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) != 0)
        fail("connect: %s", strerror(errno));
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0) /* only now: connecting here is immediate */
        fail("fcntl: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void transmit(struct connection *c)
{
    while (c->unsent > 0) {
        size_t want = c->unsent < CHUNK ? c->unsent : CHUNK;
        ssize_t sent = send(c->fd, content + c->send_offset, want, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return; /* the next EPOLLOUT edge goes on */
        if (sent < 0)
            fail("connection %ld: send: %s", (long)(c - all), strerror(errno));
        c->send_offset = advance(c->send_offset, (size_t)sent);
        c->unsent -= (size_t)sent;
    }
}

static void send_messages(struct connection *c, int count, uint64_t now)
{
    for (int i = 0; i < count; i++)
        c->sent_at[c->head++ % (uint32_t)option.depth] = now;
    c->unsent += (size_t)count * option.size;
    outstanding += (uint64_t)count;
    transmit(c);
}

static void begin_close(struct connection *c)
{
    c->closing = true;
    if (shutdown(c->fd, SHUT_WR) != 0)
        fail("shutdown: %s", strerror(errno));
}

/* Takes note of `count` whole messages that have arrived at one receiver of the sender. */
static void messages_arrived(struct connection *receiver, int count, uint64_t now)
{
    struct connection *sender = receiver->sender;
    int complete = 0;
    for (int i = 0; i < count; i++) {
        if (++sender->deliveries < receivers)
            continue;
        sender->deliveries = 0;
        uint64_t sent_at = sender->sent_at[sender->tail++ % (uint32_t)option.depth];
        outstanding--;
        complete++;
        if (measuring && !churning) {
            histogram_add(&latency, now - sent_at);
            sender->round_trips++;
            completed++;
        }
    }
    if (complete > 0 && churning)
        begin_close(sender);
    else if (complete > 0 && closed_loop)
        send_messages(sender, complete, now);
}

static void check(struct connection *c, size_t got)
{
    if (memcmp(incoming, content + c->receive_offset, got) != 0)
        fail("connection %ld: wrong bytes came back", (long)(c - all));
    c->receive_offset = advance(c->receive_offset, got);
}

static void closed_by_server(struct connection *c);

static void receive(struct connection *c, bool hung_up)
{
    for (;;) {
        ssize_t got = recv(c->fd, incoming, sizeof incoming, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got < 0)
            fail("connection %ld: recv: %s", (long)(c - all), strerror(errno));
        if (got == 0) {
            closed_by_server(c);
            return;
        }
        check(c, (size_t)got);
        c->received += (size_t)got;
        if (c->received >= option.size) {
            int count = (int)(c->received / option.size);
            c->received %= option.size;
            messages_arrived(c, count, now_ns());
        }
        if ((size_t)got < sizeof incoming && !hung_up)
            return; /* a short read has emptied the socket */
    }
}

static void poll_once(int timeout)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, timeout);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (i + 2 < count)
            __builtin_prefetch(events[i + 2].data.ptr, 1);
        if (c->unsent > 0)
            transmit(c);
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            receive(c, (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    }
}

static void finish_outstanding(void)
{
    while (outstanding > 0)
        poll_once(100);
}

/* ---- Opening ---- */

static void prepare(struct connection *c, int number)
{
    c->sender = option.shape == RELAY && number % 2 != 0 ? c - 1 : c;
    c->send_offset = (uint32_t)((uint64_t)number * 977u % period);
    c->receive_offset = c->sender == c ? c->send_offset
                                       : (uint32_t)((uint64_t)(number - 1) * 977u % period);
    c->sent_at = option.depth == 1 ? &c->first_sent_at : allocate((size_t)option.depth * 8);
}

/* Opens all connections, one message each, with few unanswered. */
static struct usage open_all(void)
{
    struct cputime start = cputime_now(option.server_pid, option.server_core);
    for (int i = 0; i < all_count; i++) {
        struct connection *c = &all[i];
        prepare(c, i);
        connect_one(c);
        if (option.shape != RELAY || i % 2 != 0)
            send_messages(c->sender, 1, now_ns());
        poll_once(0);
        /* A push server must know its first connection before it sees another. */
        while (outstanding >= (option.shape == PUSH && i == 0 ? 1 : UNANSWERED))
            poll_once(100);
    }
    finish_outstanding();
    return (struct usage){start, cputime_now(option.server_pid, option.server_core)};
}

/* From now on the first connection's messages go to everybody. */
static void begin_push(void)
{
    for (int i = 0; i < all_count; i++) {
        all[i].sender = &all[0];
        all[i].receive_offset = all[0].send_offset;
    }
    receivers = all_count;
}

static void choose_senders(void)
{
    int stride = option.shape == RELAY ? 2 : 1;
    sender_count = option.shape == PUSH ? 1 : option.connections / stride;
    senders = allocate((size_t)sender_count * sizeof *senders);
    for (int i = 0; i < sender_count; i++) /* spread over the idle ones */
        senders[i] = &all[(long)i * stride * all_count / option.connections];
}

/* ---- Report ---- */

static int compare_counts(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* How evenly the senders were served, by their round trips. */
static void print_fairness(void)
{
    uint64_t *counts = allocate((size_t)sender_count * sizeof *counts);
    double mean = 0, squares = 0;
    for (int i = 0; i < sender_count; i++) {
        counts[i] = senders[i]->round_trips;
        mean += (double)counts[i] / sender_count;
    }
    for (int i = 0; i < sender_count; i++)
        squares += ((double)counts[i] - mean) * ((double)counts[i] - mean) / sender_count;
    qsort(counts, (size_t)sender_count, sizeof *counts, compare_counts);
    int last = sender_count - 1;
    printf("\"fairness\": {\"min\": %lu, \"p1\": %lu, \"median\": %lu, \"p99\": %lu, \"max\": %lu, "
           "\"cv\": %.4f}",
           counts[0], counts[last / 100], counts[sender_count / 2], counts[last - last / 100],
           counts[last], mean > 0 ? sqrt(squares) / mean : 0.0);
    free(counts);
}

static void print_opening(struct usage opening)
{
    printf("\"open\": {\"seconds\": %.6f, ", usage_seconds(opening));
    usage_print(opening, (uint64_t)all_count);
    printf("}");
}

static void print_report(struct usage opening, struct usage measured)
{
    double seconds = usage_seconds(measured), rate = (double)completed / seconds;
    printf("{");
    print_opening(opening);
    printf(", \"seconds\": %.6f, \"round_trips\": %lu, \"per_second\": %.1f, "
           "\"mb_per_second\": %.3f, ",
           seconds, completed, rate, rate * receivers * (double)option.size / 1e6);
    usage_print(measured, completed);
    printf(", \"latency_ns\": ");
    histogram_print(&latency);
    printf(", ");
    print_fairness();
    printf("}\n");
}

/* ---- Tasks ---- */

static struct cputime begin_measuring(void)
{
    histogram_clear(&latency);
    completed = 0;
    for (int i = 0; i < all_count; i++)
        all[i].round_trips = 0;
    measuring = true;
    return cputime_now(option.server_pid, option.server_core);
}

static struct usage end_measuring(struct cputime start)
{
    measuring = false;
    return (struct usage){start, cputime_now(option.server_pid, option.server_core)};
}

static void poll_for(double seconds)
{
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < end)
        poll_once(10);
}

static struct usage measure_loop(void)
{
    poll_for(option.warmup);
    struct cputime start = begin_measuring();
    poll_for(option.seconds);
    return end_measuring(start);
}

static void task_loop(void)
{
    struct usage opening = open_all();
    if (option.shape == PUSH)
        begin_push();
    closed_loop = true;
    for (int i = 0; i < sender_count; i++)
        send_messages(senders[i], option.depth, now_ns());
    struct usage measured = measure_loop();
    closed_loop = false;
    finish_outstanding();
    print_report(opening, measured);
}

static void task_burst(void)
{
    struct usage opening = open_all();
    struct cputime start = begin_measuring();
    for (int i = 0; i < sender_count; i++) {
        send_messages(senders[i], 1, now_ns());
        if (i % 64 == 63)
            poll_once(0);
    }
    finish_outstanding();
    print_report(opening, end_measuring(start));
}

static void task_hold(void)
{
    char byte;
    struct usage opening = open_all();
    printf("{");
    print_opening(opening);
    printf("}\n");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
}

static void task_churn(void)
{
    churning = true;
    struct cputime start = cputime_now(option.server_pid, option.server_core);
    for (int i = 0; i < all_count; i++) {
        prepare(&all[i], i);
        connect_one(&all[i]);
        send_messages(&all[i], 1, now_ns());
    }
    struct usage opening = {start, cputime_now(option.server_pid, option.server_core)};
    print_report(opening, measure_loop());
}

static void closed_by_server(struct connection *c)
{
    if (!c->closing)
        fail("connection %ld: closed by the server", (long)(c - all));
    if (close(c->fd) != 0)
        fail("close: %s", strerror(errno));
    c->closing = false;
    if (measuring) {
        histogram_add(&latency, now_ns() - c->opened_at);
        c->round_trips++;
        completed++;
    }
    connect_one(c);
    send_messages(c, 1, now_ns());
}

static void give_up(int signal)
{
    static const char text[] = "load: not done within the limit\n";
    (void)signal;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(3);
    _exit(2);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    parse_options(argc, argv);
    signal(SIGALRM, give_up);
    alarm((unsigned)option.limit);
    make_content();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    all_count = option.connections + option.idle;
    if (epoll < 0)
        fail("epoll_create: %s", strerror(errno));
    all = allocate((size_t)all_count * sizeof *all);
    choose_senders();

    if (strcmp(option.task, "loop") == 0)
        task_loop();
    else if (strcmp(option.task, "burst") == 0)
        task_burst();
    else if (strcmp(option.task, "hold") == 0)
        task_hold();
    else if (strcmp(option.task, "churn") == 0)
        task_churn();
    else
        fail("unknown task %s", option.task);
    return 0;
}
