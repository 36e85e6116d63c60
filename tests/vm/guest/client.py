"""The software in the enclave: knows only TCP and vsock, and nothing of what is between.

It serves on the loopback network a page (PAGE), an echo (ECHO), and a sum, which replies once the
client has ended its direction (SUM). Besides, it reads one command a line and answers each with
one line, "ok ..." or "failed ...". HOST is a CID, or an address of TCP.

    echo HOST PORT BYTES        send BYTES and get them back, both at once
                                -> ok CRC-OF-SENT CRC-OF-RECEIVED
    half-close HOST PORT BYTES  send BYTES, end the sending direction, read the reply until it ends
                                -> ok CRC-OF-SENT REPLY
    many HOST PORT COUNT        hold COUNT connections open at once, each of which echoes
                                -> ok COUNT
    pour HOST PORT              send without end and drop what comes back; answers once it flows
                                -> ok
    kms CERTIFICATE             encrypt and decrypt by KMS, which has that certificate (in base64)
                                -> ok

The bytes are random, so that one lost, doubled or out of its place changes the CRC-32.
"""

from __future__ import annotations

import base64
import http.server
import os
import socket
import sys
import threading
import time
import zlib
from typing import Callable, Dict, Tuple

PAGE, ECHO, SUM = 8080, 8081, 8082
REGION = "us-east-1"
PATIENCE = 60
CHUNK = 65536
FLOWING = 1 << 20
# The words behind "ok".
Answer = Tuple[object, ...]


def dial(host: str, port: str | int) -> socket.socket:
    """A connection to a CID, or by TCP."""
    is_vsock = host.isdigit()
    sock = socket.socket(socket.AF_VSOCK if is_vsock else socket.AF_INET)
    sock.settimeout(PATIENCE)
    sock.connect((int(host) if is_vsock else host, int(port)))
    return sock


def receive(sock: socket.socket, count: int) -> int:
    """The CRC of the next bytes, this number of them."""
    crc = 0
    while count:
        data = sock.recv(min(count, CHUNK))
        if not data:
            raise EOFError(f"an end, {count} bytes too soon")
        crc = zlib.crc32(data, crc)
        count -= len(data)
    return crc


def sum_up(sock: socket.socket) -> int:
    """The CRC of what comes until the end."""
    crc = 0
    while True:
        data = sock.recv(CHUNK)
        if not data:
            return crc
        crc = zlib.crc32(data, crc)


def echo(host: str, port: str, count: str) -> Answer:
    data = os.urandom(int(count))
    with dial(host, port) as sock:
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
        return zlib.crc32(data), receive(sock, len(data))


def half_close(host: str, port: str, count: str) -> Answer:
    data = os.urandom(int(count))
    with dial(host, port) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return zlib.crc32(data), sock.makefile().read()


def many(host: str, port: str, count: str) -> Answer:
    socks = [dial(host, port) for _ in range(int(count))]
    for number, sock in enumerate(socks):
        sock.sendall(bytes([number]))
    for number, sock in enumerate(socks):
        if sock.recv(1) != bytes([number]):
            raise ValueError(f"connection {number} does not echo")
        sock.close()
    return (count,)


def pour(host: str, port: str) -> Answer:
    sock = dial(host, port)

    def send() -> None:
        while True:
            sock.sendall(bytes(CHUNK))

    threading.Thread(target=send, daemon=True).start()
    receive(sock, FLOWING)
    threading.Thread(target=sum_up, args=(sock,), daemon=True).start()
    return ()


def kms(certificate: str) -> Answer:
    # Which takes a while here, and of two enclaves only one does it.
    import boto3
    import botocore.config

    with open("/kms.pem", "wb") as file:
        file.write(base64.b64decode(certificate))
    client = boto3.client(
        "kms",
        region_name=REGION,
        verify="/kms.pem",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=botocore.config.Config(
            connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"max_attempts": 0}
        ),
    )
    key = client.create_key()["KeyMetadata"]["KeyId"]
    secret = os.urandom(4096)
    sealed = client.encrypt(KeyId=key, Plaintext=secret)["CiphertextBlob"]
    if secret in sealed or client.decrypt(CiphertextBlob=sealed)["Plaintext"] != secret:
        raise ValueError("what came back is not what it should be")
    return ()


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"<h1>{self.path} of the enclave</h1>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def echo_all(sock: socket.socket) -> None:
    with sock:
        while True:
            data = sock.recv(CHUNK)
            if not data:
                return
            sock.sendall(data)


def reply_with_sum(sock: socket.socket) -> None:
    with sock:
        sock.sendall(str(sum_up(sock)).encode())


def serve(port: int, handler: Callable[[socket.socket], None]) -> None:
    listener = socket.create_server(("127.0.0.1", port))

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=handler, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


COMMANDS: Dict[str, Callable[..., Answer]] = {
    "echo": echo,
    "half-close": half_close,
    "many": many,
    "pour": pour,
    "kms": kms,
}


def obey(line: str) -> None:
    verb, *words = line.split()
    try:
        print("ok", *COMMANDS[verb](*words), flush=True)
    except Exception as error:
        print(f"failed {verb}: {error!r}", flush=True)


def wait_for_forwarder() -> None:
    """Wait until it listens; it was started just before."""
    while True:
        try:
            dial("127.0.0.1", 443).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)


def main() -> None:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", PAGE), Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    serve(ECHO, echo_all)
    serve(SUM, reply_with_sum)
    wait_for_forwarder()
    print("ready", flush=True)
    for line in sys.stdin:
        obey(line)


if __name__ == "__main__":
    main()
