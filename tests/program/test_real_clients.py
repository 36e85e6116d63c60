"""Software that people use, through the proxy."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Tuple

import boto3
import botocore.config
import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.kms import KmsServer
from tests.support.program import Transport
from tests.support.timing import SLOWNESS
from tests.support.transports import VMADDR_CID_LOCAL, Hybrid, Tcp, Vsock
from vsock_proxy.serving.relay import Relay


@pytest.fixture
def seen_from_guest(transport: Transport, start_vmm: StartServer) -> Tuple[str, int]:
    """The endpoint by which software in a guest gets to the proxy."""
    if isinstance(transport, Vsock):
        return f"vsock:{VMADDR_CID_LOCAL}", transport.port

    def lead_to_parent(connection: socket.socket) -> None:
        with connection, transport.connect() as parent:
            Relay().run(connection, parent)

    # There is no AF_VSOCK to connect by: so a guest behind a VMM is between that leads back.
    vmm = start_vmm(lead_to_parent)
    return vmm.host, vmm.port


def test_a_kms_client_works_over_tls_with_a_proxy_at_either_end(
    start_proxy: StartProxy, seen_from_guest: Tuple[str, int], tmp_path: Path
) -> None:
    near = Tcp(tmp_path)
    kms = KmsServer(tmp_path, near.address)
    proxy = start_proxy((kms.host, kms.port))
    start_proxy(seen_from_guest, on=near)
    client = boto3.client(
        "kms",
        region_name="us-east-1",
        endpoint_url=f"https://{near.address}:{near.port}",
        verify=str(kms.certificate),
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=botocore.config.Config(
            connect_timeout=20 * SLOWNESS, read_timeout=20 * SLOWNESS, retries={"max_attempts": 0}
        ),
    )
    try:
        key = client.create_key()["KeyMetadata"]["KeyId"]
        secret = bytes(range(256)) * 16
        sealed = client.encrypt(KeyId=key, Plaintext=secret)["CiphertextBlob"]
        assert secret not in sealed
        assert client.decrypt(CiphertextBlob=sealed)["Plaintext"] == secret
    finally:
        client.close()
        kms.close()
    assert proxy.log.wait_for(" ended: ")


@pytest.mark.hybrid_only
def test_curl_fetches_a_page_through_the_unix_socket(
    start_proxy: StartProxy, transport: Hybrid, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "page.html").write_text("<h1>hello</h1>")
    handler = _serve_files_of(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start_proxy(("127.0.0.1", server.server_port))
        url = f"http://127.0.0.1:{server.server_port}/page.html"
        command = [curl, "--silent", "--fail", "--max-time", "20", "--unix-socket"]
        done = subprocess.run(
            [*command, str(transport.path), url], capture_output=True, text=True, check=True
        )
        server.shutdown()
    assert done.stdout == "<h1>hello</h1>"


def _serve_files_of(folder: Path) -> type[http.server.SimpleHTTPRequestHandler]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, directory=str(folder), **options)  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            """The test's output is for its result."""

    return Handler
