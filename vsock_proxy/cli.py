"""The command line: turns argv into Settings, and a failure into a line on stderr and an exit code.

The usage text below is the interface. docopt parses by it, so it cannot promise an option that does
not exist. docopt knows only words. What a word must be (a port, a number of seconds) is checked
once, here, so that no other module has to doubt its settings.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import socket
import sys
import traceback
import warnings
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

with warnings.catch_warnings():
    # CPython 3.12 and newer warn of escapes in its regular expressions.
    warnings.simplefilter("ignore")
    import docopt

from vsock_proxy import __version__
from vsock_proxy.config import rules
from vsock_proxy.config.endpoints import EXPECTED, check_endpoint, port_rule
from vsock_proxy.config.hostnames import NoHost
from vsock_proxy.config.rules import Unfit
from vsock_proxy.errors import OutputError, ProxyError, UsageError, out_of, out_of_memory
from vsock_proxy.observing.complaints import Complaints
from vsock_proxy.observing.stderr import Stderr
from vsock_proxy.process.signals import Interrupted, Signals
from vsock_proxy.settings import (
    JSON,
    LOG_FORMATS,
    Endpoint,
    MetricsAddress,
    ServiceOptions,
    ServiceSettings,
    Settings,
)

USAGE = """\
Relay connections of enclaves and microVMs between vsock and TCP.

Usage:
  vsock-proxy [options] [-4 | -6] <local_port> <remote_addr> <remote_port>
  vsock-proxy [options] [-4 | -6]
  vsock-proxy -h | --help
  vsock-proxy -V | --version

Arguments:
  <local_port>   vsock port to listen on, from 4 to 4294967294, or TCP port,
                 from 1 to 65535, with --listen-tcp
  <remote_addr>  host name or IP address of the endpoint; {region} and {domain}
                 in it are filled in from the EC2 instance metadata. Or
                 vsock:CID, a guest or parent on vsock; or unix:PATH, the
                 guest whose VMM (Firecracker, Cloud Hypervisor) listens on
                 the Unix socket PATH
  <remote_port>  TCP port of the endpoint, or its vsock port

Without arguments the proxy serves all services of the file of --config. The
options are then the defaults of each service.

Words after -- are arguments, even if they begin with a hyphen.

Options:
  -4, --ipv4             Use only IPv4 addresses of the endpoint.
  -6, --ipv6             Use only IPv6 addresses of the endpoint.
  --config FILE          Allowlist of endpoints, and services, YAML.
                         [default: /etc/nitro_enclaves/vsock-proxy.yaml]
  -w N, --num_workers N  Number of workers. Each serves one connection at a
                         time; further ones wait. Services of the file share
                         them, or have workers of their own. [default: 4]
  --uds-path PATH        Hybrid vsock (Firecracker, Cloud Hypervisor): listen
                         on the Unix socket PATH_<local_port>, not on AF_VSOCK.
  --listen-tcp ADDRESS   Listen on TCP at this address of the machine, not on
                         AF_VSOCK. Whoever reaches it is served. 0.0.0.0 is
                         all IPv4 addresses; :: is all, with -6 all of IPv6.
  --allow-cid CIDS       Serve only these guests, CIDs separated by commas
                         (AF_VSOCK only).
  --connect-timeout S    Give up on the endpoint after S seconds.
                         [default: 10]
  --idle-timeout S       End a connection in which no byte moved for S seconds;
                         0: never. [default: 0]
  --resolve-interval S   Look the endpoint's name up again every S seconds.
                         [default: 15]
  --drain-timeout S      After SIGTERM, let live connections go on for at most
                         S seconds. [default: 30]
  --metrics ADDRESS      Serve metrics for Prometheus, /healthz and /readyz at
                         HOST:PORT, or PORT of 127.0.0.1, or unix:PATH. Needs
                         the extra vsock-proxy[metrics].
  --log-level LEVEL      debug, info, warning or error. [default: info]
  --log-format FORMAT    text, or json: one object a line. [default: text]
  --check                Serve nothing. Say what would be served, and what
                         stands in its way.
  -h, --help             Show this text.
  -V, --version          Show the version.

Exit codes: 0 ended as told, 64 a fault of the command line, 69 it cannot
listen, 70 an internal error, 74 the output cannot be written, 75 try again
later, 78 a fault of the file.
"""

STDOUT = 1
LONG_OPTIONS = frozenset(re.findall(r"--[a-z0-9_-]+", USAGE))
SHORT_OPTIONS = dict(re.findall(r"^  (-\w)(?: N)?, (--[a-z0-9_-]+)", USAGE, re.MULTILINE))
# The options of version 1.0. An abbreviation that was unique among them keeps its meaning.
FIRST_OPTIONS = frozenset(
    (
        *("--ipv4", "--ipv6", "--config", "--num_workers", "--uds-path", "--allow-cid"),
        *("--connect-timeout", "--idle-timeout", "--resolve-interval", "--drain-timeout"),
        *("--log-level", "--help", "--version"),
    )
)
WITH_VALUE = frozenset(re.findall(r"(--[a-z0-9_-]+) [A-Z]", USAGE))
# Short options, which may be joined, also with the value of -w; AWS's program allows -w=N too.
SHORT = re.compile(r"-(?=[46w])([46]*)(w(=?)(.*))?", re.DOTALL)
# Joined short options, of which one asks for a text; what follows that one does not count.
ASKING = re.compile(r"-[46]*([hV])[46hV]*")
# Both are handled before docopt, if written in full. docopt would take --vers for --version.
ABBREVIATED = "--help and --version cannot be abbreviated"
# Options that have no use if nothing is looked up.
OF_LOOKUPS = ("--ipv4", "--ipv6", "--resolve-interval")
METRICS_PACKAGE = "prometheus_client"
INTERNAL_ERROR = "internal error, please report it"
LOG_LEVELS = ("debug", "info", "warning", "error")
# Marks a word after `--`; no word of a command line can contain it.
NO_OPTION = "\0"

T = TypeVar("T")


def run(arguments: List[str], signals: Signals) -> int:
    """Run the program; returns its exit code."""
    complaints = Complaints(Stderr(), _asks_for_json(arguments))
    try:
        text = _asked_for(arguments)
        if text is not None:
            signals.unless_told_to_end(lambda: _print(text))
            return os.EX_OK
        settings = parse(arguments)
        if settings.check:
            return _check(settings, signals)
        # Imported late, so that a usage error does not wait for what only serving needs.
        from vsock_proxy.supervision.start import serve

        return serve(settings, signals, complaints.stderr)
    except Interrupted:
        return os.EX_OK
    except ProxyError as error:
        return complaints.fail(str(error), error.exit_code)
    except MemoryError:
        return complaints.fail(str(out_of_memory()), os.EX_UNAVAILABLE)
    except Exception as error:
        exhausted = out_of(error) if isinstance(error, OSError) else None
        if exhausted is not None:
            return complaints.fail(str(exhausted), exhausted.exit_code)
        # The last frame of the program: it shows the whole error, with an exit code of its own.
        return complaints.fail(INTERNAL_ERROR, os.EX_SOFTWARE, traceback.format_exc().rstrip())


def _check(settings: Settings, signals: Signals) -> int:
    # Imported late: serving does not need it.
    from vsock_proxy.observing.verdicts import Verdicts, is_colour_wanted
    from vsock_proxy.supervision.checking import check

    is_coloured = is_colour_wanted(STDOUT, os.environ)
    verdicts = Verdicts(_print, settings.log_format, settings.log_level, is_coloured)
    return check(settings, signals, verdicts)


def parse(arguments: List[str]) -> Settings:
    """Check a command line. Raises UsageError, whose text names the word at fault."""
    words = _words(arguments)
    if words["--help"] or words["--version"]:
        raise UsageError(ABBREVIATED)
    if not words["--config"]:
        raise UsageError("--config must be a path, not ''")
    options = _options(words)
    if words["<local_port>"] is None:
        service = None
    else:
        service = _service(words, options)
        _check_lookup(service, _given(arguments))
    return Settings(
        service,
        options,
        config=words["--config"],
        workers=_value(words, "--num_workers", rules.WORKERS.parse),
        drain_timeout=_value(words, "--drain-timeout", rules.DRAIN_TIMEOUT.parse),
        log_level=_one_of(words, "--log-level", LOG_LEVELS),
        log_format=_one_of(words, "--log-format", LOG_FORMATS),
        metrics=_metrics(words),
        check=words["--check"],
    )


def _options(words: Dict[str, Any]) -> ServiceOptions:
    """What the options say of a service, on the command line or in the file."""
    uds_path = words["--uds-path"]
    if uds_path is not None:
        # With the shortest port, because the ports are not known yet.
        _check_uds_path(uds_path, rules.VSOCK_PORT.minimum)
    listen_tcp = None
    if words["--listen-tcp"] is not None:
        if uds_path is not None:
            raise UsageError("--uds-path and --listen-tcp exclude each other; give one of them")
        listen_tcp = _value(words, "--listen-tcp", rules.local_address)
    allowed_cids = None
    if words["--allow-cid"] is not None:
        if uds_path is not None:
            raise UsageError("--allow-cid needs AF_VSOCK: a Unix socket does not tell the CID")
        if listen_tcp is not None:
            raise UsageError("--allow-cid needs AF_VSOCK: a TCP client has no CID")
        allowed_cids = _cids(words["--allow-cid"])
    return ServiceOptions(
        family=_family(words),
        uds_path=uds_path,
        listen_tcp=listen_tcp,
        allowed_cids=allowed_cids,
        connect_timeout=_value(words, "--connect-timeout", rules.CONNECT_TIMEOUT.parse),
        idle_timeout=_value(words, "--idle-timeout", rules.IDLE_TIMEOUT.parse),
        resolve_interval=_value(words, "--resolve-interval", rules.RESOLVE_INTERVAL.parse),
    )


def _service(words: Dict[str, Any], options: ServiceOptions) -> ServiceSettings:
    """The service that the arguments describe."""
    local_rule = rules.port_to_listen_on(options.listen_tcp is not None)
    local_port = _value(words, "<local_port>", local_rule.parse)
    if options.uds_path is not None:
        _check_uds_path(options.uds_path, local_port)
    address = _address(words["<remote_addr>"])
    port = _value(words, "<remote_port>", port_rule(address).parse)
    return ServiceSettings(local_port, Endpoint(address, port), options)


def _check_lookup(service: ServiceSettings, given: FrozenSet[str]) -> None:
    """Raises UsageError if an option is about lookups and the endpoint needs none."""
    if service.endpoint.is_tcp:
        return
    for name in OF_LOOKUPS:
        if name in given and not (name == "--ipv6" and service.is_v6_only):
            raise UsageError(
                f"{name} is for a host name or an IP address, and {service.endpoint.host} is "
                f"neither; leave {name} out"
            )


def _asked_for(arguments: List[str]) -> Optional[str]:
    """The text that the arguments ask for; None if they ask to serve."""
    options, _ = _split(arguments)
    asked = {found[1] for found in map(ASKING.fullmatch, options) if found}
    if "--help" in options or "h" in asked:
        return USAGE.rstrip()
    if "--version" in options or "V" in asked:
        return f"vsock-proxy {__version__}"
    return None


def _asks_for_json(arguments: List[str]) -> bool:
    """Whether --log-format json is among them, even if something else is wrong with them."""
    options, _ = _split(arguments)
    for option, following in zip(options, [*options[1:], ""]):
        name, is_joined, value = option.partition("=")
        if _long_names(name) == ["--log-format"] and (value if is_joined else following) == JSON:
            return True
    return False


def _split(arguments: List[str]) -> Tuple[List[str], List[str]]:
    """The words before `--`, and those after it; none of the latter is an option."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _words(arguments: List[str]) -> Dict[str, Any]:
    """argv parsed by the usage text; the values are not checked yet."""
    before, behind = _split(arguments)
    spelled = list(_spelled_out(before))
    try:
        # By position, because docopt-ng has another name for `help`.
        words: Dict[str, Any] = docopt.docopt(
            USAGE, [word for word, _ in spelled] + [NO_OPTION + word for word in behind], False
        )
    except docopt.DocoptExit as error:
        options = [word for word, is_option in spelled if is_option]
        raise UsageError(_what_docopt_means(options, str(error))) from None
    return {
        key: value[len(NO_OPTION) :] if str(value).startswith(NO_OPTION) else value
        for key, value in words.items()
    }


def _given(arguments: List[str]) -> FrozenSet[str]:
    """The long names of the options on a command line that docopt has accepted."""
    before, _ = _split(arguments)
    options = (word.split("=")[0] for word, is_option in _spelled_out(before) if is_option)
    return frozenset(name for option in options for name in _long_names(option))


def _spelled_out(arguments: List[str]) -> Iterator[Tuple[str, bool]]:
    """Each word, and whether it is an option; short and abbreviated options in full.

    docopt has no -w=4, docopt-ng takes -4 for a negative number, and neither knows which options
    were there in version 1.0.
    """
    is_value = False
    for word in arguments:
        short = SHORT.fullmatch(word)
        if is_value or word == "-" or not word.startswith("-"):
            yield word, False
            is_value = False
        elif short is None:
            option, joined, value = word.partition("=")
            names = _long_names(option)
            yield f"{names[0]}{joined}{value}" if len(names) == 1 else word, True
            is_value = not joined and WITH_VALUE.issuperset(names or ["none"])
        else:
            yield from ((SHORT_OPTIONS[f"-{letter}"], True) for letter in short[1])
            if short[2]:
                is_value = not short[3] and not short[4]
                value = "" if is_value else f"={short[4]}"
                yield SHORT_OPTIONS["-w"] + value, True
    if is_value:
        raise UsageError(f"{arguments[-1]} requires an argument; see vsock-proxy --help")


def _what_docopt_means(options: List[str], text: str) -> str:
    """One line on why docopt refuses a command line; docopt itself says so only sometimes."""
    given: List[str] = []
    for option in (word.split("=")[0] for word in options):
        names = _long_names(option)
        if not names:
            return f"there is no option {option}; see vsock-proxy --help"
        if len(names) > 1:
            return f"{option} may be {' or '.join(names)}; write it out"
        given += names
    if {"--help", "--version"} & set(given):
        return ABBREVIATED
    if {"--ipv4", "--ipv6"} <= set(given):
        return "-4 and -6 exclude each other; give one of them, or neither for both families"
    reason = text.splitlines()[0] if text else ""
    if reason.endswith(" must not have an argument"):
        return f"{reason}; see vsock-proxy --help"
    for name in given:
        if given.count(name) > 1:
            return f"{name} is given {given.count(name)} times; give it once"
    return (
        "the arguments do not fit: expected [options] [-4 | -6] <local_port> <remote_addr> "
        "<remote_port>, or options alone to serve the services of the file; see vsock-proxy --help"
    )


def _long_names(option: str) -> List[str]:
    """The options that a word may mean; a long one may be abbreviated."""
    if option in LONG_OPTIONS:
        return [option]
    if not option.startswith("--"):
        return [SHORT_OPTIONS[option]] if option in SHORT_OPTIONS else []
    names = sorted(name for name in LONG_OPTIONS if name.startswith(option))
    return [name for name in names if name in FIRST_OPTIONS] or names


def _value(words: Dict[str, Any], name: str, parse: Callable[[str], T]) -> T:
    return _fitting(name, words[name], parse)


def _fitting(name: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except Unfit as error:
        raise UsageError(f"{name} must be {error}, not {text!r}") from None


def _cids(text: str) -> FrozenSet[int]:
    return frozenset(_fitting("--allow-cid", cid, rules.CID.parse) for cid in text.split(","))


def _address(text: str) -> str:
    try:
        check_endpoint(text)
    except NoHost as error:
        raise UsageError(f"<remote_addr> must be {EXPECTED}; {text!r} {error}") from None
    return text


def _metrics(words: Dict[str, Any]) -> Optional[MetricsAddress]:
    if words["--metrics"] is None:
        return None
    address = _value(words, "--metrics", rules.metrics_address)
    # Not imported: only the process that serves them needs it.
    if importlib.util.find_spec(METRICS_PACKAGE) is None:
        raise UsageError(
            "--metrics needs the Python package prometheus-client, which is not installed; "
            "install it with: pip install 'vsock-proxy[metrics]', or with the system's package "
            "python3-prometheus-client"
        )
    return address


def _family(words: Dict[str, Any]) -> socket.AddressFamily:
    if words["--ipv4"]:
        return socket.AF_INET
    return socket.AF_INET6 if words["--ipv6"] else socket.AF_UNSPEC


def _one_of(words: Dict[str, Any], name: str, known: Sequence[str]) -> str:
    text: str = words[name]
    if text not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}, not {text!r}")
    return text


def _check_uds_path(path: str, local_port: int) -> None:
    _fitting("--uds-path", path, lambda text: rules.check_uds_path(text, local_port))


def _print(text: str) -> None:
    """Write to the standard output, without a buffer. Raises OutputError.

    If print() cannot write, its text stays in a buffer, and the interpreter fails again at its end.
    sys.stdout is None if the descriptor was closed at the start.
    """
    rest = f"{text}\n".encode()
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while rest:
            rest = rest[os.write(STDOUT, rest) :]
    except OSError as error:
        raise OutputError(f"cannot write to the standard output: {error.strerror}") from None
