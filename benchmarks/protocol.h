/*
 * What the load generator and the backend say to each other.
 *
 * Everything begins with a block of 64 bytes, so that the smallest operation is also the one measured. A transfer
 * announces its length and is answered by one byte rather than by a half-close, because some of the proxies measured
 * lose the reply that follows a half-close. The magic number makes a byte lost or doubled inside a transfer visible:
 * the next block would not begin with it.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include <stdint.h>

enum { BLOCK_SIZE = 64, BUFFER_SIZE = 256 * 1024 };

#define BLOCK_MAGIC UINT64_C(0x6b6f636b76656e63)

/* What a VMM is asked for (its port has no meaning here), and what Firecracker answers its first client. */
#define VMM_REQUEST "CONNECT 5000\n"
#define VMM_ACCEPTED "OK 1073741824\n"

enum request {
    REQUEST_ECHO = 1, /* send this block back */
    REQUEST_SINK = 2, /* length bytes follow; answer with one byte once all are read */
    REQUEST_SOURCE = 3, /* send length bytes */
};

struct block {
    uint64_t magic;
    uint64_t request;
    uint64_t length;
    uint64_t sequence;
    uint8_t padding[BLOCK_SIZE - 4 * sizeof(uint64_t)];
};

_Static_assert(sizeof(struct block) == BLOCK_SIZE, "a block is what the operations are measured in");

#endif
