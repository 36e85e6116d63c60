"""The region and the domain of the instance metadata, in the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer, StartService
from tests.support.metadata import DOMAIN, NAME, REGION, asking, nobody_listens
from tests.support.program import PROJECT, run
from tests.support.servers import exchange

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def test_all_services_of_the_file_ask_once_together(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service()
    file = tmp_path / "proxy.yaml"
    file.write_text(
        """
allowlist: [{address: kms.eu-west-1.amazonaws.com, port: 443}]
services:
- {listen: 8000, address: 'kms.{region}.{domain}', port: 443}
- {listen: 8001, address: 's3.{region}.{domain}', port: 443}
- {listen: 8002, address: 'sts.{domain}', port: 443}
"""
    )
    done = run("--config", str(file), environment={**os.environ, **asking(service)})
    assert "service 8001: s3.eu-west-1.amazonaws.com:443 is not permitted" in done.stderr
    assert service.paths() == ["/latest/api/token", REGION, DOMAIN]


def test_the_expanded_name_is_what_the_allowlist_must_permit(
    start_service: StartService, write_allowlist: Callable[..., Path]
) -> None:
    service = start_service(values={DOMAIN: "localhost"})
    allowlist = write_allowlist(("kms.us-east-1.amazonaws.com", 443))
    environment = {**os.environ, **asking(service)}
    done = run("--config", str(allowlist), "8000", "{domain}", "443", environment=environment)
    assert done.returncode == os.EX_CONFIG
    assert "localhost:443 is not permitted" in done.stderr


def test_the_expanded_name_is_served(
    start_service: StartService,
    start_proxy: StartProxy,
    start_server: StartServer,
    write_allowlist: Callable[..., Path],
) -> None:
    service = start_service(values={DOMAIN: "localhost"})
    server = start_server()
    proxy = start_proxy(
        ("{domain}", server.port),
        config=write_allowlist(("localhost", server.port)),
        environment={**os.environ, **asking(service)},
    )
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


def test_without_a_metadata_service_the_exit_code_is_75(
    write_allowlist: Callable[..., Path],
) -> None:
    config = str(write_allowlist(("kms.us-east-1.amazonaws.com", 443)))
    code = "import sys; from vsock_proxy import __main__\nfrom vsock_proxy.config import metadata\n"
    code += "metadata.PATIENCE = 0.0\n"
    impatient = [sys.executable, "-c", code + "sys.exit(__main__.main())"]
    done = subprocess.run(
        [*impatient, "--config", config, "8000", NAME, "443"],
        env={**os.environ, "VSOCK_PROXY_IMDS_ENDPOINT": nobody_listens()},
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == os.EX_TEMPFAIL
    assert len(done.stderr.splitlines()) == 1
    assert "no instance metadata for {region} and {domain}" in done.stderr


def test_another_word_in_braces_is_a_usage_error() -> None:
    done = run("8000", "kms.{zone}.example", "443")
    assert done.returncode == os.EX_USAGE
    assert "kms.{zone}.example" in done.stderr
