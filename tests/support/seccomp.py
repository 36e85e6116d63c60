"""A kernel that refuses a system call, as a sandbox does: a seccomp filter (seccomp(2)).

refuse() and refuse_splice() work for the calling thread, while it lives. For a program and all its
children:

    python -m tests.support.seccomp splice EPERM COMMAND...
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import platform
import struct
import sys
from typing import List

from vsock_proxy.serving.splicing import PIPE_SIZE

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
NUMBERS = {
    "splice": {"x86_64": 275, "aarch64": 76},
    "setpriority": {"x86_64": 141, "aarch64": 140},
}
# struct seccomp_data: the number is at 0; the low half of the fifth argument, which is the length:
LENGTH_AT = 16 + 4 * 8
# BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


class Refused(enum.Enum):
    """Which calls of splice(). Their length tells: only filling a pipe asks for the full length."""

    ALL = enum.auto()
    FILLING = enum.auto()
    DRAINING = enum.auto()


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def why_not() -> str:
    """Why splice() cannot be refused here; empty if it can."""
    known = NUMBERS["splice"]
    return "" if platform.machine() in known else "the numbers of system calls are not known here"


def refuse(call: str, error: int) -> None:
    """Have a system call fail with an errno in this thread and what it starts."""
    _install(
        [
            (LOAD, 0, 0, 0),
            (JUMP_IF_EQUAL, 0, 1, NUMBERS[call][platform.machine()]),
            (RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
            (RETURN, 0, 0, SECCOMP_RET_ALLOW),
        ]
    )


def refuse_splice(error: int, which: Refused = Refused.ALL) -> None:
    """Have splice() fail with an errno in this thread and what it starts."""
    allow, refuse = SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | error
    whole, part = {
        Refused.ALL: (refuse, refuse),
        Refused.FILLING: (refuse, allow),
        Refused.DRAINING: (allow, refuse),
    }[which]
    _install(
        [
            (LOAD, 0, 0, 0),
            (JUMP_IF_EQUAL, 1, 0, NUMBERS["splice"][platform.machine()]),
            (RETURN, 0, 0, allow),
            (LOAD, 0, 0, LENGTH_AT),
            (JUMP_IF_EQUAL, 0, 1, PIPE_SIZE),
            (RETURN, 0, 0, whole),
            (RETURN, 0, 0, part),
        ]
    )


def _install(instructions: List[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    _prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0)]
    if libc.prctl(option, *padded[:4]):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    refuse(sys.argv[1], getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
