"""The world around the proxy, all of it in one machine without a network card.

A dummy interface has the address of the instance metadata service and that of KMS, to which
/etc/hosts leads; a metadata service and a TLS server that echoes listen there. It is a service that
is started before the proxy's, and prints nothing.
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
KMS_ADDRESS = "10.11.12.13"
KMS_NAME = "kms.eu-west-1.amazonaws.com"
CERTIFICATE = Path("/run/world/certificate.pem")
KEY = Path("/run/world/key.pem")
CHUNK = 65536


def main() -> None:
    """Make the world, and serve for ever."""
    _make_network()
    _make_certificate()
    MetadataService(Behaviour(), METADATA_ADDRESS, 80)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    with socket.create_server((KMS_ADDRESS, 443), backlog=1024) as listener:
        subprocess.run(["systemd-notify", "--ready"], check=True)
        while True:
            accepted = listener.accept()
            threading.Thread(target=_echo, args=(context, accepted), daemon=True).start()


def _make_network() -> None:
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write(f"{KMS_ADDRESS} {KMS_NAME}\n")
    for command in (
        "link add world type dummy",
        "link set world up",
        "link set lo up",
        f"address add {METADATA_ADDRESS}/32 dev world",
        f"address add {KMS_ADDRESS}/32 dev world",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _make_certificate() -> None:
    CERTIFICATE.parent.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={KMS_NAME}"),
            *("-addext", f"subjectAltName=DNS:{KMS_NAME}"),
            *("-keyout", str(KEY), "-out", str(CERTIFICATE)),
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
