"""What `--metrics` costs short connections: the counting alone, and with scrapes beside it."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import Iterator, List

from .proxies import OURS, Running, StartFailed, metrics_path, ours
from .rounds import LOADS, Bench, Sample, run_rounds

A_SECOND = 10
COUNTED = f"{OURS} --metrics"
SCRAPED = f"{COUNTED}, {A_SECOND} scrapes/s"
TIMEOUT = 10.0
REQUEST = b"GET /metrics HTTP/1.0\r\n\r\n"
CHUNK = 1 << 16


def measure(bench: Bench, rounds: int) -> List[Sample]:
    counted = ours(name=COUNTED, metrics=True)
    scraped = replace(counted, name=SCRAPED, meanwhile=_scraping)
    return run_rounds(bench, [ours(), counted, scraped], LOADS[:1], rounds, direct=False)


@contextmanager
def _scraping(running: Running) -> Iterator[None]:
    """Scrape that proxy, a fixed number of times a second."""
    over = threading.Event()
    failed: List[OSError] = []

    def scrape() -> None:
        try:
            while not over.wait(1 / A_SECOND):
                _scrape(running)
        except OSError as error:
            failed.append(error)

    _scrape(running)
    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        yield
    finally:
        over.set()
        scraper.join()
    if failed:
        raise StartFailed(f"{running.name} cannot be scraped: {failed[0]}")


def _scrape(running: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(metrics_path(running.site, running.place)))
        client.sendall(REQUEST)
        answer = bytearray()
        while True:
            data = client.recv(CHUNK)
            if not data:
                break
            answer += data
    if not answer.startswith(b"HTTP/1.0 200 "):
        raise OSError(f"it answered {bytes(answer[:60])!r}")
