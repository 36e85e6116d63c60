"""The program: `vsock-proxy` and `python -m vsock_proxy`.

Two things come before everything else: a standard descriptor that is closed gets a stand-in, and
signals are caught. After that the rest of the program is imported.
"""

from __future__ import annotations

import sys

from vsock_proxy.process.descriptors import hold_standard_descriptors
from vsock_proxy.process.hooks import import_without_hooks
from vsock_proxy.process.signals import Signals


def main() -> int:
    """Run the program; returns its exit code."""
    hold_standard_descriptors()
    signals = Signals()
    import_without_hooks()
    from vsock_proxy.cli import run

    return run(sys.argv[1:], signals)


if __name__ == "__main__":
    sys.exit(main())
