"""How the package is built; everything a build needs to know stands here."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
# What writes metrics in the formats of Prometheus.
METRICS = ["prometheus-client"]
# What the tests use of other projects. moto's own list for its server has that of every service.
TEST = [
    *METRICS,
    "boto3",
    "flask",
    "flask-cors",
    "hypothesis",
    "jsonschema",
    "kubernetes-validate",
    "moto[kms]",
    "pytest",
    "pytest-xdist",
]
# The first that measures forked processes, and finds the source from every folder.
COVERAGE = ["coverage>=7.10.6"]
# What starts a virtual machine for those on AF_VSOCK.
VM = ["virtme-ng"]
# Each release of ruff formats a little differently; one of proselint or codespell may find more.
LINT = ["codespell[toml]==2.4.*", "proselint==0.16.*", "ruff==0.17.*"]
TYPES = [
    "mypy",
    "types-PyYAML",
    "types-boto3[kms]",
    "types-docopt",
    "types-setuptools",
]


def version() -> str:
    """The version, read and not imported: the dependencies may not be there yet."""
    text = (HERE / "vsock_proxy" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("vsock_proxy/__init__.py: no line with __version__")
    return found.group(1)


setup(
    name="vsock-proxy",
    version=version(),
    description="Relays connections of enclaves and microVMs between vsock and TCP",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
    python_requires=">=3.9",
    packages=find_packages(include=["vsock_proxy", "vsock_proxy.*"]),
    package_data={"vsock_proxy": ["py.typed"]},
    zip_safe=False,
    install_requires=["PyYAML", "docopt", "setproctitle"],
    extras_require={
        "metrics": METRICS,
        "test": TEST,
        "coverage": COVERAGE,
        "vm": VM,
        "lint": LINT,
        "types": TYPES,
    },
    entry_points={"console_scripts": ["vsock-proxy = vsock_proxy.__main__:main"]},
)
