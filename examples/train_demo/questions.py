"""The chat turns: documented names asked for in many ways, answered by the first lines of their docstrings."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.train_demo.documents import Entry
from examples.train_demo.popular import POPULAR

MAX_ANSWER_CHARS = 300
"""About 80 tokens."""

ASK_ANY = (
    "What does {n} do?", "What does {n} do?", "What does {n} do?", "What does {n}() do?", "What does {n}() do?",
    "what does {n} do", "what does {n} do?", "What does {n} do", "Explain {n}.", "Explain {n}", "What is {n}?",
    "what is {n}?", "What is {n}", "Tell me about {n}.", "Tell me about {n}", "{n}", "{n}?",
    "What does `{n}` do?", "What does the {n} function do?", "Can you explain {n}?", "What is {n} for?",
    "What is {n} used for?", "Please explain {n}.", "Hi, what does {n} do?", "In Python, what does {n} do?",
    "What does {n} do in Python?", "What does Python's {n} do?",
)  # fmt: skip
ASK_THING = (
    "What is {n}?", "What is {n}?", "what is {n}?", "What is {n}", "Explain {n}.", "Tell me about {n}.", "{n}",
    "What is {n} for?", "What does {n} do?", "What does {n} do?", "What does the {n} {k} do?",
    "What is the {n} {k}?", "What is the {n} {k} for?", "What is {n} used for?", "Can you explain {n}?",
    "Tell me about the {n} {k}.", "What is {n} in Python?",
)  # fmt: skip
ASK_USE = (
    "How do I use {n}?", "How do I use {n}()?", "How do I call {n}?", "How is {n} called?",
    "What arguments does {n} take?",
)  # fmt: skip
ASK_STATEMENT = (
    "What does {n} do?", "What does the {n} statement do?", "What is the {n} statement?", "What is {n}?",
    "Explain {n}.", "How does {n} work?", "Tell me about {n}.", "What is a {n}?", "What does {n} mean?",
    "What is a {n} statement?",
)  # fmt: skip
ASK_TASK = (
    "How do I {n}?", "How do I {n}?", "How can I {n}?", "how do I {n}", "How to {n}?", "How do you {n}?",
    "How do I {n} in Python?",
)  # fmt: skip
UNSEEN = "Please tell me what {n} does."
"""A phrasing that is never trained on; it measures whether the model reads the name or the phrase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One answer and the questions it answers."""

    name: str
    """The documented name, or the first question of small talk."""
    questions: tuple[str, ...]
    """Ways to ask; drawn evenly."""
    answer: str
    weight: float
    """How often it is drawn, relative to the other turns."""
    is_core: bool = field(default=False)
    """True for the main turn of a name that the model must know by heart."""


def make_turns(entries: list[Entry], hidden: set[str]) -> list[Turn]:
    """Make every chat turn of the corpus.

    Args:
        entries: the documented names.
        hidden: held-out documents; nothing of them is asked.
    """
    core = core_names(entries)
    by_name = {entry.name: entry for entry in entries if entry.document not in hidden}
    short = _short_names([*core, *by_name], by_name)
    turns = [
        turn for entry in by_name.values() for turn in _entry_turns(entry, entry.name in core, short.get(entry.name))
    ]
    turns += _statement_turns() + _task_turns(by_name) + _small_talk_turns()
    return turns


def core_names(entries: list[Entry]) -> list[str]:
    """List the names that must be known by heart, the types' methods included."""
    methods = [e.name for e in entries if e.kind == "method" and e.name.partition(".")[0] in POPULAR.core_types]
    known = {entry.name for entry in entries}
    methods.sort(key=lambda name: POPULAR.core_types.index(name.partition(".")[0]))
    return [name for name in [*methods, *POPULAR.core] if name in known]


def draw_conversation(
    turns: Sequence[Turn], cumulative: Sequence[float], num_turns: int, rng: random.Random
) -> list[tuple[str, str]]:
    """Draw a conversation of (question, answer) pairs; `cumulative` holds the running sums of the weights."""
    drawn = rng.choices(turns, cum_weights=cumulative, k=num_turns)
    return [(rng.choice(turn.questions), turn.answer) for turn in drawn]


def shorten(doc: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """Keep the first paragraphs of a docstring that fit the limit: prose unwrapped, the last cut after a sentence."""
    kept: list[str] = []
    for paragraph in doc.split("\n\n"):
        text = _unwrap(paragraph)
        room = limit - sum(len(part) + 2 for part in kept)
        if len(text) <= room:
            kept.append(text)
            continue
        if not kept or (len(kept) == 1 and len(kept[0]) < 60):
            cut = _cut(text, room) or ("" if kept else text[:room].rpartition(" ")[0])
            kept += [cut] if cut else []
        break
    while len(kept) > 1 and kept[-1].rstrip().endswith(":"):
        kept.pop()
    return "\n\n".join(kept).strip()


def _unwrap(paragraph: str) -> str:
    lines = paragraph.strip("\n").split("\n")
    is_prose = not any(line.startswith((" ", ">>>", "|", "-", "*", "+")) or "->" in line for line in lines)
    return " ".join(lines) if is_prose else "\n".join(line.rstrip() for line in lines)


def _cut(text: str, room: int) -> str:
    ends = [match.end() for match in re.finditer(r"(?<![a-z]\.[a-z])\.(?=\s)|\n", text[: room + 1])]
    return text[: ends[-1]].rstrip() if ends else ""


def _entry_turns(entry: Entry, is_core: bool, short: str | None) -> list[Turn]:
    answer = shorten(entry.doc)
    if len(answer) < 10:
        return []
    familiar = entry.name.partition(".")[0] in POPULAR.familiar
    weight = 5.0 if is_core else 0.6 if familiar else 0.15
    asks = ASK_THING if entry.kind in ("module", "class") else ASK_ANY
    turns = [_turn(entry.name, asks, answer, weight, is_core, entry.kind)]
    if short is not None:
        turns.append(_turn(short, asks, answer, weight * 0.25, False, entry.kind))
    if entry.kind != "module" and entry.signature and familiar | is_core:
        call = f"Call it as {entry.name}{entry.signature}.\n\n{answer}"
        turns.append(_turn(entry.name, ASK_USE, call, weight * 0.2, False, entry.kind))
    return turns


def _turn(name: str, asks: tuple[str, ...], answer: str, weight: float, is_core: bool, kind: str) -> Turn:
    questions = tuple(ask.format(n=name, k=kind) for ask in asks)
    return Turn(name=name, questions=questions, answer=answer, weight=weight, is_core=is_core)


def _short_names(names: list[str], by_name: dict[str, Entry]) -> dict[str, str]:
    """Give `join` to the first name that ends so: people drop the module or the type."""
    owners: dict[str, str] = {}
    for name in names:
        last = name.rpartition(".")[2]
        if "." in name and name in by_name and last not in by_name and len(last) > 2:
            owners.setdefault(last, name)
    core = set(names[: len(names) - len(by_name)])
    return {name: last for last, name in owners.items() if name in core}


def _statement_turns() -> list[Turn]:
    return [_turn(name, ASK_STATEMENT, answer, 4.0, False, "statement") for name, answer in POPULAR.statements.items()]


def _task_turns(by_name: dict[str, Entry]) -> list[Turn]:
    turns = []
    for name, tasks in POPULAR.tasks.items():
        if name in by_name:
            answer = f"Use {name}. {shorten(by_name[name].doc, 200)}"
            questions = tuple(ask.format(n=task) for task in tasks for ask in ASK_TASK)
            turns.append(Turn(name=f"{name} (task)", questions=questions, answer=answer, weight=3.0))
    return turns


def _small_talk_turns() -> list[Turn]:
    turns = []
    for answer, questions in POPULAR.small_talk.items():
        turns.append(Turn(name=questions[0], questions=tuple(questions), answer=answer, weight=len(questions) * 1.2))
    return turns
