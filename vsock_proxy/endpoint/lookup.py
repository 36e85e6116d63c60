"""Asking the system's resolver for a name's addresses, which may take half a minute, or fail."""

from __future__ import annotations

import queue
import socket
import threading
import time
from typing import Callable, Dict, Iterable, List, Optional, Tuple, Union

from vsock_proxy.endpoint.addresses import Address, make_address
from vsock_proxy.settings import Endpoint

# The port comes back with each address.
Question = Tuple[Endpoint, socket.AddressFamily]


class LookupFailed(Exception):
    """The name has no address at the moment; the text says why."""


Answer = Union[List[Address], LookupFailed]
LookUp = Callable[[Endpoint, socket.AddressFamily], List[Address]]


def look_up(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
    """All usable addresses of a name. Raises LookupFailed."""
    host = endpoint.host
    try:
        found = socket.getaddrinfo(
            host.encode() if host.isascii() else host,
            endpoint.port,
            family,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
        )
    except OSError as error:
        raise LookupFailed(error.strerror or str(error)) from None
    except UnicodeError:
        raise LookupFailed("not a valid host name") from None
    addresses: List[Address] = []
    for found_family, _, _, _, sockaddr in found:
        try:
            address = make_address(found_family, sockaddr)
        except ValueError:
            continue
        # An IPv6 answer may be IPv4 mapped into IPv6.
        if family in (socket.AF_UNSPEC, address.family) and address not in addresses:
            addresses.append(address)
    if not addresses:
        raise LookupFailed("it has no address of a family that can be used")
    return addresses


def look_up_all(
    questions: Iterable[Question], patience: Optional[float] = None, look_up: LookUp = look_up
) -> Dict[Question, Answer]:
    """Ask all questions at the same time, so that one that hangs delays no other.

    patience: seconds to wait for answers; None: without a limit.

    Only for a process that ends by os._exit(), because a thread may still hang then.
    """
    wanted = set(questions)
    coming: queue.SimpleQueue[Tuple[Question, Union[List[Address], Exception]]]
    coming = queue.SimpleQueue()

    def ask(question: Question) -> None:
        try:
            coming.put((question, look_up(*question)))
        except Exception as error:
            # This does not hide it: any error other than LookupFailed is raised below.
            coming.put((question, error))

    for question in wanted:
        try:
            threading.Thread(target=ask, args=(question,), daemon=True).start()
        except RuntimeError as error:
            coming.put((question, LookupFailed(str(error))))
    answers: Dict[Question, Answer] = {}
    deadline = None if patience is None else time.monotonic() + patience
    while len(answers) < len(wanted):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            question, answer = coming.get(timeout=left)
        except queue.Empty:
            late = LookupFailed(f"no answer within {patience:g} s")
            return {question: answers.get(question, late) for question in wanted}
        if isinstance(answer, Exception) and not isinstance(answer, LookupFailed):
            raise answer
        answers[question] = answer
    return answers
