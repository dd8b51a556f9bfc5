/* The floor: an echo server with nothing between it and the system. One thread, one edge-triggered
 * epoll, one shared buffer; what a socket does not take is kept until the socket is writable, and
 * nothing more is read from that peer meanwhile. Usage: floor PORT [ROLE] (0: any; printed on stdout).
 *
 * In the role "relay" the first connection is coupled with the second, and so on, and splice(2) moves
 * what comes on one to the other. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 128, BACKLOG = 4096, PIPE = 256 * 1024 };

struct peer {
    int fd;
    size_t start, end; /* of what is kept */
    char *kept;
    struct peer *partner;  /* in a relay */
    int to_pipe, from_pipe; /* what came from this one, on its way to the partner */
    ssize_t held;
};

static char buffer[BUFFER];
static int relays;
static struct peer *single;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void drop(struct peer *peer)
{
    close(peer->fd);
    free(peer->kept);
    free(peer);
}

/* 1: all sent; 0: the socket is full; -1: broken. Advances *start. */
static int send_all(int fd, const char *data, size_t *start, size_t end)
{
    while (*start < end) {
        ssize_t sent = send(fd, data + *start, end - *start, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? 0 : -1;
        *start += (size_t)sent;
    }
    return 1;
}

static int keep(struct peer *peer, const char *data, size_t size)
{
    peer->kept = malloc(size);
    if (!peer->kept)
        return -1;
    memcpy(peer->kept, data, size);
    peer->start = 0;
    peer->end = size;
    return 0;
}

/* Echoes all there is; -1 once the peer is gone. */
static int serve(struct peer *peer, int hung_up)
{
    if (peer->kept) {
        int state = send_all(peer->fd, peer->kept, &peer->start, peer->end);
        if (state <= 0)
            return state;
        free(peer->kept);
        peer->kept = NULL;
    }
    for (;;) {
        ssize_t got = recv(peer->fd, buffer, BUFFER, 0);
        if (got < 0)
            return errno == EAGAIN ? 0 : -1;
        if (got == 0)
            return -1;
        size_t start = 0;
        int state = send_all(peer->fd, buffer, &start, (size_t)got);
        if (state < 0)
            return -1;
        if (state == 0)
            return keep(peer, buffer + start, (size_t)got - start);
        if (got < BUFFER && !hung_up)
            return 0; /* a short read has emptied the socket */
    }
}

/* Moves what has come from one to its partner; -1 once either is gone. */
static int pass_on(struct peer *from)
{
    const unsigned flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK;
    for (;;) {
        if (from->held == 0)
            from->held = splice(from->fd, NULL, from->to_pipe, NULL, PIPE, flags);
        if (from->held <= 0) {
            int state = from->held < 0 && errno == EAGAIN ? 0 : -1;
            from->held = 0;
            return state;
        }
        ssize_t sent =
            splice(from->from_pipe, NULL, from->partner->fd, NULL, (size_t)from->held, flags);
        if (sent < 0)
            return errno == EAGAIN ? 0 : -1;
        from->held -= sent;
    }
}

static void open_pipe(struct peer *peer)
{
    int ends[2];
    if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0)
        die("pipe2");
    peer->from_pipe = ends[0];
    peer->to_pipe = ends[1];
    fcntl(ends[1], F_SETPIPE_SZ, PIPE);
}

/* The second of a pair is what both wait for. */
static void couple(struct peer *peer)
{
    open_pipe(peer);
    if (!single) {
        single = peer;
        return;
    }
    peer->partner = single;
    single->partner = peer;
    single = NULL;
}

static int relay(struct peer *peer)
{
    if (!peer->partner)
        return 0;
    return pass_on(peer) < 0 || pass_on(peer->partner) < 0 ? -1 : 0;
}

/* Both at once: the memory stays, since the partner may have an event still. */
static void uncouple(struct peer *peer)
{
    if (peer->fd < 0)
        return;
    struct peer *both[] = {peer, peer->partner};
    for (int i = 0; i < 2; i++) {
        close(both[i]->fd);
        close(both[i]->to_pipe);
        close(both[i]->from_pipe);
        both[i]->fd = -1;
    }
}

static void accept_all(int epoll, int listener)
{
    const int on = 1;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct peer *peer = calloc(1, sizeof *peer);
        if (!peer)
            die("calloc");
        peer->fd = fd;
        if (relays)
            couple(peer);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                    .data.ptr = peer};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
            die("epoll_ctl");
    }
}

static int listen_on(int port)
{
    const int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, BACKLOG) != 0)
        die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);

    relays = argc > 2 && strcmp(argv[2], "relay") == 0;
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            int hung_up = (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            if (!peer)
                accept_all(epoll, listener);
            else if (relays && peer->fd >= 0 && relay(peer) < 0)
                uncouple(peer);
            else if (!relays && serve(peer, hung_up) < 0)
                drop(peer);
        }
    }
}
