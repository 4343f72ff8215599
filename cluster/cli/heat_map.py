"""The experts' load in a terminal: a row per replica or layer, a column per expert, in bands as wide as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt

from rich.style import Style
from rich.text import Text

from cluster.cli.fitted_table import printable
from protos.inference.v1 import inference_pb2 as pb

_CELL = 5
"""Columns of an expert: four of a number, one that tells copies."""
_MOST_LABEL = 18
_MOST_WIDTH = 200
"""Wider bands are hard to follow."""
_COLD, _HOT = (222, 235, 247), (8, 81, 156)
"""One hue, from light to dark, each with a text that can be read on it: so it does not matter what the terminal's
own background is."""
_WHITE_FROM = 0.75
"""Heat from which white is easier to read on a cell than black: 4.5 : 1 at the worst."""


def heat_map(num_experts: int, replicas: Sequence[pb.ExpertReplica], width: int) -> Text:
    """Return a map of every expert's tokens per second: all its copies together, and at each replica that holds it.

    A copy beyond its replica's group is marked with +, an expert that is not held there is a dot. A band leaves out
    replicas that hold none of its experts.

    Args:
        num_experts: columns; at least one.
        replicas: rows; at least one.
        width: characters of the terminal.
    """
    rows = by_group(replicas)
    held = {each.replica_id: frozenset(each.expert_ids) for each in rows}
    total = {
        expert: sum(each.tokens_per_s[expert] for each in rows if expert in each.tokens_per_s)
        for expert in range(num_experts)
    }
    most = max(total.values())
    label = min(_MOST_LABEL, max(len("all copies"), *(len(each.replica_id) for each in rows)))
    text = Text(no_wrap=True)
    text.append("tokens/s of each expert (+ copy beyond the group, · not held)\n", "dim")
    for band in _bands(num_experts, label, width):
        _line(text, "expert", label, [Text(f"{expert:>{_CELL - 1}} ", "dim") for expert in band])
        _line(text, "all copies", label, [_cell(total[expert], most, " ") for expert in band])
        copies = [sum(expert in each for each in held.values()) for expert in band]
        _line(text, "copies", label, [Text(f"{count:>{_CELL - 1}} ") for count in copies])
        for row in rows:
            if not held[row.replica_id].isdisjoint(band):
                _line(text, row.replica_id, label, [_held_cell(row, held[row.replica_id], each, most) for each in band])
        if band.stop < num_experts:
            text.append("\n")
    return text


def layer_map(
    num_experts: int, layers: Sequence[pb.LayerLoad], replicas: Sequence[pb.ExpertReplica], width: int
) -> Text:
    """Return a map of every expert's tokens per second in every MoE layer, all its copies together.

    Args:
        num_experts: columns; at least one.
        layers: rows; at least one.
        replicas: who holds what.
        width: characters of the terminal.
    """
    most = max(max(layer.tokens_per_s) for layer in layers)
    label = max(len("copies"), *(len(f"layer {layer.layer}") for layer in layers))
    copies = Counter(expert for each in replicas for expert in each.expert_ids)
    text = Text(no_wrap=True)
    text.append("tokens/s of each expert in each layer, all copies together\n", "dim")
    for band in _bands(num_experts, label, width):
        _line(text, "expert", label, [Text(f"{expert:>{_CELL - 1}} ", "dim") for expert in band])
        _line(text, "copies", label, [Text(f"{copies[expert]:>{_CELL - 1}} ") for expert in band])
        for layer in layers:
            cells = [_cell(layer.tokens_per_s[expert], most, " ") for expert in band]
            _line(text, f"layer {layer.layer}", label, cells)
        if band.stop < num_experts:
            text.append("\n")
    return text


def _bands(num_experts: int, label: int, width: int) -> Iterator[range]:
    """Yield experts in runs for which a line has room beside a label."""
    per_band = max(1, (min(width, _MOST_WIDTH) - label - 1) // _CELL)
    for start in range(0, num_experts, per_band):
        yield range(start, min(start + per_band, num_experts))


def by_group(replicas: Sequence[pb.ExpertReplica]) -> list[pb.ExpertReplica]:
    """Return replicas in the order of their groups' first experts."""
    return sorted(replicas, key=lambda each: (list(each.home_ids or each.expert_ids)[:1], each.group, each.replica_id))


def is_copy(replica: pb.ExpertReplica, expert: int) -> bool:
    """Tell whether a replica holds an expert beyond those of its group."""
    return bool(replica.home_ids) and expert not in replica.home_ids


def short_number(value: float) -> str:
    """Write a number of any size in at most four characters: 0.26, 4.1, 37, 512, 1.2k."""
    if value == 0:
        return "0"
    if value < 0.995:
        return f"{max(value, 0.01):.2f}"
    for unit in ("", "k", "M", "G"):
        if value < 9.95:
            return f"{value:.1f}".removesuffix(".0") + unit
        if value < 999.5:
            return f"{value:.0f}{unit}"
        value /= 1000
    return "many"


def _line(text: Text, name: str, label: int, cells: Sequence[Text]) -> None:
    name = printable(name)
    shown = name if len(name) <= label else name[: label - 1] + "…"
    text.append(f"{shown:<{label}} ")
    for cell in cells:
        text.append_text(cell)
    text.append("\n")


def _held_cell(row: pb.ExpertReplica, held: frozenset[int], expert: int, most: float) -> Text:
    if expert not in held:
        return Text(f"{'·':>{_CELL - 1}} ", "dim")
    rates: Mapping[int, float] = row.tokens_per_s
    return _cell(rates.get(expert, 0.0), most, "+" if is_copy(row, expert) else " ")


def _cell(rate: float, most: float, mark: str) -> Text:
    # By its root, or one hot expert would leave all others alike.
    heat = sqrt(rate / most) if most else 0.0
    red, green, blue = (round(cold + heat * (hot - cold)) for cold, hot in zip(_COLD, _HOT, strict=True))
    ink = "#000000" if heat < _WHITE_FROM else "#ffffff"
    return Text(f"{short_number(rate):>{_CELL - 1}}{mark}", Style.parse(f"{ink} on #{red:02x}{green:02x}{blue:02x}"))
