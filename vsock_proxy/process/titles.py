"""Process titles, by which `ps` tells an operator what goes on.

They need setproctitle, a C module. A guest's image may have none for its Python, and a zip archive
cannot hold one. Then there are no titles, and all else is as ever.
"""

from __future__ import annotations

import logging
from types import BuiltinFunctionType

try:
    from setproctitle import getproctitle, setproctitle, setthreadtitle
except ImportError as error:
    WHY_NONE = str(error)
else:
    # Without its C module the package has functions that do nothing but log that, at each call.
    WHY_NONE = "" if isinstance(setproctitle, BuiltinFunctionType) else "it lacks its C module"

PROGRAM = "vsock-proxy"

log = logging.getLogger(__name__)


def find_room() -> None:
    """Find the place for titles, before anything is taken out of the environment.

    setproctitle looks for it when it is first called, from the first variable on. Where that has
    been taken out, there are no titles.
    """
    if WHY_NONE:
        log.debug(
            "processes have no titles: cannot use setproctitle: %(reason)s",
            {"event": "no_titles", "reason": WHY_NONE},
        )
    else:
        getproctitle()


def set_title(text: str) -> None:
    """Show this process as `vsock-proxy: TEXT`."""
    if not WHY_NONE:
        setproctitle(f"{PROGRAM}: {text}")


def set_master_title(text: str) -> None:
    """Show this process as `vsock-proxy: TEXT`, and by the command name `vsock-proxy`.

    The command name (comm of proc(5)) is what pidof, killall and `pgrep -x` look for. A title sets
    it too, to its first 15 bytes; left so for all other processes, these find the master alone.
    """
    set_title(text)
    if not WHY_NONE:
        setthreadtitle(PROGRAM)
