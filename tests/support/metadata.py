"""An instance metadata service on loopback, as old, new or broken as a test needs."""

from __future__ import annotations

import http.server
import socket
import threading
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

TOKEN = "AQAEAE-token-of-the-test=="
REGION = "/latest/meta-data/placement/region"
DOMAIN = "/latest/meta-data/services/domain"
NAME = "kms.{region}.{domain}"


@dataclass
class Behaviour:
    """What the service answers; token_status other than 200 means that it gives no tokens."""

    token_status: int = 200
    token: str = TOKEN
    values: Dict[str, str] = field(
        default_factory=lambda: {REGION: "eu-west-1", DOMAIN: "amazonaws.com"}
    )
    value_status: int = 200
    # How many requests are answered by 503 before it is up.
    unready: int = 0


class MetadataService:
    """Serves until closed; remembers what it was asked for, and with which token."""

    def __init__(self, behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0) -> None:
        self.behaviour = behaviour
        self.requests: List[Tuple[str, str, str]] = []
        self._server = _Server((host, port), _Handler)
        self._server.service = self
        self.port: int = self._server.server_address[1]
        self.endpoint = (
            f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def paths(self) -> List[str]:
        """The paths that were asked for, in turn."""
        return [path for _, path, _ in self.requests]

    def close(self) -> None:
        """Stop; further requests are refused."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    service: MetadataService

    def __init__(
        self, address: Tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_PUT(self) -> None:
        behaviour = self._begin("X-aws-ec2-metadata-token-ttl-seconds")
        if self.path != "/latest/api/token":
            self._answer(404, "")
        else:
            self._answer(behaviour.token_status, behaviour.token)

    def do_GET(self) -> None:
        behaviour = self._begin("X-aws-ec2-metadata-token")
        with_tokens = behaviour.token_status == 200
        if with_tokens and self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path not in behaviour.values:
            self._answer(404, "")
        else:
            self._answer(behaviour.value_status, behaviour.values[self.path])

    def _begin(self, header: str) -> Behaviour:
        service = self.server.service
        service.requests.append((self.command, self.path, self.headers.get(header, "")))
        return service.behaviour

    def _answer(self, status: int, text: str) -> None:
        behaviour = self.server.service.behaviour
        if behaviour.unready:
            behaviour.unready -= 1
            status = 503
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what was asked is in the service's requests."""


def asking(service: MetadataService, **variables: str) -> dict[str, str]:
    """An environment in which that service is the one to ask."""
    return {"VSOCK_PROXY_IMDS_ENDPOINT": service.endpoint, **variables}


def nobody_listens() -> str:
    """An endpoint that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"
