/*
 * The software in the enclave: connects to the parent over vsock, as told.
 *
 * It reads one command a line and answers each with one line, "ok ..." or "failed ...":
 *
 *   echo PORT BYTES        send BYTES and get them back, both at once
 *                          -> ok CRC-OF-SENT CRC-OF-RECEIVED
 *   half-close PORT BYTES  send BYTES, shut down the sending side, read the reply until it ends
 *                          -> ok CRC-OF-SENT REPLY
 *   many PORT COUNT        hold COUNT connections open at once, each of which echoes
 *                          -> ok COUNT
 *   pour PORT              send for ever and drop what comes back; answers once it flows
 *                          -> ok
 *
 * The bytes are pseudo-random, so that one lost, doubled or out of its place changes the CRC-32.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { BUFFER = 65536, MOST = 256, FLOWING = 1 << 20 };

static const struct timeval PATIENCE = {.tv_sec = 60};

static bool failed(const char *what)
{
    printf("failed %s: %s\n", what, strerror(errno));
    return false;
}

static uint32_t crc32_of(uint32_t crc, const unsigned char *bytes, size_t count)
{
    crc = ~crc;
    while (count--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void fill(unsigned char *bytes, size_t count)
{
    static uint32_t state = 2463534242u;

    while (count--) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *bytes++ = state >> 24;
    }
}

static int dial(unsigned port)
{
    struct sockaddr_vm parent = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &PATIENCE, sizeof PATIENCE);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &PATIENCE, sizeof PATIENCE);
    if (connect(fd, (struct sockaddr *)&parent, sizeof parent) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool send_all(int fd, const unsigned char *bytes, size_t count)
{
    while (count) {
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
        if (sent < 0)
            return failed("send");
        bytes += sent;
        count -= sent;
    }
    return true;
}

/* One direction of a connection: how many bytes are still to come and the CRC of those before them. */
struct flow {
    size_t left;
    uint32_t crc;
    size_t begin, end; /* what waits in the buffer to be sent */
};

static bool send_some(int fd, struct flow *out)
{
    static unsigned char bytes[BUFFER];

    if (out->begin == out->end) {
        out->begin = 0;
        out->end = out->left < BUFFER ? out->left : BUFFER;
        fill(bytes, out->end);
        out->crc = crc32_of(out->crc, bytes, out->end);
    }
    ssize_t sent =
        send(fd, bytes + out->begin, out->end - out->begin, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return errno == EAGAIN || failed("send");
    out->begin += sent;
    out->left -= sent;
    return true;
}

static bool receive_some(int fd, struct flow *in)
{
    static unsigned char bytes[BUFFER];
    ssize_t got = recv(fd, bytes, in->left < BUFFER ? in->left : BUFFER, MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || failed("recv");
    if (got == 0) {
        errno = EPROTO;
        return failed("recv of less than was sent");
    }
    in->crc = crc32_of(in->crc, bytes, got);
    in->left -= got;
    return true;
}

static bool both_ways(int fd, struct flow *out, struct flow *in)
{
    while (in->left) {
        struct pollfd ready = {.fd = fd, .events = POLLIN | (out->left ? POLLOUT : 0)};
        if (poll(&ready, 1, PATIENCE.tv_sec * 1000) <= 0) {
            errno = ETIMEDOUT;
            return failed("poll");
        }
        if (ready.revents & POLLOUT && !send_some(fd, out))
            return false;
        if (ready.revents & ~POLLOUT && !receive_some(fd, in))
            return false;
    }
    return true;
}

static bool echo(int fd, size_t count)
{
    struct flow out = {.left = count}, in = {.left = count};

    if (!both_ways(fd, &out, &in))
        return false;
    printf("ok %u %u\n", out.crc, in.crc);
    return true;
}

static bool half_close(int fd, size_t count)
{
    unsigned char bytes[BUFFER];
    uint32_t crc = 0;

    for (size_t part; count; count -= part) {
        part = count < BUFFER ? count : BUFFER;
        fill(bytes, part);
        crc = crc32_of(crc, bytes, part);
        if (!send_all(fd, bytes, part))
            return false;
    }
    if (shutdown(fd, SHUT_WR) < 0)
        return failed("shutdown");

    char reply[256];
    size_t length = 0;
    ssize_t got;
    while ((got = recv(fd, reply + length, sizeof reply - 1 - length, 0)) > 0)
        length += got;
    if (got < 0)
        return failed("recv of the reply");
    reply[length] = '\0';
    printf("ok %u %s\n", crc, reply);
    return true;
}

static bool many(unsigned port, size_t count)
{
    int fds[MOST];
    bool good = true;

    if (count > MOST) {
        errno = E2BIG;
        return failed("many");
    }
    for (size_t i = 0; i < count; i++)
        if ((fds[i] = dial(port)) < 0)
            return failed("connect");
    for (size_t i = 0; i < count && good; i++)
        good = send_all(fds[i], (unsigned char[]){i}, 1);
    for (size_t i = 0; i < count && good; i++) {
        unsigned char back;
        if (recv(fds[i], &back, 1, 0) != 1 || back != i)
            good = failed("recv of the echo");
    }
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    if (good)
        printf("ok %zu\n", count);
    return good;
}

static bool pour(int fd)
{
    struct flow out = {.left = SIZE_MAX}, in = {.left = FLOWING};

    if (!both_ways(fd, &out, &in))
        return false;
    puts("ok");
    in.left = SIZE_MAX;
    return both_ways(fd, &out, &in);
}

static void obey(const char *line)
{
    char verb[32];
    unsigned port;
    size_t count = 0;

    if (sscanf(line, "%31s %u %zu", verb, &port, &count) < 2) {
        errno = EINVAL;
        failed("to understand the command");
        return;
    }
    if (!strcmp(verb, "many")) {
        many(port, count);
        return;
    }
    int fd = dial(port);
    if (fd < 0) {
        failed("connect");
        return;
    }
    if (!strcmp(verb, "echo"))
        echo(fd, count);
    else if (!strcmp(verb, "half-close"))
        half_close(fd, count);
    else if (!strcmp(verb, "pour"))
        pour(fd);
    else {
        errno = EINVAL;
        failed(verb);
    }
    close(fd);
}

int main(void)
{
    char line[256];

    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        obey(line);
    return 0;
}
