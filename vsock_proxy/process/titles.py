"""Process titles, by which `ps` tells an operator what goes on."""

from __future__ import annotations

import setproctitle

PROGRAM = "vsock-proxy"


def find_room() -> None:
    """Find the place for titles, before anything is taken out of the environment.

    setproctitle looks for it when it is first called, from the first variable on. Where that has
    been taken out, there are no titles.
    """
    setproctitle.getproctitle()


def set_title(text: str) -> None:
    """Show this process as `vsock-proxy: TEXT`."""
    setproctitle.setproctitle(f"{PROGRAM}: {text}")


def set_master_title(text: str) -> None:
    """Show this process as `vsock-proxy: TEXT`, and by the command name `vsock-proxy`.

    The command name (comm of proc(5)) is what pidof, killall and `pgrep -x` look for. A title sets
    it too, to its first 15 bytes; left so for all other processes, these find the master alone.
    """
    set_title(text)
    setproctitle.setthreadtitle(PROGRAM)
