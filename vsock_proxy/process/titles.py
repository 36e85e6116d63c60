"""Process titles; with them `ps` shows an operator what happens.

They need setproctitle, a C module. A guest's image may lack it for its Python, and a zip archive
cannot contain it. Then there are no titles, and everything else works as usual.
"""

from __future__ import annotations

import logging
from types import BuiltinFunctionType

try:
    from setproctitle import getproctitle, setproctitle, setthreadtitle
except ImportError as error:
    WHY_NONE = str(error)
else:
    # Without its C module, the package's functions only log that it is missing, at each call.
    WHY_NONE = "" if isinstance(setproctitle, BuiltinFunctionType) else "it lacks its C module"

PROGRAM = "vsock-proxy"

log = logging.getLogger(__name__)


def find_room() -> None:
    """Find the place for titles before anything is removed from the environment.

    At its first call setproctitle looks for the place, beginning with the first variable. If that
    variable has been removed, there are no titles.
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

    pidof, killall and `pgrep -x` look for the command name (comm of proc(5)). A title sets that
    too, to its first 15 bytes. Only the master sets it back, so these tools find the master alone.
    """
    set_title(text)
    if not WHY_NONE:
        setthreadtitle(PROGRAM)
