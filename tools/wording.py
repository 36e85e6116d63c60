"""Finds phrases that a reader stumbles over: python3 tools/wording.py [FILE...]

It looks at what people read: pages, comments, docstrings and messages. It passes over code in them.
Each phrase once stood here, and somebody had to read it twice. A second list holds the spelling,
British. A pattern cannot find every bad sentence: to write a clear one is still your part. The exit
code is 1 if there is anything to mend.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from pathlib import Path
from typing import Dict, Iterator, List, Pattern, Tuple

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "benchmarks", "docs", "etc", "examples", "packaging", "systemd", "tests", "tools")
SUFFIXES = (
    "",
    ".ini",
    ".md",
    ".py",
    ".rst",
    ".service",
    ".socket",
    ".spec",
    ".toml",
    ".txt",
    ".yaml",
)
# A text that quotes the phrases.
LEFT_OUT = ("tools/wording.py", "tests/unit/test_wording.py")

# What is found, and what to write.
PHRASES = {
    r"(has|have|had) not (an?|the|this|that|these|those|any|one|it|them|its|such|enough|long)": (
        "'does not have', or what follows from it"
    ),
    r"(has|have|had) not(?=[,.;:)])": "'does not have', or the verb in full",
    r"be had": "'there is', 'is available', 'get'",
    r"told by": "'learns from', 'is recognised by', or in the active voice",
    r"so many": "'this number of', 'a given number of', or the name of the number",
    r"so-and-so": "the name, or N",
    r"who\b[^.;:\0]{0,60} must": "'must' after a subject with a name",
    r"sent home": "'is ended'",
    r"that which": "'what'",
    r"not without": "'with', or 'only with'",
    r"not un(?!der|i|less|til|ix)\w+": "the word without 'un'",
    r"for ever": "'forever', 'without end'",
    r"in the place of": "'instead of', 'to replace'",
    r"be it": "'even', 'whether ... or not'",
}
# American: British.
SPELLING = {
    r"behavior(s?)": "behaviour",
    r"cancel(ed|ing)": "cancelled, cancelling",
    r"center(ed|s)?": "centre",
    r"(?<!-)colors?": "colour",
    r"defense": "defence",
    r"favor(ed|ite|s)?": "favour",
    r"fulfill": "fulfil",
    r"gray": "grey",
    r"honor(ed|s)?": "honour",
    r"label(ed|ing)": "labelled, labelling",
    r"neighbor(ing|s)?": "neighbour",
    r"signal(ed|ing)": "signalled, signalling",
    r"travel(ed|ing)": "travelled, travelling",
}
# Replaces what is not for reading, so that no phrase reaches across it.
HIDDEN = "\0"
# From Python 3.12 on, the parts of an f-string are tokens of their own.
STRINGS = ("STRING", "FSTRING_MIDDLE")
DELIMITERS = ("FSTRING_START", "FSTRING_END")
PATTERNS: Dict[Pattern[str], str] = {
    re.compile(rf"\b(?:{phrase})\b".replace(" ", r"\s+"), re.IGNORECASE): advice
    for phrase, advice in {**PHRASES, **SPELLING}.items()
}


def main(arguments: List[str]) -> int:
    """Print what is to be mended in these files, or in all; returns the exit code."""
    files = [Path(name).resolve() for name in arguments] or list(all_files())
    found = [line for file in files for line in findings(file)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


def all_files() -> Iterator[Path]:
    """The files of the project that people wrote for people."""
    candidates = list(PROJECT.glob("*"))
    for folder in (*FOLDERS, "vsock_proxy"):
        candidates += (PROJECT / folder).rglob("*")
    for file in sorted(candidates):
        name = file.relative_to(PROJECT).as_posix()
        kept = name not in LEFT_OUT and "__pycache__" not in file.parts and file.name != "LICENSE"
        if kept and file.suffix in SUFFIXES and file.is_file():
            yield file


def findings(file: Path) -> Iterator[str]:
    """A line for each phrase in a file: where it is, and what to write instead."""
    name = file.relative_to(PROJECT) if PROJECT in file.parents else file
    for number, phrase, advice in phrases_in(prose_of(file)):
        yield f"{name}:{number}: '{phrase}': write {advice}"


def phrases_in(prose: str) -> Iterator[Tuple[int, str, str]]:
    """Each phrase in a text: the number of its line, the words, and what to write."""
    for pattern, advice in PATTERNS.items():
        for match in pattern.finditer(prose):
            line = prose.count("\n", 0, match.start()) + 1
            yield line, " ".join(match.group().split()), advice


def prose_of(file: Path) -> str:
    """The text of a file, with all that is not for reading replaced by zeros.

    Lines keep their places. A phrase may go on in the next line, behind another comment sign.
    """
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py" or text.startswith(("#!/usr/bin/env python3", "#!/usr/bin/python3")):
        return python_prose(text)
    if file.suffix in (".md", ".rst"):
        return page_prose(text)
    return comment_prose(text)


def page_prose(text: str) -> str:
    """A page without its code."""
    for code in (r"(?ms)^```.*?^```", r"(?m)^ {4}.*$", r"(`+)[^`]+?\1"):
        text = re.sub(code, lambda match: re.sub(r"[^\n]", HIDDEN, match.group()), text)
    return text


def comment_prose(text: str) -> str:
    """The comments of a shell script, a unit, a configuration file."""
    comments = (re.search(r"(?:^|\s)#(.*)", line) for line in text.split("\n"))
    return "\n".join(comment.group(1) if comment else HIDDEN for comment in comments)


def python_prose(text: str) -> str:
    """The comments of a Python file, and those of its strings that have more than one word."""
    prose = [re.sub(r"\S", HIDDEN, line) for line in text.split("\n")]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind, words = tokenize.tok_name[token.type], token.string
        if kind == "COMMENT" or (kind in STRINGS and " " in words.strip()) or kind in DELIMITERS:
            delimiters = r"^#|^\w{0,2}[\"']+|[\"']+$"
            words = re.sub(delimiters, lambda found: " " * len(found[0]), words)
            # What an f-string computes; before Python 3.12 that is part of the token.
            words = re.sub(r"\{[^{}]*\}", lambda found: HIDDEN * len(found[0]), words)
            _put(prose, token.start, words)
    return "\n".join(prose)


def _put(lines: List[str], start: Tuple[int, int], text: str) -> None:
    row, column = start
    for offset, part in enumerate(text.split("\n")):
        line, begin = lines[row - 1 + offset], 0 if offset else column
        lines[row - 1 + offset] = line[:begin] + part + line[begin + len(part) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
