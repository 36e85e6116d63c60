"""The limit of open files. It is raised at the start and on a reload to what the services need."""

from __future__ import annotations

import resource

from vsock_proxy.errors import UnavailableError

# Descriptors that a process needs at most, with some spare, besides those of the services.
NEEDED_FILES = 64
# A listener and both ends of a table's pipe; twice, while a reload replaces them.
FILES_OF_A_SERVICE = 6


def needed_files(services: int) -> int:
    """How many files a process must be able to have open."""
    return NEEDED_FILES + FILES_OF_A_SERVICE * services


def ensure_files(services: int) -> None:
    """Make sure that there can be this number of services. Raises UnavailableError."""
    needed = needed_files(services)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise UnavailableError(
            f"the limit of open files is {hard}, {needed} are needed; raise it with "
            "LimitNOFILE= in the unit or ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
