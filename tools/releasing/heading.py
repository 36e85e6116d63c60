"""Version and date of a release, as a heading of the changelog has them.

The date is part of every package. So it is written down once, where people read it: a clock would
give two builds two dates.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Tuple

from tools.releasing.failure import Failed

UNRELEASED = "## [Unreleased]"
HEADING = re.compile(r"^## \[.*$", re.MULTILINE)
OF_RELEASE = re.compile(r"## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)")
HOW = "set version and date with: tools/release set VERSION"


@dataclass(frozen=True)
class Release:
    """A version and the day of its release."""

    version: str
    date: datetime.date

    @property
    def epoch(self) -> int:
        """The begin of that day, in seconds since 1970."""
        midnight = datetime.datetime.combine(
            self.date, datetime.time(), tzinfo=datetime.timezone.utc
        )
        return int(midnight.timestamp())

    @property
    def tag(self) -> str:
        """What git calls it."""
        return f"v{self.version}"

    @property
    def heading(self) -> str:
        """What stands above its changes."""
        return f"## [{self.version}] - {self.date.isoformat()}"


def newest(changelog: str) -> Release:
    """The release that the first heading names."""
    found = HEADING.search(changelog)
    first = found.group() if found else "no heading"
    match = OF_RELEASE.fullmatch(first)
    if match is None:
        raise Failed(f"CHANGELOG.md begins with {first!r}, not with a release; {HOW}")
    return Release(match.group(1), date_of(match.group(2)))


def with_heading(changelog: str, release: Release) -> str:
    """The changelog once what was unreleased is this release."""
    if changelog.count(f"{UNRELEASED}\n") != 1:
        raise Failed(
            f"CHANGELOG.md needs the heading {UNRELEASED!r} once; write what has changed below it"
        )
    before, changes = changelog.split(f"{UNRELEASED}\n")
    if not changes.split("\n## ")[0].strip():
        raise Failed(f"CHANGELOG.md: nothing stands below {UNRELEASED!r}; write what has changed")
    last = OF_RELEASE.search(changes)
    if last is not None and parts(release.version) <= parts(last.group(1)):
        raise Failed(
            f"{release.version} is not above {last.group(1)}, the last release; take a higher"
        )
    return f"{before}{release.heading}\n{changes}"


def parts(version: str) -> Tuple[int, ...]:
    """The numbers of a version, for comparison."""
    if re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version) is None:
        raise Failed(f"{version!r} is not a version; write three numbers, as in 1.1.0")
    return tuple(map(int, version.split(".")))


def date_of(text: str) -> datetime.date:
    """The day that a text such as 2026-11-26 means."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise Failed(f"{text!r} is not a date; write it as in 2026-11-26") from None
