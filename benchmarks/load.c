/*
 * The load generator: what the clients of a proxy under test do.
 *
 *     load MODE TARGET THREADS SECONDS COUNT SIZE
 *
 * MODE    short     connect, one block there and back, close
 *         pingpong  one block there and back on a standing connection
 *         up        SIZE bytes to the backend on a standing connection, over when the backend has confirmed them
 *         down      SIZE bytes from the backend on a standing connection
 *         hold      open COUNT connections, one block there and back on each while all are open, report, and keep
 *                   them open until the standard input ends (THREADS, SECONDS and SIZE are not used)
 * TARGET  unix:PATH, vsock:CID:PORT or tcp:PORT (of 127.0.0.1), or several of them with commas between, which the
 *         connections of each thread visit in turn; with `ask:` before it, a VMM is behind it, which each connection
 *         asks for its guest before all else
 *
 * Each thread repeats the operation until SECONDS are over or the threads together have done COUNT. Calls block and
 * nothing but the clock is asked per operation, so that the generator costs as little as it can. One line of JSON
 * says what was done; whatever went wrong is counted in it by cause. A thread that does not end within a grace period
 * after SECONDS is itself such an error, because a lost wake-up must not hang the benchmark nor go unseen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "protocol.h"

enum {
    CAUSES = 16, /* different errors told apart in one run */
    ERRORS_A_THREAD = 1000, /* after these a thread gives up: the result is void anyway */
    GRACE_SECONDS = 20, /* for a slow operation to end */
    HOLD_TIMEOUT_SECONDS = 30,
    TARGETS = 64, /* at most */
};

enum mode { MODE_SHORT, MODE_PINGPONG, MODE_UP, MODE_DOWN, MODE_HOLD, MODES };

static const char *const mode_names[MODES] = {"short", "pingpong", "up", "down", "hold"};

struct target {
    union {
        struct sockaddr any;
        struct sockaddr_un unix_path;
        struct sockaddr_vm vsock;
        struct sockaddr_in tcp;
    } address;
    socklen_t length;
    bool asks; /* a VMM for its guest */
};

struct cause {
    const char *what;
    int number; /* errno; 0: the peer ended the stream; -1: wrong bytes */
    long count;
};

struct plan {
    enum mode mode;
    struct target targets[TARGETS];
    int target_count;
    int threads;
    double seconds;
    long count;
    uint64_t size;
};

struct client {
    const struct plan *plan;
    pthread_barrier_t *start;
    int turn; /* the target of the next connection */
    uint64_t begun, ended;
    atomic_long operations;
    long capacity;
    uint32_t *microseconds_tenths; /* the latency of each operation, in units of 100 ns */
    struct cause causes[CAUSES];
    atomic_long errors;
    uint8_t buffer[BUFFER_SIZE];
};

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static bool failed(struct client *client, const char *what, int number)
{
    client->errors++;
    for (int i = 0; i < CAUSES; i++) {
        struct cause *cause = &client->causes[i];
        if (cause->count == 0)
            *cause = (struct cause){what, number, 0};
        else if (cause->number != number || strcmp(cause->what, what) != 0)
            continue;
        cause->count++;
        return false;
    }
    return false; /* still counted in errors */
}

static int connect_to(struct client *client, const struct target *target)
{
    int fd = socket(target->address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        failed(client, "socket", errno);
        return -1;
    }
    if (connect(fd, &target->address.any, target->length) != 0) {
        failed(client, "connect", errno);
        close(fd);
        return -1;
    }
    int one = 1;
    if (target->address.any.sa_family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static bool put(struct client *client, int fd, const void *data, size_t length)
{
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return failed(client, "send", errno);
        at += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool get(struct client *client, int fd, void *data, size_t length)
{
    uint8_t *at = data;
    while (length > 0) {
        ssize_t got = recv(fd, at, length, 0);
        if (got <= 0)
            return failed(client, "receive", got < 0 ? errno : 0);
        at += got;
        length -= (size_t)got;
    }
    return true;
}

/* "CONNECT PORT", and "OK N" for an answer, both a line. */
static bool ask(struct client *client, int fd)
{
    char answer[sizeof VMM_ACCEPTED - 1];
    if (!put(client, fd, VMM_REQUEST, sizeof VMM_REQUEST - 1) || !get(client, fd, answer, sizeof answer))
        return false;
    return memcmp(answer, VMM_ACCEPTED, sizeof answer) == 0 || failed(client, "answer of the VMM", -1);
}

static int open_connection(struct client *client)
{
    const struct target *target = &client->plan->targets[client->turn];
    client->turn = (client->turn + 1) % client->plan->target_count;
    int fd = connect_to(client, target);
    if (fd >= 0 && target->asks && !ask(client, fd)) {
        close(fd);
        return -1;
    }
    return fd;
}

static struct block new_block(enum request request, uint64_t length, uint64_t sequence)
{
    struct block block = {.magic = BLOCK_MAGIC, .request = request, .length = length, .sequence = sequence};
    memset(block.padding, (int)(sequence & 0xff), sizeof block.padding);
    return block;
}

static bool echo(struct client *client, int fd, uint64_t sequence)
{
    struct block sent = new_block(REQUEST_ECHO, 0, sequence);
    struct block received;
    if (!put(client, fd, &sent, sizeof sent) || !get(client, fd, &received, sizeof received))
        return false;
    return memcmp(&sent, &received, sizeof sent) == 0 || failed(client, "echo", -1);
}

static bool upload(struct client *client, int fd, uint64_t sequence)
{
    struct block request = new_block(REQUEST_SINK, client->plan->size, sequence);
    if (!put(client, fd, &request, sizeof request))
        return false;
    for (uint64_t left = client->plan->size; left > 0;) {
        size_t chunk = left < BUFFER_SIZE ? left : BUFFER_SIZE;
        if (!put(client, fd, client->buffer, chunk))
            return false;
        left -= chunk;
    }
    char confirmation;
    return get(client, fd, &confirmation, 1) && (confirmation == '!' || failed(client, "confirmation", -1));
}

static bool download(struct client *client, int fd, uint64_t sequence)
{
    struct block request = new_block(REQUEST_SOURCE, client->plan->size, sequence);
    if (!put(client, fd, &request, sizeof request))
        return false;
    for (uint64_t left = client->plan->size; left > 0;) {
        ssize_t got = recv(fd, client->buffer, left < BUFFER_SIZE ? left : BUFFER_SIZE, 0);
        if (got <= 0)
            return failed(client, "receive", got < 0 ? errno : 0);
        left -= (uint64_t)got;
    }
    return true;
}

static bool short_connection(struct client *client, uint64_t sequence)
{
    int fd = open_connection(client);
    if (fd < 0)
        return false;
    bool done = echo(client, fd, sequence);
    close(fd);
    return done;
}

static bool operate(struct client *client, int fd, uint64_t sequence)
{
    switch (client->plan->mode) {
    case MODE_SHORT:
        return short_connection(client, sequence);
    case MODE_PINGPONG:
        return echo(client, fd, sequence);
    case MODE_UP:
        return upload(client, fd, sequence);
    case MODE_DOWN:
        return download(client, fd, sequence);
    default:
        return false;
    }
}

/* An error breaks a standing connection's framing, so it ends that client; a short connection's is its own. */
static void repeat(struct client *client, int fd)
{
    uint64_t deadline = client->begun + (uint64_t)(client->plan->seconds * 1e9);
    uint64_t before = client->begun;
    long operations = 0;
    for (uint64_t sequence = 1; before < deadline && operations < client->capacity; sequence++) {
        bool done = operate(client, fd, sequence);
        uint64_t after = now_ns();
        if (done) {
            client->microseconds_tenths[operations++] = (uint32_t)((after - before) / 100);
            atomic_store_explicit(&client->operations, operations, memory_order_relaxed);
        } else if (fd >= 0 || client->errors >= ERRORS_A_THREAD) {
            break;
        }
        before = after;
    }
}

static void *run_client(void *argument)
{
    struct client *client = argument;
    bool standing = client->plan->mode != MODE_SHORT;
    int fd = -1;
    bool ready = true;
    if (standing)
        ready = (fd = open_connection(client)) >= 0 && echo(client, fd, 0);
    pthread_barrier_wait(client->start);
    client->begun = now_ns();
    if (ready)
        repeat(client, fd);
    client->ended = now_ns();
    /* A byte too many or too few in what went before shows here. */
    if (standing && ready && client->errors == 0)
        echo(client, fd, UINT64_MAX);
    if (fd >= 0)
        close(fd);
    return NULL;
}

static int by_size(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void print_cause(const struct cause *cause, const char *separator)
{
    const char *detail = cause->number > 0 ? strerror(cause->number) :
        cause->number == 0                 ? "the stream ended" :
                                             "wrong bytes";
    printf("%s\"%s: %s\": %ld", separator, cause->what, detail, cause->count);
}

static void print_errors(struct client *clients, int threads, int stalled)
{
    struct client sum = {0};
    const char *separator = "";
    printf("\"errors\": {");
    for (int i = 0; i < threads; i++) {
        long told = 0;
        for (int j = 0; j < CAUSES && clients[i].causes[j].count > 0; j++) {
            for (long k = 0; k < clients[i].causes[j].count; k++)
                failed(&sum, clients[i].causes[j].what, clients[i].causes[j].number);
            told += clients[i].causes[j].count;
        }
        for (long k = told; k < clients[i].errors; k++)
            failed(&sum, "other", -1);
    }
    for (int j = 0; j < CAUSES && sum.causes[j].count > 0; j++) {
        print_cause(&sum.causes[j], separator);
        separator = ", ";
    }
    if (stalled > 0)
        printf("%s\"stalled: no end within %d s\": %d", separator, GRACE_SECONDS, stalled);
    printf("}");
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
        (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void print_result(const struct plan *plan, struct client *clients, int stalled)
{
    long operations = 0, at = 0;
    uint64_t begun = UINT64_MAX, ended = 0;
    for (int i = 0; i < plan->threads; i++) {
        operations += clients[i].operations;
        begun = clients[i].begun < begun ? clients[i].begun : begun;
        ended = clients[i].ended > ended ? clients[i].ended : ended;
    }
    if (stalled > 0)
        ended = now_ns();
    uint32_t *all = malloc(sizeof *all * (size_t)(operations + 1));
    if (all == NULL)
        die("allocate");
    for (int i = 0; i < plan->threads; i++) {
        long own = clients[i].operations;
        long room = operations - at;
        memcpy(all + at, clients[i].microseconds_tenths, sizeof *all * (size_t)(own < room ? own : room));
        at += own < room ? own : room;
    }
    qsort(all, (size_t)at, sizeof *all, by_size);
    double median = at > 0 ? all[at / 2] / 10.0 : 0, p99 = at > 0 ? all[(at - 1) * 99 / 100] / 10.0 : 0;
    printf("{\"seconds\": %.6f, \"operations\": %ld, \"median_us\": %.1f, \"p99_us\": %.1f, \"cpu_seconds\": %.6f, ",
           (double)(ended - begun) / 1e9, operations, median, p99, cpu_seconds());
    print_errors(clients, plan->threads, stalled);
    printf("}\n");
    free(all);
}

static int run_clients(const struct plan *plan)
{
    pthread_barrier_t start;
    pthread_t *threads = calloc((size_t)plan->threads, sizeof *threads);
    struct client *clients = calloc((size_t)plan->threads, sizeof *clients);
    if (threads == NULL || clients == NULL)
        die("allocate");
    pthread_barrier_init(&start, NULL, (unsigned)plan->threads);
    for (int i = 0; i < plan->threads; i++) {
        struct client *client = &clients[i];
        client->plan = plan;
        client->start = &start;
        client->turn = i * plan->target_count / plan->threads;
        client->capacity = plan->count / plan->threads + (i < plan->count % plan->threads);
        client->microseconds_tenths = calloc((size_t)client->capacity + 1, sizeof *client->microseconds_tenths);
        memset(client->buffer, 'c', sizeof client->buffer);
        if (client->microseconds_tenths == NULL ||
            (errno = pthread_create(&threads[i], NULL, run_client, client)) != 0)
            die("start a thread");
    }
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += (time_t)plan->seconds + GRACE_SECONDS;
    int stalled = 0;
    for (int i = 0; i < plan->threads; i++)
        stalled += pthread_timedjoin_np(threads[i], NULL, &limit) != 0;
    print_result(plan, clients, stalled);
    fflush(stdout);
    _exit(0); /* a stalled thread would still use what exit() tears down */
}

static void bound_waiting(int fd)
{
    struct timeval limit = {.tv_sec = HOLD_TIMEOUT_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

static int hold(const struct plan *plan)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct client *client = calloc(1, sizeof *client);
    int *fds = calloc((size_t)plan->count, sizeof *fds);
    if (client == NULL || fds == NULL)
        die("allocate");
    client->plan = plan;
    uint64_t begun = now_ns();
    for (long i = 0; i < plan->count; i++) {
        if ((fds[i] = open_connection(client)) >= 0)
            bound_waiting(fds[i]);
    }
    for (long i = 0; i < plan->count; i++)
        client->operations += fds[i] >= 0 && echo(client, fds[i], (uint64_t)i);
    uint64_t ended = now_ns();
    printf("{\"seconds\": %.6f, \"operations\": %ld, \"median_us\": 0, \"p99_us\": 0, \"cpu_seconds\": %.6f, ",
           (double)(ended - begun) / 1e9, (long)client->operations, cpu_seconds());
    print_errors(client, 1, 0);
    printf("}\n");
    fflush(stdout);
    char ignored[64];
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0)
        ;
    return 0;
}

static bool parse_target(const char *text, struct target *target)
{
    unsigned cid, port;
    memset(target, 0, sizeof *target);
    target->asks = strncmp(text, "ask:", 4) == 0;
    if (target->asks)
        text += 4;
    if (strncmp(text, "unix:", 5) == 0 && strlen(text + 5) < sizeof target->address.unix_path.sun_path) {
        target->address.unix_path.sun_family = AF_UNIX;
        strcpy(target->address.unix_path.sun_path, text + 5);
        target->length = sizeof target->address.unix_path;
        return true;
    }
    if (sscanf(text, "vsock:%u:%u", &cid, &port) == 2) {
        target->address.vsock =
            (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
        target->length = sizeof target->address.vsock;
        return true;
    }
    if (sscanf(text, "tcp:%u", &port) == 1) {
        target->address.tcp = (struct sockaddr_in){
            .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
        target->length = sizeof target->address.tcp;
        return true;
    }
    return false;
}

static bool parse_targets(char *text, struct plan *plan)
{
    char *place = NULL;
    plan->target_count = 0;
    for (char *one = strtok_r(text, ",", &place); one != NULL; one = strtok_r(NULL, ",", &place)) {
        if (plan->target_count == TARGETS || !parse_target(one, &plan->targets[plan->target_count++]))
            return false;
    }
    return plan->target_count > 0;
}

static bool parse(int argc, char **argv, struct plan *plan)
{
    if (argc != 7)
        return false;
    int mode = 0;
    while (mode < MODES && strcmp(argv[1], mode_names[mode]) != 0)
        mode++;
    plan->mode = (enum mode)mode;
    plan->threads = atoi(argv[3]);
    plan->seconds = atof(argv[4]);
    plan->count = atol(argv[5]);
    plan->size = strtoull(argv[6], NULL, 10);
    return mode < MODES && parse_targets(argv[2], plan) && plan->threads > 0 && plan->count > 0;
}

int main(int argc, char **argv)
{
    struct plan plan;
    if (!parse(argc, argv, &plan)) {
        fprintf(stderr, "usage: load short|pingpong|up|down|hold TARGET THREADS SECONDS COUNT SIZE\n");
        return 64;
    }
    return plan.mode == MODE_HOLD ? hold(&plan) : run_clients(&plan);
}
