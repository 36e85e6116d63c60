"""The manifest for Kubernetes is valid, and serves what its allowlist permits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.program import PROJECT
from vsock_proxy import cli
from vsock_proxy.config import loading
from vsock_proxy.observing.exporter import HEALTH, READINESS
from vsock_proxy.settings import MetricsAddress

MANIFEST = PROJECT / "etc" / "kubernetes" / "vsock-proxy.yaml"
KUBERNETES = "1.29"

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def test_it_is_valid_by_the_schemas_of_the_api() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for resource in yaml.safe_load_all(MANIFEST.read_text()):
        validator.validate(resource, KUBERNETES, strict=True)


def test_its_probes_ask_where_its_arguments_serve_health() -> None:
    _, daemons = yaml.safe_load_all(MANIFEST.read_text())
    (container,) = daemons["spec"]["template"]["spec"]["containers"]
    settings = cli.parse([word.replace("$(POD_IP)", "10.0.0.5") for word in container["args"]])
    assert settings.metrics is not None
    (port,) = container["ports"]
    assert settings.metrics == MetricsAddress("10.0.0.5", port["containerPort"])
    asked = {
        kind: container[kind]["httpGet"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["port"] for probe in asked.values()} == {port["name"]}
    assert [probe["path"] for probe in asked.values()] == [HEALTH, HEALTH, READINESS]


# What `services/domain` of the metadata says in each partition that offers Kubernetes.
DOMAINS = ("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu")


@pytest.mark.parametrize("domain", DOMAINS)
def test_its_allowlist_permits_the_endpoint_of_its_arguments(tmp_path: Path, domain: str) -> None:
    config, daemons = yaml.safe_load_all(MANIFEST.read_text())
    (container,) = daemons["spec"]["template"]["spec"]["containers"]
    host, port = container["args"][-2:]
    path = tmp_path / "vsock-proxy.yaml"
    path.write_text(config["data"]["vsock-proxy.yaml"])
    name = host.replace("{region}", "some-region-1").replace("{domain}", domain)
    assert loading.load(str(path)).allowlist.permits_name(name, int(port))
