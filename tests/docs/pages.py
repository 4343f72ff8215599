"""What the documentation tells its readers to type, in blocks and in sentences, and the files that it shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "helm/README.md",
    *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md") if file.name != "log.md"),
]
"""All that speak to users and developers; the log tells what was done."""
DRAWINGS = ("take what was", "hold: ", "release: ", "free now", "position ", "cache --evicted", ": progress")
"""How indented lines begin that are no commands."""
_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_SENTENCE = re.compile(r"`((?:herd|helm|kubectl|make|pip|docker|python -m) [^`]+)`")
_NAMED_FILE = re.compile(r"`([a-z]+\.yaml)`")


@dataclass(frozen=True)
class Command:
    """What a reader types at a prompt."""

    page: str
    line: int
    text: str
    shown: str = ""
    """What the page shows below it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Shown:
    """A file that a page shows."""

    page: str
    name: str
    """The last file that was named before; empty: none was."""
    text: str


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def commands_of(page: str, text: str) -> list[Command]:
    """Return the commands of a page's blocks in their order.

    In a block `console` they begin with `$`; an indented block has nothing else, but drawings.
    """
    found = []
    for start, block in _blocks(text):
        for command in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            line = text[:start].count("\n") + block[: command.start()].count("\n") + 1
            found.append(Command(page, line, command[1], command[2]))
    return found


def _blocks(text: str) -> list[tuple[int, str]]:
    """Return blocks with commands as if all of them were `console`, and where they start."""
    found = [(fence.start(2), fence[2]) for fence in _FENCE.finditer(text) if fence[1] in ("console", "sh", "bash")]
    plain = _FENCE.sub(lambda fence: re.sub(r"[^\n]", "", fence[0]), text)  # the same lines, empty
    for block in _INDENTED.finditer(plain):
        if not block[0].strip().startswith(DRAWINGS):
            found.append((block.start(), re.sub(r"^    (?! )", "$ ", block[0], flags=re.MULTILINE)))
    return sorted(found)


def printed(text: str) -> str:
    """Return what helm prints as a page: its commands are indented by two."""
    return re.sub(r"^  ", "    ", text, flags=re.MULTILINE)


def sentences_of(page: str, text: str) -> list[Command]:
    """Return the commands that are named within sentences and tables, whole or in part."""
    plain = _FENCE.sub(lambda fence: re.sub(r"[^\n]", "", fence[0]), text)
    return [Command(page, plain[: each.start()].count("\n") + 1, each[1]) for each in _SENTENCE.finditer(plain)]


def files_of(page: str, text: str) -> list[Shown]:
    """Return the YAML files that a page shows."""
    found = []
    for fence in _FENCE.finditer(text):
        if fence[1] == "yaml":
            named = _NAMED_FILE.findall(text[: fence.start()])
            found.append(Shown(page, named[-1] if named else "", fence[2]))
    return found


def write_files(page: str, text: str, folder: Path) -> None:
    """Write the files that a page names and shows."""
    for each in files_of(page, text):
        if each.name:
            (folder / each.name).write_text(each.text)
