/* Datagrams to an echo over the loopback: --window of them are under way, and each that comes back
 * is followed by the next one. All are numbered, and each must come back once and as it was.
 *
 * One JSON object goes to standard output. A wrong byte, or none for PATIENCE seconds (one that is
 * lost is never sent again, and a loopback that is not overrun loses none), ends the program with
 * a message on standard error and status 2. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../cputime.h"

enum {
    SIZE = 64,        /* bytes of a datagram */
    WINDOW = 128,     /* at most: more might overrun the socket's buffer */
    PATIENCE = 5,     /* seconds */
    LIMIT = 60,       /* seconds for all but the measuring */
};

static int window = 32, port, server_pid;
static double seconds = 1;
static int sock;
static uint64_t sent, received;
static bool under_way[WINDOW]; /* by number: what is under way are the last few, in any order */

static _Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, 0, 'p'},       {"window", required_argument, 0, 'w'},
        {"seconds", required_argument, 0, 's'},    {"server-pid", required_argument, 0, 'P'},
        {0, 0, 0, 0},
    };
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (name) {
        case 'p': port = atoi(optarg); break;
        case 'w': window = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'P': server_pid = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (port < 1 || window < 1 || window > WINDOW || !(seconds > 0))
        fail("--port and --seconds must be positive, and --window 1-%d", WINDOW);
}

static void connect_socket(void)
{
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = PATIENCE};
    sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&target, sizeof target) != 0 ||
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0)
        fail("cannot open a socket: %s", strerror(errno));
}

/* A datagram is its number, again and again. */
static void send_next(void)
{
    uint64_t datagram[SIZE / sizeof sent];
    for (size_t i = 0; i < sizeof datagram / sizeof *datagram; i++)
        datagram[i] = sent;
    /* The place of this number is free again unless others have overtaken it by a whole turn. */
    if (under_way[sent % WINDOW])
        fail("datagram %lu did not come back, others did", sent - WINDOW);
    under_way[sent++ % WINDOW] = true;
    if (send(sock, datagram, sizeof datagram, 0) != sizeof datagram)
        fail("send: %s", strerror(errno));
}

static void receive(void)
{
    uint64_t datagram[SIZE / sizeof sent + 1]; /* room to see one that is too long */
    ssize_t got = recv(sock, datagram, sizeof datagram, 0);
    if (got < 0 && errno == EAGAIN)
        fail("%lu of %lu datagrams did not come back", sent - received, sent);
    if (got < 0)
        fail("recv: %s", strerror(errno));
    if (got != SIZE || memcmp(datagram, datagram + 1, SIZE - sizeof *datagram) != 0 ||
        datagram[0] >= sent || !under_way[datagram[0] % WINDOW])
        fail("a datagram came back changed, or twice");
    under_way[datagram[0] % WINDOW] = false;
    received++;
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    alarm(LIMIT + (unsigned)seconds);
    connect_socket();
    for (int i = 0; i < window; i++)
        send_next();
    struct cputime start = cputime_now(server_pid, -1);
    uint64_t end = start.wall + (uint64_t)(seconds * 1e9);
    do {
        receive();
        send_next();
    } while (received % 16 != 0 || clock_ns(CLOCK_MONOTONIC) < end);
    struct usage usage = {start, cputime_now(server_pid, -1)};
    uint64_t measured = received;
    while (received < sent)
        receive();
    printf("{\"per_second\": %.1f, ", (double)measured / usage_seconds(usage));
    usage_print(usage, measured);
    printf("}\n");
    return 0;
}
