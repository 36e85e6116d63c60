"""Version and date of a release, in the changelog's headings; and that all of this source agree."""

from __future__ import annotations

import datetime

import pytest

from tests.support.program import PROJECT
from tools.releasing import heading, stating
from tools.releasing.building import differences
from tools.releasing.failure import Failed
from tools.releasing.heading import Release
from vsock_proxy import __version__

pytestmark = pytest.mark.hybrid_only
DAY = datetime.date(2026, 11, 26)
CHANGES = "\n### Added\n\n- Something.\n\n## [1.0.0] - 2026-11-24\n\n- All.\n"
UNRELEASED = f"# Changelog\n\n## [Unreleased]\n{CHANGES}"
RELEASED = f"# Changelog\n\n## [1.1.0] - 2026-11-26\n{CHANGES}"


def test_the_newest_heading_says_version_and_date() -> None:
    release = heading.newest(RELEASED)
    assert release == Release("1.1.0", DAY)
    assert (release.tag, release.epoch) == ("v1.1.0", 1795651200)


def test_what_was_unreleased_becomes_the_release() -> None:
    assert heading.with_heading(UNRELEASED, Release("1.1.0", DAY)) == RELEASED


@pytest.mark.parametrize(
    ("changelog", "complaint"),
    [
        (UNRELEASED, "begins with '## [Unreleased]', not with a release"),
        ("# Changelog\n", "begins with 'no heading'"),
        (RELEASED.replace(" - 2026-11-26", ""), "begins with '## [1.1.0]', not"),
        (RELEASED.replace("1.1.0", "1.1"), "begins with '## [1.1] - 2026-11-26', not"),
        (RELEASED.replace("11-26", "11-31"), "'2026-11-31' is not a date"),
    ],
)
def test_a_changelog_that_names_no_release_is_refused(changelog: str, complaint: str) -> None:
    with pytest.raises(Failed) as failed:
        heading.newest(changelog)
    assert complaint in str(failed.value)


@pytest.mark.parametrize(
    ("changelog", "version", "complaint"),
    [
        (RELEASED, "1.2.0", "needs the heading '## [Unreleased]' once"),
        (UNRELEASED.replace(CHANGES, f"\n## [1.0.0]{CHANGES}"), "1.1.0", "nothing stands below"),
        (UNRELEASED, "1.0.0", "1.0.0 is not above 1.0.0, the last release"),
        (UNRELEASED, "0.10.0", "0.10.0 is not above 1.0.0"),
        (UNRELEASED, "1.1", "'1.1' is not a version"),
        (UNRELEASED, "v1.1.0", "'v1.1.0' is not a version"),
        (UNRELEASED, "1.01.0", "'1.01.0' is not a version"),
    ],
)
def test_a_version_that_cannot_be_next_is_refused(
    changelog: str, version: str, complaint: str
) -> None:
    with pytest.raises(Failed) as failed:
        heading.with_heading(changelog, Release(version, DAY))
    assert complaint in str(failed.value)


def test_no_file_of_the_source_states_another_version() -> None:
    assert set().union(*stating.stated(PROJECT).values()) == {__version__}


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        ({"a": "1"}, {"a": "1"}, []),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, ["b"]),
        ({"a": "1", "b": "2"}, {"c": "3", "a": "1"}, ["b", "c"]),
    ],
)
def test_a_file_that_one_build_lacks_differs_as_well(
    first: dict[str, str], second: dict[str, str], differing: list[str]
) -> None:
    assert differences(first, second) == differing
