"""The world around the proxy, all of it in one machine without a network card.

A dummy interface has the address of the instance metadata service and those of KMS and two other
services of AWS, to which /etc/hosts leads; a metadata service and TLS servers that echo listen
there, each server with a certificate of its name alone. It is a service that is started before the
proxy's, and prints nothing.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Tuple

from tests.support.metadata import Behaviour, MetadataService

METADATA_ADDRESS = "169.254.169.254"
KMS_NAME = "kms.eu-west-1.amazonaws.com"
SECRETS_NAME = "secretsmanager.eu-west-1.amazonaws.com"
DYNAMODB_NAME = "dynamodb.eu-west-1.amazonaws.com"
ENDPOINTS = {
    KMS_NAME: "10.11.12.13",
    SECRETS_NAME: "10.11.12.14",
    DYNAMODB_NAME: "10.11.12.15",
}
FOLDER = Path("/run/world")
CHUNK = 65536


def main() -> None:
    """Make the world, and serve without end."""
    _make_network()
    MetadataService(Behaviour(), METADATA_ADDRESS, 80)
    FOLDER.mkdir()
    servers = [_server(name, address) for name, address in ENDPOINTS.items()]
    for server in servers:
        server.start()
    subprocess.run(["systemd-notify", "--ready"], check=True)
    for server in servers:
        server.join()


def certificate(name: str) -> Path:
    """Where the certificate of a name is."""
    return FOLDER / f"{name}.pem"


def _server(name: str, address: str) -> threading.Thread:
    _make_certificate(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(name), _key(name))
    listener = socket.create_server((address, 443), backlog=1024)
    return threading.Thread(target=_serve, args=(context, listener))


def _serve(context: ssl.SSLContext, listener: socket.socket) -> None:
    while True:
        accepted = listener.accept()
        threading.Thread(target=_echo, args=(context, accepted), daemon=True).start()


def _make_network() -> None:
    with Path("/etc/hosts").open("a") as hosts:
        hosts.writelines(f"{address} {name}\n" for name, address in ENDPOINTS.items())
    for command in (
        "link add world type dummy",
        "link set world up",
        "link set lo up",
        f"address add {METADATA_ADDRESS}/32 dev world",
        *(f"address add {address}/32 dev world" for address in ENDPOINTS.values()),
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _key(name: str) -> Path:
    return FOLDER / f"{name}.key"


def _make_certificate(name: str) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(_key(name)), "-out", str(certificate(name))),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def _echo(context: ssl.SSLContext, accepted: Tuple[socket.socket, object]) -> None:
    try:
        with context.wrap_socket(accepted[0], server_side=True) as connection:
            while True:
                data = connection.recv(CHUNK)
                if not data:
                    return
                connection.sendall(data)
    except OSError:
        # A client that went away; whether that was right, the test knows.
        return


if __name__ == "__main__":
    main()
