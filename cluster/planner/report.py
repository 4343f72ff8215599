"""A plan for people: tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.planner.assumptions import Assumption
from cluster.planner.capacity_plan import CapacityPlan
from cluster.planner.document import assumptions
from cluster.planner.memory import COMPONENTS
from cluster.planner.missing import missing, published
from cluster.planner.model_bytes import num_active, num_parameters
from cluster.planner.placement import Part
from cluster.planner.roofline import Duration


def render(plan: CapacityPlan) -> RenderableType:
    """Return the whole report."""
    kinds = list(_kinds(plan))
    return Group(
        Text(_headline(plan), "bold"),
        Text(_weights_line(plan)),
        *_section("placement", _placement(plan)),
        *_section(f"bytes per device, {_unit(plan).name}", _memory(plan, kinds)),
        *_section("what fits", _limits(plan)),
        *_section("expected: a roofline, nothing here was measured on these devices", _speed(plan)),
        *_section("where the time goes", _times(plan)),
        *_section("assumptions", _assumptions(assumptions(plan))),
        *_notes(plan),
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Devices that hold the same."""

    name: str
    indices: list[int]


def _section(title: str, body: RenderableType) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", "bold")
    yield body


def _headline(plan: CapacityPlan) -> str:
    question = plan.question
    return (
        f"{question.model_name} in {question.weights} on {question.fleet.text}: {question.concurrency} x "
        f"{question.context:,} tokens, keys and values in {question.kv_dtype}: fits"
    )


def _weights_line(plan: CapacityPlan) -> str:
    config, weights, layout = plan.question.config, plan.question.model_bytes, plan.memory.router_layout
    unit = _unit(plan)
    experts = f", {config.num_experts} experts of {unit.text(weights.expert)}" if config.num_experts else ""
    local = layout.pages_bytes(0, layout.num_pages(config.max_positions)[1])
    kept = f" and at most {unit.text(local)} {unit.name} more per sequence" if local else ""
    millions = f"{num_parameters(config) / 1e6:,.0f} million parameters, {num_active(config) / 1e6:,.0f} of them"
    return (
        f"{millions} multiplied per token; weights {unit.text(weights.total)} {unit.name}: a router's "
        f"{unit.text(weights.router)}{experts}; cache {layout.global_token_bytes:,} bytes per token{kept}"
    )


def _placement(plan: CapacityPlan) -> Table:
    table = _table("device", "node", "holds")
    fleet = plan.question.fleet
    for index, parts in enumerate(plan.placement.devices):
        texts = [_part_text(part, plan) for part in sorted(parts, key=lambda part: part.role == "experts")]
        held = (" with " if plan.placement.shape.is_local else ", ").join(texts) or "nothing"
        table.add_row(str(index), str(fleet.node_of(index)), held)
    table.add_row("-", "all", f"{plan.num_front_doors} front door{'s' * (plan.num_front_doors > 1)}, on processors")
    return table


def _part_text(part: Part, plan: CapacityPlan) -> str:
    if part.role != "experts":
        return f"{part.role} {part.index}"
    copy = f" (copy {part.copy + 1} of {plan.placement.shape.copies})" if plan.placement.shape.copies > 1 else ""
    first, last = part.experts[0], part.experts[-1]
    return f"experts {first}" + (f" to {last}" if last > first else "") + copy


def _kinds(plan: CapacityPlan) -> Iterator[_Kind]:
    by_kind: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, parts in enumerate(plan.placement.devices):
        by_kind.setdefault(tuple((part.role, len(part.experts)) for part in parts), []).append(index)
    for kind, indices in by_kind.items():
        names = [f"{count} experts" if role == "experts" else role for role, count in kind]
        yield _Kind(" + ".join(sorted(names, reverse=True)) or "nothing", indices)


def _memory(plan: CapacityPlan, kinds: Sequence[_Kind]) -> Table:
    table = _table("", *(f"{kind.name}, x {len(kind.indices)}" for kind in kinds), numbers=True)
    held, text = [plan.memory.device_bytes(kind.indices[0]) for kind in kinds], _unit(plan).text
    for component in (*COMPONENTS, "free"):
        if component == "free" or any(each[component] for each in held):
            table.add_row(component, *(text(each[component]) if each[component] else "-" for each in held))
    total = int(plan.question.fleet.device.memory_bytes)
    table.add_row("device", *(text(total) for _ in held))
    return table


def _limits(plan: CapacityPlan) -> Table:
    question, memory = plan.question, plan.memory
    table = _table("", "at most", numbers=True)
    if question.concurrency > 1:
        longest = memory.longest_context(question.concurrency)
        table.add_row(f"tokens of each of {question.concurrency} sequences", f"{longest:,}")
    table.add_row("tokens of one sequence alone", f"{memory.longest_context(1):,}")
    table.add_row(f"sequences of {question.context:,} tokens", f"{memory.most_sequences(question.context):,}")
    table.add_row("tokens the model was made for", f"{question.config.max_positions:,}")
    return table


def _speed(plan: CapacityPlan) -> Table:
    question = plan.question
    table = _table("", "", numbers=True)
    if question.concurrency > 1:
        table.add_row(f"tokens/s, {question.concurrency} sequences together", f"{plan.tokens_per_s:,.1f}")
        table.add_row("tokens/s of each of them", f"{1 / plan.step.seconds:,.1f}")
    table.add_row("tokens/s of one sequence alone", f"{1 / plan.lone_step.seconds:,.1f}")
    table.add_row(f"seconds to the first token of {question.context:,}, alone", f"{plan.prompt.seconds:,.2f}")
    table.add_row("prompt tokens/s of one router", f"{question.context / plan.prompt.seconds:,.0f}")
    return table


def _times(plan: CapacityPlan) -> Table:
    several = {f"step of {plan.question.concurrency}, ms": (plan.step, 1e3)} if plan.question.concurrency > 1 else {}
    columns: dict[str, tuple[Duration, float]] = {
        **several,
        "step of 1, ms": (plan.lone_step, 1e3),
        "prompt, s": (plan.prompt, 1),
    }
    table = _table("", *columns, numbers=True)
    for name in dict.fromkeys(name for duration, _ in columns.values() for name in duration.parts):
        table.add_row(name, *(f"{scale * each.parts.get(name, 0.0):,.2f}" for each, scale in columns.values()))
    table.add_row("together", *(f"{scale * each.seconds:,.2f}" for each, scale in columns.values()))
    return table


def _assumptions(found: Sequence[Assumption]) -> Table:
    table = _table("what", "value", "origin", "source")
    for each in found:
        table.add_row(each.what, _quantity(each.value, each.unit), each.origin, each.source or "-")
    return table


def _notes(plan: CapacityPlan) -> Iterator[RenderableType]:
    found = [*missing(plan), *filter(None, [published(plan.question)])]
    if found:
        yield Text("\nnotes", "bold")
        yield from (Text(f"- {each}") for each in found)


def _table(*columns: str, numbers: bool = False) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left", overflow="fold")
    return table


@dataclass(frozen=True, slots=True)
class _Unit:
    name: str
    size: float

    def text(self, num_bytes: float) -> str:
        return f"{num_bytes / self.size:,.2f}"


def _unit(plan: CapacityPlan) -> _Unit:
    """Return what bytes are told in: small models have small parts."""
    return _Unit("GB", 1e9) if plan.question.model_bytes.total >= 1e9 else _Unit("MB", 1e6)


def _quantity(value: float, unit: str) -> str:
    """Write a value, for example "450 us" or "3.35 TB/s"."""
    if unit == "s":
        return f"{value * 1e6:g} us" if value < 1e-3 else f"{value * 1e3:g} ms"
    if not unit:
        return f"{value:,g}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {letter}{unit}"
    return f"{value:g} {unit}"
