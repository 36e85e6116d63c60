"""Fixtures that several files here share, beside those of all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, List, Tuple, Union

import pytest

from tests.support.servers import Server
from tests.support.transports import Hybrid, Tcp, Vsock


@pytest.fixture
def words(
    transport: Union[Hybrid, Tcp, Vsock], write_allowlist: Callable[..., Path]
) -> Callable[..., List[str]]:
    """The arguments for an endpoint that the allowlist permits."""

    def make(endpoint: Union[Server, Tuple[str, int]], *entries: Tuple[str, int]) -> List[str]:
        host, port = (endpoint.host, endpoint.port) if isinstance(endpoint, Server) else endpoint
        return [
            *("--config", str(write_allowlist(*(entries or ((host, port),))))),
            *transport.options(),
            *(str(transport.port), host, str(port)),
        ]

    return make


Words = Callable[..., List[str]]
