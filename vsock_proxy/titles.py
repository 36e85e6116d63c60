"""Process titles, by which `ps` tells an operator what goes on."""

from __future__ import annotations

import setproctitle

PROGRAM = "vsock-proxy"


def set_title(text: str) -> None:
    """Show this process as `vsock-proxy: TEXT`."""
    setproctitle.setproctitle(f"{PROGRAM}: {text}")
