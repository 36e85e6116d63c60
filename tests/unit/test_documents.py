"""The pages for users name what the program has, all of them the same, and no link leads nowhere.

The program is the source: the usage text, by which the command line is parsed, for options; the
errors for exit codes. What each means stands in one place, docs/reference.md; the manual pages have
it too, because they must do without the other pages.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, Set

import pytest

from tests.support.program import PROJECT
from vsock_proxy import errors
from vsock_proxy.cli import USAGE
from vsock_proxy.config.services import READERS
from vsock_proxy.process.signals import HANDLED

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def text_of(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


README = text_of("README.md")
REFERENCE = text_of("docs/reference.md")
MANUAL = text_of("docs/vsock-proxy.8.rst")
FILE_MANUAL = text_of("docs/vsock-proxy.yaml.5.rst")


def section(page: str, heading: str) -> str:
    """What stands below a heading of Markdown, up to the next one of any rank."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading}"
    return found[1]


def manual_section(page: str, heading: str) -> str:
    """The same in reStructuredText, where a heading is underlined."""
    parts = re.split(r"^(\S.*)\n(?:={3,}|-{3,})\n", page, flags=re.MULTILINE)
    return parts[parts.index(heading) + 1]


def paragraph(page: str, beginning: str) -> str:
    (found,) = [each for each in page.split("\n\n") if each.startswith(beginning)]
    return found


def first_column(page: str) -> str:
    return "\n".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))


def words(pattern: str, text: str) -> FrozenSet[str]:
    return frozenset(re.findall(pattern, text))


def options_of_usage() -> Dict[str, str]:
    """What the usage text says of each option, by what stands before it."""
    options = USAGE.split("\nOptions:\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^  (-.*?)  +(\S(?:.*\n?(?!  -))*)", options, re.MULTILINE))


def options_of_reference() -> Dict[str, str]:
    part = section(REFERENCE, "Options").split("\n\nWith the services")[0]
    found = re.findall(r"^- (`-.*?): (\S(?:.*\n?(?!- ))*)", part, re.MULTILINE)
    return {head.replace("`", ""): text for head, text in found}


def options_of_manual() -> Dict[str, str]:
    options = manual_section(MANUAL, "OPTIONS")
    return dict(re.findall(r"^(-.*?)  +(\S(?:.*\n?(?!-))*)", options, re.MULTILINE))


def names(heads: Iterator[str]) -> Set[str]:
    return {name for head in heads for name in re.findall(r"(?<!\S)--?[\w-]+", head)}


def default(text: str) -> List[str]:
    return re.findall(r"[Dd]efault:\s+`?([^\s\]`]+?)`?[.\]]*(?:\s|$)", text)


def exit_codes() -> FrozenSet[str]:
    kinds = [errors.ProxyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return frozenset(map(str, {os.EX_OK, *(kind.exit_code for kind in kinds)}))


def signals() -> FrozenSet[str]:
    return frozenset(signal.Signals(number).name for number in HANDLED if number != signal.SIGCHLD)


def test_the_reference_has_every_option_and_no_other() -> None:
    assert names(iter(options_of_reference())) == names(iter(options_of_usage()))


def test_the_manual_has_every_option_and_no_other() -> None:
    assert names(iter(options_of_manual())) == names(iter(options_of_usage()))


def test_the_readme_has_every_option_and_no_other() -> None:
    rows = re.findall(r"^\| .* \| (.*`-.*) \|$", section(README, "Configure"), re.MULTILINE)
    assert names(re.sub("[`(),]", " ", row) for row in rows) == names(iter(options_of_usage()))


def test_each_option_has_its_value_by_one_name_on_all_pages() -> None:
    assert list(options_of_reference()) == list(options_of_usage()) == list(options_of_manual())


def test_the_defaults_are_the_same_on_all_pages() -> None:
    usage, reference, manual = (
        {head: default(text) for head, text in options.items()}
        for options in (options_of_usage(), options_of_reference(), options_of_manual())
    )
    assert usage == reference == manual
    assert usage["-w N, --num_workers N"] == ["4"]


def test_every_exit_code_is_on_all_pages_and_no_other() -> None:
    codes = exit_codes()
    assert words(r"\b\d+\b", USAGE.split("\nExit codes:")[1]) == codes
    assert words(r"(?m)^\| (\d+) \|", section(REFERENCE, "Exit codes")) == codes
    assert words(r"(?m)^(\d+)$", manual_section(MANUAL, "EXIT STATUS")) == codes
    assert words(r"\b\d+\b", paragraph(README, "[Exit codes]")) == codes


def test_every_signal_is_on_all_pages_and_no_other() -> None:
    assert words(r"SIG\w+", first_column(section(REFERENCE, "Signals"))) == signals()
    assert words(r"(?m)^SIG\w+|(?<=, )SIG\w+$", manual_section(MANUAL, "SIGNALS")) == signals()
    assert words(r"SIG\w+", paragraph(README, "[Signals]")) == signals()


def test_every_key_of_a_service_is_on_all_pages_and_no_other() -> None:
    keys = frozenset(READERS)
    table = first_column(section(REFERENCE, "The services"))
    assert words(r"`(\w+)`", table) == keys
    heads = re.findall(r"^\*\*.*\*\*$", manual_section(FILE_MANUAL, "The services"), re.MULTILINE)
    assert words(r"\*\*(\w+)\*\*", "\n".join(heads)) == keys


def test_the_variables_of_the_environment_are_the_same_on_both_pages() -> None:
    variables = words(r"`([A-Z_]+)`", first_column(section(REFERENCE, "Environment")))
    heads = re.findall(r"^[A-Z].*$", manual_section(MANUAL, "ENVIRONMENT"), re.MULTILINE)
    assert words(r"[A-Z_]+", "\n".join(heads)) == variables
    assert "NOTIFY_SOCKET" in variables


PAGES = sorted(
    path
    for folder, pattern in ((".", "*.md"), ("benchmarks", "*.md"), ("docs", "**/*.md"))
    for path in (PROJECT / folder).glob(pattern)
)


def prose(path: Path) -> str:
    """A page without what it shows as typed or printed."""
    return re.sub(r"^(?: {4}|```(?s:.*?)^```).*$", "", path.read_text("utf-8"), flags=re.MULTILINE)


def anchors(path: Path) -> Set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(path), f"{target}: there is no such heading"
