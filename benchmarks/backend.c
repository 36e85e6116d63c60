/*
 * The TCP endpoint behind the proxies under test.
 *
 *     backend THREADS
 *
 * It listens on a free port of 127.0.0.1, prints that port, and serves until its standard input ends, so that it
 * cannot outlive the benchmark. Each thread of a fixed pool accepts and serves one connection at a time with blocking
 * calls: nothing is created or polled per connection, which keeps it well ahead of any proxy in front of it. The pool
 * must be at least as large as the number of connections open at once.
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
#include <unistd.h>

#include "protocol.h"

enum { THREAD_STACK = 128 * 1024, DISCARD_SIZE = 1 << 20 };

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

/* With MSG_TRUNC TCP drops what it has received without copying it: that copy would be no cost of the proxy. */
static bool sink(int fd, uint64_t length)
{
    while (length > 0) {
        ssize_t got = recv(fd, NULL, length < DISCARD_SIZE ? length : DISCARD_SIZE, MSG_TRUNC);
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

static bool serve_request(int fd)
{
    struct block block;
    if (!read_whole(fd, &block, sizeof block) || block.magic != BLOCK_MAGIC)
        return false;
    switch (block.request) {
    case REQUEST_ECHO:
        return write_whole(fd, &block, sizeof block);
    case REQUEST_SINK:
        return sink(fd, block.length);
    case REQUEST_SOURCE:
        return source(fd, block.length);
    }
    return false;
}

static void *serve(void *argument)
{
    int listener = *(int *)argument;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            die("accept");
        }
        while (serve_request(fd))
            ;
        close(fd);
    }
    return NULL;
}

/* TCP_NODELAY set on a listener is inherited by what it accepts, which spares a call per connection. */
static int listen_on_loopback(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("socket");
    if (bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, 4096) != 0)
        die("listen on 127.0.0.1");
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        die("getsockname");
    *port = ntohs(address.sin_port);
    return fd;
}

int main(int argc, char **argv)
{
    int threads = argc == 2 ? atoi(argv[1]) : 0;
    if (threads < 1) {
        fprintf(stderr, "usage: backend THREADS\n");
        return 64;
    }
    memset(payload, 'b', sizeof payload);
    uint16_t port;
    int listener = listen_on_loopback(&port);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, &attributes, serve, &listener)) != 0)
            die("start a thread");
    }
    printf("%u\n", port);
    fflush(stdout);
    char ignored[64];
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0)
        ;
    return 0;
}
