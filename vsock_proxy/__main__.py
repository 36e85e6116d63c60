"""`python -m vsock_proxy` is the same program as the `vsock-proxy` command."""

from __future__ import annotations

import sys

from vsock_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
