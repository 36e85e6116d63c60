"""Services as a file gives them: those that were loaded, or what is said against them."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import pytest

from vsock_proxy.config import loading
from vsock_proxy.errors import ConfigurationError
from vsock_proxy.settings import ServiceOptions, ServiceSettings

DEFAULTS = ServiceOptions()
GOOD = "listen: 8000, address: a.example, port: 443"


def services(
    file: Path, content: str, options: ServiceOptions = DEFAULTS, workers: int = 4
) -> Tuple[ServiceSettings, ...]:
    file.write_text(f"allowlist: []\nservices:{content}\n", encoding="utf-8")
    return loading.load(str(file)).services(options, workers)


def service(file: Path, keys: str, options: ServiceOptions = DEFAULTS) -> ServiceSettings:
    (found,) = services(file, f"\n- {{{keys}}}", options)
    return found


def error_of(file: Path, content: str, options: ServiceOptions = DEFAULTS, workers: int = 4) -> str:
    """What is said of it, without what all such messages begin with."""
    with pytest.raises(ConfigurationError) as caught:
        services(file, content, options, workers)
    prefix, message = f"services {file}, ", str(caught.value)
    assert message.startswith(prefix)
    assert "\n" not in message
    return message[len(prefix) :]
