"""What the program can say, read from its sources, and what the page of messages lists.

A message is often put together: `cannot listen on ` from one place, the reason from another. So
what is compared is the *piece*: a text in the sources, wherever it stands. Nothing has to be
registered, and nothing can be forgotten.

A value in a piece (`{name}`, `%(name)s`) matches anything, but a constant of the module only its
number. A value on the page is a word in capitals, a number, or `...`.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Set

# A value in a piece, until the piece becomes a pattern.
VALUE = "\0"
NAMED = re.compile(r"%(\(\w+\))?[0-9.]*[sdgfr]")
# A word of prose: letters, and the marks around them.
WORD = re.compile(r"[(']?[A-Za-z][a-z'-]*[a-zA-Z]?[,;:.?)']*")
# What stands for a value on the page.
PAGE_VALUE = re.compile(r"\.\.\.|\b[A-Z][A-Z0-9_]*\b|\b[0-9][0-9.]*\b")
LETTERS = re.compile(r"[A-Za-z]+")
# What an error is called: its text is for the operator.
ERRORS = ("Error", "Unfit", "Failed", ".fail")
# In a table with this heading the first column has messages.
HEADINGS = ("message", "reason")
# What divides two cells.
BAR = re.compile(r"(?<!\\)\|")
CODE = re.compile(r"`` ?(.+?) ?``|`([^`]+)`")


@dataclass(frozen=True)
class Piece:
    """A text of the sources; place is `file:line`."""

    place: str
    text: str
    # Whether it is given to the log, or to an error.
    is_given: bool = False

    @property
    def says_something(self) -> bool:
        """Whether a person is to read it: it is given to them, or has two words of prose."""
        words = [bool(WORD.fullmatch(word)) for word in self.text.split()]
        together = any(map(all, zip(words, words[1:])))
        return self.is_given or together or (sum(words) > 1 and VALUE in self.text)

    @property
    def shown(self) -> str:
        return self.text.replace(VALUE, "VALUE")

    def found_in(self, message: str) -> Iterator[re.Match[str]]:
        """Where a message of the page has this piece; a group for each part around the values."""
        # Most are not in most: that is seen more quickly without a pattern.
        if all(part in message for part in self.text.split(VALUE)):
            yield from _pattern(self.text).finditer(message)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    pattern = ".*?".join(f"({re.escape(part)})" for part in text.split(VALUE))
    # A single word must not match within another.
    return re.compile(pattern if " " in text else rf"(?<!\w){pattern}(?!\w)")


@dataclass(frozen=True)
class Entry:
    """A row of the page: what the program says, and the cells beside it."""

    line: int
    messages: tuple[str, ...]
    cells: tuple[str, ...]


def pieces_of(sources: Path) -> List[Piece]:
    """All texts of the sources that may be a part of a message, longest first."""
    found = [
        Piece(f"{path.relative_to(sources.parent)}:{line}", text.strip(), is_given)
        for path in sorted(sources.rglob("*.py"))
        for line, text, is_given in texts_of(path.read_text(encoding="utf-8"))
        if LETTERS.search(text)
    ]
    return sorted(found, key=lambda piece: -len(piece.text))


def texts_of(source: str) -> List[tuple[int, str, bool]]:
    """The line of each text, the text, and whether it is given to the log or to an error."""
    tree = ast.parse(source)
    return _Texts(_numbers_of(tree)).of(tree)


def _numbers_of(module: ast.Module) -> Dict[str, float]:
    """The constants of a module that are numbers."""
    numbers: Dict[str, float] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                value = ast.literal_eval(_computed(node.value))
                if isinstance(value, (int, float)):
                    numbers[node.targets[0].id] = value
    return numbers


def _computed(node: ast.expr) -> ast.expr:
    """`1 << 20` as the number that it is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        left, right = ast.literal_eval(node.left), ast.literal_eval(node.right)
        return ast.Constant(left << right)
    return node


class _Texts(ast.NodeVisitor):
    """Collects what may be said; leaves out what by its kind never is.

    That is: docstrings, the usage text, what a failed assertion says, and the help of a metric.
    """

    def __init__(self, numbers: Dict[str, float]) -> None:
        self._numbers = numbers
        self._found: List[tuple[int, str, bool]] = []
        self._given: Set[ast.expr] = set()

    def of(self, tree: ast.AST) -> List[tuple[int, str, bool]]:
        self.visit(tree)
        return self._found

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called in ("AssertionError", "re.compile") or called.endswith("MetricFamily"):
            return
        if called.startswith("log.") or called.endswith(ERRORS):
            self._given.update(node.args)
        if called == "counted":
            # Of more than one thing (words.py).
            self._found += [
                (node.lineno, f"{argument.value}s", False)
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and "\nUsage:\n" not in node.value:
            self._add(node, NAMED.sub(VALUE, node.value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        text = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                text += self._number(part) or VALUE
                self.visit(part.value)
            elif isinstance(part, ast.Constant):
                text += str(part.value)
        self._add(node, text)

    def _number(self, part: ast.FormattedValue) -> str:
        """The number of a constant of the module, as text; nothing if it is no such constant."""
        name = ast.unparse(part.value)
        if name not in self._numbers:
            return ""
        spec = "".join(str(each.value) for each in getattr(part.format_spec, "values", ()))
        return format(self._numbers[name], spec)

    def _add(self, node: ast.expr, text: str) -> None:
        self._found.append((node.lineno, text, node in self._given))


def entries_of(page: str) -> List[Entry]:
    """The rows of all tables that have messages."""
    return list(_entries(page.splitlines()))


def _entries(lines: List[str]) -> Iterator[Entry]:
    in_table = False
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip().replace(r"\|", "|") for cell in BAR.split(line)[1:-1]]
        if not cells:
            in_table = False
        elif cells[0] in HEADINGS:
            in_table = True
        elif in_table and not set(cells[0]) <= set("- "):
            codes = tuple(one or two for one, two in CODE.findall(cells[0]))
            yield Entry(number, codes, tuple(cells))


def words_of_the_system() -> List[str]:
    """What the system says, which no source has."""
    libc = ctypes.CDLL(None)
    libc.gai_strerror.restype = ctypes.c_char_p
    names = (getattr(socket, name) for name in dir(socket) if name.startswith("EAI_"))
    return [
        *(os.strerror(code) for code in errno.errorcode),
        *(signal.strsignal(number) or "" for number in signal.Signals),
        *(libc.gai_strerror(code).decode() for code in names),
    ]


def unsaid(message: str, pieces: Iterable[Piece], system: Iterable[str]) -> Set[str]:
    """The words of a message on the page that nothing in the sources gives."""
    said = [False] * len(message)
    spans = [match.span() for match in PAGE_VALUE.finditer(message)]
    spans += [match.span() for text in system for match in re.finditer(re.escape(text), message)]
    for piece in pieces:
        for match in piece.found_in(message):
            spans += [match.span(group) for group in range(1, len(match.groups()) + 1)]
    for start, end in spans:
        said[start:end] = [True] * (end - start)
    return {
        match.group()
        for match in LETTERS.finditer(message)
        if not all(said[match.start() : match.end()])
    }
