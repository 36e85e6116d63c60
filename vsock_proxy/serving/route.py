"""A service as a worker sees it: where its clients come from and where they are led to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Optional

from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.settings import Endpoint


# Two are never equal, so that one is found among others without comparing what they have.
@dataclass(frozen=True, eq=False)
class Route:
    """
    name: the listening port; the path where two services have the same.
    allowed_cids: whom to serve; None: everybody.
    idle_timeout: seconds without a byte that end a connection; 0: never.
    """

    name: str
    listener: Listener
    endpoint: Endpoint
    upstream: Upstream
    allowed_cids: Optional[FrozenSet[int]] = None
    idle_timeout: float = 0.0
