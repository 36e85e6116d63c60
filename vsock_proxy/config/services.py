"""The services of the file: where each listens, and the endpoint of its clients.

Only this program knows the keys of a service. So an unknown key is an error: it is a misspelt one,
and a service without its `allow_cid` would serve guests that it must not serve. A key takes the
same values as the option of the same name (config/rules.py).
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Tuple, Union

import yaml

from vsock_proxy.config import rules, yaml_nodes
from vsock_proxy.config.endpoints import EXPECTED, check_endpoint, port_rule
from vsock_proxy.config.hostnames import NoHost, parse_address
from vsock_proxy.config.places import claim_of
from vsock_proxy.config.rules import Unfit
from vsock_proxy.config.yaml_nodes import line_of
from vsock_proxy.config.yaml_values import Fault, number, shown, text
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

# Each service has a listener in every worker that serves it. One with a name also has pipes and a
# thread of the resolver. So there must be a limit, and nobody has a thousand endpoints.
MOST_SERVICES = 1000
# Of all services together, because an alias gives one long list to many services.
MOST_CIDS = yaml_nodes.MAX_VALUES
NEEDED = ("listen", "address", "port")
FAMILY_NAMES = {family: name for name, family in rules.FAMILIES.items()}
FAMILY_OPTIONS = {socket.AF_INET: "-4", socket.AF_INET6: "-6"}

Nodes = Dict[str, yaml.Node]
Reader = Callable[[yaml.Node], Any]
Refuse = Callable[[Fault], None]


def parse(
    node: yaml.Node, options: ServiceOptions, workers: int, refuse: Refuse
) -> Tuple[ServiceSettings, ...]:
    """The services in the value of the key `services`. Raises Fault.

    options: the defaults of each service.
    workers: how many serve the services without workers of their own.
    refuse: gets each fault of a service. If it does not raise, the others are parsed too.
    """
    listed: List[Tuple[Nodes, int]] = []
    for each in _listed(node):
        with _refusing(refuse):
            listed.append((_nodes(each), line_of(each)))
    _check_cids([nodes for nodes, _ in listed])
    services: List[ServiceSettings] = []
    whole: List[Nodes] = []
    for nodes, line in listed:
        with _refusing(refuse):
            services.append(_service(nodes, line, options))
            whole.append(nodes)
    with _refusing(refuse):
        _check_places(services, whole)
        _check_workers(services, whole, workers)
    return tuple(services)


@contextlib.contextmanager
def _refusing(refuse: Refuse) -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        refuse(fault)


def _listed(node: yaml.Node) -> List[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise Fault(node, f"services is {shown(node)}; expected a list of services")
    listed: List[yaml.Node] = node.value
    if not listed:
        raise Fault(node, f"services is {shown(node)}; expected at least one service")
    if len(listed) > MOST_SERVICES:
        raise Fault(listed[MOST_SERVICES], f"more than {MOST_SERVICES} services")
    return listed


def _nodes(node: yaml.Node) -> Nodes:
    """The value of each key."""
    if not isinstance(node, yaml.MappingNode):
        raise Fault(
            node, f"service is {shown(node)}; expected {{listen: PORT, address: HOST, port: N}}"
        )
    nodes: Nodes = {}
    for key, value in node.value:
        if not isinstance(key.value, str) or key.value not in READERS:
            raise Fault(key, f"unknown key {shown(key)}; expected one of {', '.join(READERS)}")
        if key.value in nodes:
            raise Fault(key, f"a second {key.value} in one service; expected one")
        nodes[key.value] = value
    for name in NEEDED:
        if name not in nodes:
            raise Fault(node, f"service without {name}; expected listen, address and port")
    return nodes


def _service(nodes: Nodes, line: int, options: ServiceOptions) -> ServiceSettings:
    if "uds_path" in nodes or "listen_tcp" in nodes:
        # The default of either is only for services with neither key.
        options = replace(options, uds_path=None, listen_tcp=None)
    over_tcp = "listen_tcp" in nodes or options.listen_tcp is not None
    address = _value("address", nodes["address"], _address)
    # Which ports are possible depends on where it listens and on the kind of address.
    readers = {
        **READERS,
        "listen": _number(rules.port_to_listen_on(over_tcp)),
        "port": _number(port_rule(address)),
    }
    values = {name: _value(name, node, readers[name]) for name, node in nodes.items()}
    workers = values.pop("workers", None)
    port = values.pop("listen")
    endpoint = Endpoint(values.pop("address"), values.pop("port"))
    own = {FIELDS.get(name, name): value for name, value in values.items()}
    service = ServiceSettings(port, endpoint, replace(options, **own), workers, line)
    _check_lookup(nodes, service)
    _check_family(nodes, service)
    _check_transport(nodes, service)
    return service


def _value(name: str, node: yaml.Node, read: Reader) -> Any:
    try:
        return read(node)
    except NoHost as error:
        raise Fault(node, f"{name} is {shown(node)}, which {error}; expected {EXPECTED}") from None
    except Unfit as error:
        raise Fault(node, f"{name} is {shown(node)}; expected {error}") from None


def _number(rule: Union[rules.Integer, rules.Seconds]) -> Reader:
    return lambda node: rule.parse(number(node))


def _address(node: yaml.Node) -> str:
    address = text(node) or ""
    check_endpoint(address)
    return address


def _path(node: yaml.Node) -> str:
    path = text(node) or ""
    # Checked with the shortest port. The service's own port is known only after all its keys.
    rules.check_uds_path(path, rules.VSOCK_PORT.minimum)
    return path


def _local_address(node: yaml.Node) -> str:
    return rules.local_address(text(node) or "")


def _family(node: yaml.Node) -> socket.AddressFamily:
    family = rules.FAMILIES.get(text(node) or "")
    if family is None:
        raise Unfit(" or ".join(rules.FAMILIES))
    return family


def _cids(node: yaml.Node) -> FrozenSet[int]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise Unfit("a list of CIDs such as [16, 17]")
    return frozenset(_cid(each) for each in node.value)


def _cid(node: yaml.Node) -> int:
    try:
        return rules.CID.parse(number(node))
    except Unfit as error:
        raise Fault(node, f"allow_cid has {shown(node)}; expected {error}") from None


READERS: Dict[str, Reader] = {
    "listen": _number(rules.VSOCK_PORT),
    "address": _address,
    "port": _number(rules.TCP_PORT),
    "workers": _number(rules.WORKERS),
    "family": _family,
    "uds_path": _path,
    "listen_tcp": _local_address,
    "allow_cid": _cids,
    "connect_timeout": _number(rules.CONNECT_TIMEOUT),
    "idle_timeout": _number(rules.IDLE_TIMEOUT),
    "resolve_interval": _number(rules.RESOLVE_INTERVAL),
}
# The fields of ServiceOptions whose names differ from the key.
FIELDS = {"allow_cid": "allowed_cids"}
# The keys that make no sense if nothing is looked up.
OF_LOOKUPS = ("family", "resolve_interval")


def _check_lookup(nodes: Nodes, service: ServiceSettings) -> None:
    """Check that options of lookups stand only where there is a lookup. Raises Fault."""
    if service.endpoint.is_tcp:
        return
    for name in OF_LOOKUPS:
        if name in nodes and not (name == "family" and service.is_v6_only):
            raise Fault(
                nodes[name],
                f"{name} together with address {shown(nodes['address'])}; expected it with a host "
                "name or an IP address alone, because no name is looked up here",
            )


def _check_family(nodes: Nodes, service: ServiceSettings) -> None:
    """Check that an address is of the permitted family. Raises Fault."""
    family = service.options.family
    address = parse_address(service.endpoint.host)
    if address is None or family in (socket.AF_UNSPEC, rules.FAMILIES[f"ipv{address.version}"]):
        return
    cause = f"family: {FAMILY_NAMES[family]}" if "family" in nodes else FAMILY_OPTIONS[family]
    raise Fault(
        nodes["address"],
        f"address is {shown(nodes['address'])}, and {cause} asks for the other family; expected "
        "a host name or an address of that family",
    )


def _check_transport(nodes: Nodes, service: ServiceSettings) -> None:
    """Check that there is one transport, and that it can do what is asked. Raises Fault."""
    uds_path, listen_tcp = service.options.uds_path, service.options.listen_tcp
    if uds_path is not None and listen_tcp is not None:
        raise Fault(
            nodes["listen_tcp"],
            "listen_tcp together with uds_path; expected one of them, because a service listens "
            "in one place",
        )
    if uds_path is not None:
        _check_uds_path(nodes, uds_path, service.local_port)
        _check_no_cids(nodes, service, "uds_path", "a Unix socket does not tell the CID")
    if listen_tcp is not None:
        _check_no_cids(nodes, service, "listen_tcp", "a TCP client has none")


def _check_uds_path(nodes: Nodes, path: str, port: int) -> None:
    try:
        rules.check_uds_path(path, port)
    except Unfit as error:
        node = nodes.get("uds_path", nodes["listen"])
        raise Fault(node, f"{_written('uds_path', nodes)} is {path!r}; expected {error}") from None


def _check_no_cids(nodes: Nodes, service: ServiceSettings, transport: str, cause: str) -> None:
    if service.options.allowed_cids is None:
        return
    first, second = _written("allow_cid", nodes), _written(transport, nodes)
    raise Fault(
        nodes.get("allow_cid") or nodes.get(transport) or nodes["listen"],
        f"{first} together with {second}; expected one of them, because {cause}",
    )


def _written(name: str, nodes: Nodes) -> str:
    """The name of what gave the value: the key, or the option."""
    return name if name in nodes else f"--{name.replace('_', '-')}"


def _check_cids(listed: List[Nodes]) -> None:
    """Check that all services together do not have too many CIDs. Raises Fault."""
    count = 0
    for node in (nodes["allow_cid"] for nodes in listed if "allow_cid" in nodes):
        count += len(node.value) if isinstance(node, yaml.SequenceNode) else 0
        if count > MOST_CIDS:
            raise Fault(node, f"more than {MOST_CIDS} CIDs in all services")


def _check_places(services: Iterable[ServiceSettings], listed: Iterable[Nodes]) -> None:
    """Check that no two services listen in the same place. Raises Fault."""
    places: Dict[str, yaml.Node] = {}
    for service, nodes in zip(services, listed):
        node = nodes["listen"]
        place = claim_of(service)
        if place in places:
            raise Fault(
                node,
                f"a second service on {place}, the first is in line {line_of(places[place])}; "
                "expected one for each",
            )
        places[place] = node


def _check_workers(services: List[ServiceSettings], listed: Iterable[Nodes], shared: int) -> None:
    """Check that all pools together do not have too many workers. Raises Fault."""
    most = rules.WORKERS.maximum
    count = shared if any(service.workers is None for service in services) else 0
    of_shared = f" and the {count} that others share (-w)" if count else ""
    for service, nodes in zip(services, listed):
        count += service.workers or 0
        if count > most:
            raise Fault(
                nodes["workers"],
                f"workers is {shown(nodes['workers'])}, which makes {count} with those of the "
                f"services before it{of_shared}; expected at most {most} in all",
            )
