"""What the operator asks for, from command line, file and metadata together."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import pytest

from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings, Settings
from vsock_proxy.supervision.wanting import want

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the services of a file, beside an empty allowlist, and returns its path."""
    monkeypatch.delenv("AWS_REGION", raising=False)

    def write(services: str) -> str:
        path = tmp_path / "vsock-proxy.yaml"
        path.write_text(f"allowlist: []\nservices:\n{services}")
        return str(path)

    return write


class Metadata:
    """Answers, and remembers what it was asked for."""

    def __init__(self, **values: str) -> None:
        self.values = values
        self.asked: List[Tuple[str, ...]] = []

    def search(
        self, names: Sequence[str], endpoints: Sequence[str], patience: float
    ) -> Dict[str, str]:
        self.asked.append(tuple(names))
        return {name: self.values[name[1:-1]] for name in names}


def of_command_line(host: str, config: str) -> Settings:
    return Settings(ServiceSettings(8000, Endpoint(host, 443)), config=config)


def hosts(services: Sequence[ServiceSettings]) -> List[str]:
    return [service.endpoint.host for service in services]


THREE = """
- {listen: 8000, address: 'kms.{region}.{domain}', port: 443}
- {listen: 8001, address: 's3.{region}.{domain}', port: 443, workers: 2}
- {listen: 8002, address: 10.0.0.1, port: 443}
"""
IRELAND = {"region": "eu-west-1", "domain": "amazonaws.com"}


def test_region_and_domain_of_all_services_are_asked_for_once(write: Write) -> None:
    metadata = Metadata(**IRELAND)
    wanted = want(Settings(config=write(THREE)), search=metadata.search)
    assert wanted.of_file
    assert hosts(wanted.services) == [
        "kms.eu-west-1.amazonaws.com",
        "s3.eu-west-1.amazonaws.com",
        "10.0.0.1",
    ]
    assert metadata.asked == [("{region}", "{domain}")]


def test_what_was_found_out_before_is_not_asked_for_again(write: Write) -> None:
    metadata = Metadata(**IRELAND)
    first = want(Settings(config=write(THREE)), search=metadata.search)
    again = want(Settings(config=write(THREE)), known=first.placeholders, search=metadata.search)
    assert again == first
    assert len(metadata.asked) == 1


def test_only_what_is_named_is_asked_for(write: Write) -> None:
    metadata = Metadata(**IRELAND)
    path = write("- {listen: 8000, address: 'kms.{region}.test', port: 443}\n")
    want(Settings(config=path), search=metadata.search)
    path = write("- {listen: 8000, address: 10.0.0.1, port: 443}\n")
    want(Settings(config=path), search=metadata.search)
    assert metadata.asked == [("{region}",)]


def test_the_options_of_the_command_line_are_the_defaults_of_each_service(write: Write) -> None:
    options = ServiceOptions(connect_timeout=3.0, idle_timeout=60.0)
    path = write(
        "- {listen: 8000, address: a.test, port: 443, connect_timeout: 5}\n"
        "- {listen: 8001, address: b.test, port: 443}\n"
    )
    services = want(Settings(options=options, config=path)).services
    assert [one.options.connect_timeout for one in services] == [5.0, 3.0]
    assert [one.options.idle_timeout for one in services] == [60.0, 60.0]


def test_a_service_of_the_command_line_leaves_those_of_the_file_unread(
    write: Write,
) -> None:
    metadata = Metadata(**IRELAND)
    path = write("- {listen: not even a port}\n")
    wanted = want(of_command_line("kms.{region}.test", path), search=metadata.search)
    assert not wanted.of_file
    assert hosts(wanted.services) == ["kms.eu-west-1.test"]


# A name that a region makes too long is none.
TOO_LONG = Metadata(region="x" * 250, domain="test")


def test_a_name_that_is_wrong_once_filled_in_is_told_with_its_service(write: Write) -> None:
    path = write(THREE)
    with pytest.raises(
        ConfigurationError,
        match=r"^services .*, line 4: service 8000: kms\.\{region\}\.\{domain\} must",
    ):
        want(Settings(config=path), search=TOO_LONG.search)


def test_with_a_service_on_the_command_line_that_is_a_usage_error(write: Write) -> None:
    settings = of_command_line("kms.{region}", write("  []"))
    with pytest.raises(UsageError, match=r"^kms\.\{region\} must become a host name"):
        want(settings, search=TOO_LONG.search)
