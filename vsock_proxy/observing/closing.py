"""The one line that each connection leaves in the log.

Its worker writes the line, or the master if that worker died. Each line names the connection by two
numbers, as in `2-17`: the serial of the worker process since the start of the master, and the
number of the connection in that process. So no two connections of one run have the same name, over
reloads and dead workers too. And no worker has to ask anybody for a name.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from vsock_proxy.endpoint.addresses import host_of
from vsock_proxy.observing.peers import peer_name
from vsock_proxy.observing.scoreboard import Row, State
from vsock_proxy.settings import Endpoint, format_address

WITHOUT_CLIENT = (State.ABSENT, State.STARTING, State.IDLE)
NANOSECONDS = 1_000_000_000

# How a line about a connection begins: with one service, and with several.
NAMED = "#%(connection)s "
NAMED_OF_SEVERAL = "#%(connection)s %(service)s: "
# How the line goes on, and the outcome if the worker died.
ENDED = (
    "%(peer)s -> %(upstream)s ended: %(bytes_up)d bytes up, %(bytes_down)d bytes down, "
    "%(seconds).3f s, %(outcome)s"
)
DIED_BEFORE = "%(peer)s closed: its worker died before there was a connection to %(upstream)s"
WORKER_DIED = "worker died"


def connection_name(serial: int, number: int) -> str:
    """The name of a connection. serial: of its worker process; number: within that process."""
    return f"{serial}-{number}"


def connected_to(row: Row, endpoint: Endpoint) -> str:
    """Where an established connection leads: which of the endpoint's addresses it uses."""
    if not endpoint.is_tcp:
        return str(endpoint)
    return format_address(host_of(row.address), endpoint.port)


def cut_short(
    row: Row, worker: str, service: str, several: bool, endpoint: Endpoint, now: int
) -> Optional[Tuple[str, Dict[str, object]]]:
    """The line for the connection of a worker that died; None: no connection, or it has its line.

    several: whether there are several services, so that the line has to name the service.
    """
    if row.state in WITHOUT_CLIENT:
        return None
    connecting = row.state is State.CONNECTING
    text = (NAMED_OF_SEVERAL if several else NAMED) + (DIED_BEFORE if connecting else ENDED)
    return text, {
        "event": "connection_failed" if connecting else "connection_closed",
        "service": service,
        "worker": worker,
        "connection": connection_name(row.serial, row.connections),
        "peer": peer_name(row.peer),
        "upstream": endpoint if connecting else connected_to(row, endpoint),
        "bytes_up": row.up,
        "bytes_down": row.down,
        "seconds": (now - row.since) / NANOSECONDS,
        "reason": WORKER_DIED,
        "outcome": WORKER_DIED,
    }
