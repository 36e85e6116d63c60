"""The alert rules and the dashboard: valid, tested, documented, of metrics that there are."""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
import yaml

from tests.conftest import StartProxy, StartServer
from tests.support.program import PROJECT
from tests.support.scraping import get
from tests.support.servers import exchange
from tests.support.timing import wait_until

RULES = PROJECT / "etc" / "prometheus" / "vsock-proxy.rules.yaml"
RULES_TEST = PROJECT / "tests" / "program" / "alerts.yaml"
DASHBOARD = PROJECT / "etc" / "grafana" / "vsock-proxy.json"
PICTURE = PROJECT / "docs" / "dashboard.svg"
TROUBLESHOOTING = (PROJECT / "docs" / "troubleshooting.md").read_text("utf-8")
REFERENCE = (PROJECT / "docs" / "reference.md").read_text("utf-8")
# Of Prometheus itself, and what histograms have behind their name.
NOT_OURS = {"up"}
SUFFIX = re.compile(r"_(bucket|count|sum)$")
METRIC = re.compile(r"\b(vsock_proxy_\w+|process_start_time_seconds|up)\b(?=[{\[\s)]|$)")
# In what Grafana fills in.
RATE_INTERVAL = "10s"

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Debian's package prometheus"
)


def alerts() -> List[Dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    rules: List[Dict[str, Any]] = group["rules"]
    return rules


def panels() -> List[Dict[str, Any]]:
    found: List[Dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def queries() -> List[str]:
    """Those of all panels."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def named(expression: str) -> Set[str]:
    return {SUFFIX.sub("", name) for name in METRIC.findall(expression)} - NOT_OURS


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@needs_promtool
def test_the_rules_are_valid() -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    tested = promtool("test", "rules", str(RULES_TEST))
    assert tested.returncode == 0, tested.stdout


def test_each_alert_is_tested_both_ways_and_documented() -> None:
    cases = [
        case
        for test in yaml.safe_load(RULES_TEST.read_text("utf-8"))["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == names
    assert {case["alertname"] for case in cases if "exp_alerts" not in case} == names
    for name in names:
        assert f"`{name}`" in TROUBLESHOOTING


@pytest.mark.parametrize("expression", [rule["expr"] for rule in alerts()] + queries())
def test_each_expression_is_about_metrics_that_are_documented(expression: str) -> None:
    found = named(expression)
    assert found or "up{" in expression
    for name in found:
        assert f"`{name}`" in REFERENCE


def test_the_picture_of_the_dashboard_has_each_of_its_panels() -> None:
    titles = re.findall(r'class="title"[^>]*>([^<]*)<', PICTURE.read_text("utf-8"))
    assert titles == [panel["title"] for panel in panels()]


def test_each_metric_that_is_documented_is_there_and_the_other_way_round(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    address = tmp_path / "metrics"
    start_proxy(("localhost", start_server().port), "--metrics", f"unix:{address}")
    wait_until(
        lambda: "dns_last_success_timestamp_seconds{" in get(address, "/metrics").text,
        "the name is looked up",
    )
    text = get(address, "/metrics").text
    there = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    section = REFERENCE.split("\n## Metrics\n")[1]
    documented = set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) ", section, re.M))
    assert there == documented


class Prometheus:
    """A server that scrapes one proxy."""

    def __init__(self, folder: Path, target: str) -> None:
        self._host = ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])
        self._port = random.randrange(1 << 10, 1 << 15)
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            f"- {{job_name: vsock-proxy, static_configs: [{{targets: ['{target}']}}]}}\n"
            f"rule_files: ['{RULES}']\n"
        )
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._host}:{self._port}",
                "--log.level=error",
            ]
        )

    def query(self, expression: str) -> List[Any]:
        """What the expression is now. Raises OSError while it is not ready."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=20)
        try:
            path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise ConnectionError("it is still starting")
            answer = json.loads(response.read())
        finally:
            connection.close()
        assert answer["status"] == "success", (expression, answer)
        result: List[Any] = answer["data"]["result"]
        return result

    def has(self, expression: str) -> bool:
        try:
            return bool(self.query(expression))
        except OSError:
            return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def scraped(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a proxy with some clients."""
    host, port = "127.0.0.1", random.randrange(1 << 10, 1 << 15)
    server = start_server()
    proxy = start_proxy(("localhost", server.port), "--metrics", f"{host}:{port}")
    prometheus = Prometheus(tmp_path, f"{host}:{port}")
    try:
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
        served = 'vsock_proxy_connections_total{result="served"}'
        wait_until(lambda: prometheus.has(f"{served} == 1"), "it was scraped", timeout=30)
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
        server.close()
        with proxy.connect():
            proxy.log.wait_for("Connection refused")
        refused = f'increase(vsock_proxy_connections_total{{result="refused"}}[{RATE_INTERVAL}])'
        wait_until(lambda: prometheus.has(f"{refused} > 0"), "it was scraped again", timeout=30)
        yield prometheus
    finally:
        prometheus.close()


def filled_in(query: str) -> str:
    """A query as Grafana sends it, for one proxy and all services."""
    chosen: Tuple[Tuple[str, str], ...] = (
        ("$__rate_interval", RATE_INTERVAL),
        ("$job", "vsock-proxy"),
        ("$instance", ".*"),
        ("$service", ".*"),
    )
    for name, value in chosen:
        query = query.replace(name, value)
    assert "$" not in query
    return query


@needs_prometheus
def test_each_query_of_the_dashboard_has_an_answer_from_prometheus(scraped: Prometheus) -> None:
    for query in queries():
        assert scraped.query(filled_in(query)), query


@needs_prometheus
def test_each_alert_can_be_evaluated_by_prometheus(scraped: Prometheus) -> None:
    for rule in alerts():
        scraped.query(rule["expr"])
