"""What the operator asks for: the command line, the file and the instance metadata together."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Mapping, Optional, Sequence, Tuple

from vsock_proxy.config import loading, metadata
from vsock_proxy.config.loading import Configuration, Refuse
from vsock_proxy.config.metadata import Search
from vsock_proxy.errors import raise_error
from vsock_proxy.settings import ServiceSettings, Settings
from vsock_proxy.supervision.judging import Wanted, names_of, naming


def want(
    settings: Settings,
    again: bool = False,
    known: Optional[Mapping[str, str]] = None,
    search: Optional[Search] = None,
) -> Wanted:
    """Read the file, and fill in {region} and {domain}.

    again: True on a reload, while services are served already.
    known: the values known from before.
    search: finds the other values.

    Raises ConfigurationError, UsageError or TryAgainError.
    """
    configuration = loading.load(settings.config, again)
    services = asked_for(settings, configuration)
    return fill_in(settings, configuration, services, known, search)


def asked_for(
    settings: Settings, configuration: Configuration, refuse: Refuse = raise_error
) -> Tuple[ServiceSettings, ...]:
    """The service of the command line, or those of the file, with their placeholders.

    refuse: gets each fault of a service of the file.

    Raises ConfigurationError or UsageError.
    """
    if settings.service is not None:
        return (settings.service,)
    return configuration.services(settings.options, settings.workers, refuse)


def fill_in(
    settings: Settings,
    configuration: Configuration,
    services: Sequence[ServiceSettings],
    known: Optional[Mapping[str, str]] = None,
    search: Optional[Search] = None,
) -> Wanted:
    """The services without placeholders. Raises ConfigurationError, UsageError or TryAgainError."""
    of_file = settings.service is None
    hosts = [service.endpoint.host for service in services if service.endpoint.is_tcp]
    values = metadata.values(metadata.placeholders(hosts), known, search=search)
    names = names_of(services) if of_file else [""]
    filled = _filled(services, values, names, settings.config)
    return Wanted(configuration.allowlist, filled, of_file, values)


def _filled(
    services: Sequence[ServiceSettings],
    values: Mapping[str, str],
    names: Sequence[str],
    path: str,
) -> Tuple[ServiceSettings, ...]:
    filled: List[ServiceSettings] = []
    for service, name in zip(services, names):
        if not service.endpoint.is_tcp:
            filled.append(service)
            continue
        with naming(service, name, path):
            host = metadata.fill(service.endpoint.host, values)
        filled.append(replace(service, endpoint=replace(service.endpoint, host=host)))
    return tuple(filled)
