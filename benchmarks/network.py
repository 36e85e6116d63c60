"""A network of the benchmark's own, in which the kernel holds no proxy up.

With ports: a connection to the endpoint keeps its local port for a second after its end (TIME_WAIT,
tcp_tw_reuse_delay). connect() takes the even ports of ip_local_port_range first, and once they are
all in use looks through them again for each connection (__inet_hash_connect() in
net/ipv4/inet_hashtables.c). So with the usual 28,232 ports whatever makes more than 14,116
connections a second is slowed down to that by the kernel, and fast proxies look alike.

With timers: BBR, where it is the default, spaces out what is sent by a timer for each burst
(tcp_pacing_check() in net/ipv4/tcp_output.c), which on the loopback costs more than the sending.
Reno does not, and any kernel permits it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
INTERFACE_FLAGS = "16sH14x"  # struct ifreq of netdevice(7)
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# No connection gets one of these of its own: proxies listen there.
RESERVED = range(1024, 2048)
ALL_OTHERS = f"{RESERVED.stop} 65535"
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
UNPACED = "reno"


def enter() -> str:
    """Move this process into a network of its own; returns why it could not, or nothing."""
    try:
        _unshare()
        _bring_up_loopback()
        PORT_RANGE.write_text(ALL_OTHERS)
        CONGESTION_CONTROL.write_text(UNPACED)
    except OSError as error:
        first, last = map(int, PORT_RANGE.read_text().split())
        limit = (last - first + 1) // 2
        return (
            f"no network of the benchmark's own can be made, {error.strerror} (run as root): for "
            f"want of ports the kernel limits short connections to about {limit:,} a second, and "
            f"TCP is as this machine has it ({CONGESTION_CONTROL.read_text().strip()})"
        )
    return ""


def _unshare() -> None:
    # os.unshare() came with CPython 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(INTERFACE_FLAGS, b"lo", IFF_UP))
