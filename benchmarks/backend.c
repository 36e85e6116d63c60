/*
 * The endpoint behind the proxies under test.
 *
 *     backend THREADS tcp|vsock|unix:PATH
 *
 * It listens on a free port of 127.0.0.1, or of vsock, or on a Unix socket, prints that port (or 0), and serves until
 * its standard input ends, so that it cannot outlive the benchmark. Each thread of a fixed pool accepts and serves one
 * connection at a time with blocking calls: nothing is created or polled per connection, which keeps it well ahead of
 * any proxy in front of it. The pool must be at least as large as the number of connections open at once.
 *
 * On the Unix socket it also stands for the VMM with its guest: who begins with "CONNECT PORT" is answered "OK N", and
 * all else is as without. So those proxies can be measured too that know nothing of a VMM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "protocol.h"

enum { THREAD_STACK = 128 * 1024, DISCARD_SIZE = 1 << 20 };

struct endpoint {
    int listener;
    bool discards; /* TCP alone drops what it has received without copying it: that copy is no cost of the proxy */
};

/* What REQUEST_SOURCE sends; written once before the threads start. */
static uint8_t payload[BUFFER_SIZE];

static void die(const char *what)
{
    fprintf(stderr, "backend: %s: %s\n", what, strerror(errno));
    exit(1);
}

static bool read_whole(int fd, void *data, size_t length)
{
    uint8_t *at = data;
    while (length > 0) {
        ssize_t got = recv(fd, at, length, 0);
        if (got <= 0)
            return false;
        at += got;
        length -= (size_t)got;
    }
    return true;
}

static bool write_whole(int fd, const void *data, size_t length)
{
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t put = send(fd, at, length, MSG_NOSIGNAL);
        if (put <= 0)
            return false;
        at += put;
        length -= (size_t)put;
    }
    return true;
}

/* Without a buffer, discards. */
static bool sink(int fd, uint64_t length, uint8_t *buffer)
{
    size_t most = buffer == NULL ? DISCARD_SIZE : BUFFER_SIZE;
    int flags = buffer == NULL ? MSG_TRUNC : 0;
    while (length > 0) {
        ssize_t got = recv(fd, buffer, length < most ? length : most, flags);
        if (got <= 0)
            return false;
        length -= (uint64_t)got;
    }
    return write_whole(fd, "!", 1);
}

static bool source(int fd, uint64_t length)
{
    while (length > 0) {
        size_t chunk = length < BUFFER_SIZE ? length : BUFFER_SIZE;
        if (!write_whole(fd, payload, chunk))
            return false;
        length -= chunk;
    }
    return true;
}

/* The first request. One that begins by asking a VMM for a guest says no more until that is answered. */
static bool read_first(int fd, struct block *block)
{
    ssize_t got = recv(fd, block, sizeof *block, 0);
    if (got <= 0)
        return false;
    if (got != sizeof VMM_REQUEST - 1 || memcmp(block, VMM_REQUEST, sizeof VMM_REQUEST - 1) != 0)
        return read_whole(fd, (uint8_t *)block + got, sizeof *block - (size_t)got);
    return write_whole(fd, VMM_ACCEPTED, sizeof VMM_ACCEPTED - 1) && read_whole(fd, block, sizeof *block);
}

static bool serve_request(int fd, const struct block *block, uint8_t *buffer)
{
    if (block->magic != BLOCK_MAGIC)
        return false;
    switch (block->request) {
    case REQUEST_ECHO:
        return write_whole(fd, block, sizeof *block);
    case REQUEST_SINK:
        return sink(fd, block->length, buffer);
    case REQUEST_SOURCE:
        return source(fd, block->length);
    }
    return false;
}

static void *serve(void *argument)
{
    const struct endpoint *endpoint = argument;
    uint8_t *buffer = endpoint->discards ? NULL : malloc(BUFFER_SIZE);
    if (!endpoint->discards && buffer == NULL)
        die("allocate");
    for (;;) {
        int fd = accept4(endpoint->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            die("accept");
        }
        struct block block;
        bool more = read_first(fd, &block);
        while (more)
            more = serve_request(fd, &block, buffer) && read_whole(fd, &block, sizeof block);
        close(fd);
    }
    return NULL;
}

static int listen_at(struct sockaddr *address, socklen_t *length)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd < 0)
        die("socket");
    /* Set on a listener, it is inherited by what that accepts, which spares a call per connection. */
    if (address->sa_family == AF_INET && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("set TCP_NODELAY");
    if (bind(fd, address, *length) != 0 || listen(fd, 4096) != 0)
        die("listen");
    if (getsockname(fd, address, length) != 0)
        die("getsockname");
    return fd;
}

static int listen_on_loopback(unsigned *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = listen_at((struct sockaddr *)&address, &length);
    *port = ntohs(address.sin_port);
    return fd;
}

static int listen_on_vsock(unsigned *port)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VMADDR_PORT_ANY};
    socklen_t length = sizeof address;
    int fd = listen_at((struct sockaddr *)&address, &length);
    *port = address.svm_port;
    return fd;
}

static int listen_on_path(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    return listen_at((struct sockaddr *)&address, &length);
}

static bool listen_where(const char *where, struct endpoint *endpoint, unsigned *port)
{
    bool tcp = strcmp(where, "tcp") == 0;
    endpoint->discards = tcp;
    if (tcp)
        endpoint->listener = listen_on_loopback(port);
    else if (strcmp(where, "vsock") == 0)
        endpoint->listener = listen_on_vsock(port);
    else if (strncmp(where, "unix:", 5) == 0)
        endpoint->listener = listen_on_path(where + 5);
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    int threads = argc == 3 ? atoi(argv[1]) : 0;
    struct endpoint endpoint;
    unsigned port = 0;
    if (threads < 1 || !listen_where(argv[2], &endpoint, &port)) {
        fprintf(stderr, "usage: backend THREADS tcp|vsock|unix:PATH\n");
        return 64;
    }
    memset(payload, 'b', sizeof payload);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, &attributes, serve, &endpoint)) != 0)
            die("start a thread");
    }
    printf("%u\n", port);
    fflush(stdout);
    char ignored[64];
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0)
        ;
    return 0;
}
