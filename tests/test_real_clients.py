"""Software that people use, through the proxy."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Callable, Iterator, List

import boto3
import botocore.config
import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.kms import KmsServer
from tests.support.program import Proxy, Transport
from tests.support.timing import SLOWNESS
from tests.support.transports import VMADDR_CID_LOCAL, Hybrid, Tcp, Vsock
from vsock_proxy.serving.relay import Relay


@pytest.fixture
def start_in_guest(
    transport: Transport, start_vmm: StartServer, write_allowlist: Callable[..., Path]
) -> Iterator[Callable[[Tcp], None]]:
    """Starts the program as a guest has it, for software there that knows only TCP."""
    started: List[Proxy] = []

    def start(near: Tcp) -> None:
        if isinstance(transport, Vsock):
            endpoint = f"vsock:{VMADDR_CID_LOCAL}", transport.port
        else:
            vmm = start_vmm(lead_to_parent)
            endpoint = vmm.host, vmm.port
        allowed = str(write_allowlist(endpoint, name="of-the-guest.yaml"))
        host, port = endpoint
        listening = (*near.options(), str(near.port))
        started.append(Proxy(near, ["--config", allowed, *listening, host, str(port)]))
        started[-1].wait_ready()

    def lead_to_parent(connection: socket.socket) -> None:
        """What such a guest does, as the host has none whose AF_VSOCK it could be."""
        with connection, transport.connect() as parent:
            Relay().run(connection, parent)

    yield start
    for proxy in started:
        proxy.end()


def test_a_kms_client_encrypts_and_decrypts_over_tls_by_a_proxy_at_either_end(
    start_proxy: StartProxy, start_in_guest: Callable[[Tcp], None], tmp_path: Path
) -> None:
    near = Tcp(tmp_path)
    kms = KmsServer(tmp_path, near.address)
    proxy = start_proxy((kms.host, kms.port))
    start_in_guest(near)
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
