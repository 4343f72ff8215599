"""Writes what follows from something else: python -m tests.chart.write

values.schema.json's `settings` from the settings, profiles from the planner, helm/README.md's table from values.yaml's
comments, goldens from what is rendered. Tests compare.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from typing import Any

from cluster.config import ClusterConfig
from tests.chart.chart import CHART, GOLDENS, PLANNED, PROFILES, SCHEMA, essence, profile, render

README = CHART / "README.md"
_TABLE = re.compile(r"(<!-- values -->\n)(.*?)(<!-- /values -->)", re.DOTALL)
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_WEIGHTS = """# Beside the plan: where the weights are.
weights:
  source: pvc
  claim: {model}
"""


def schema_text() -> str:
    """Return values.schema.json with the settings there are."""
    schema = json.loads(SCHEMA.read_text())
    sections = {}
    for section in dataclasses.fields(ClusterConfig):
        owner = type(getattr(ClusterConfig(), section.name))
        hints = typing.get_type_hints(owner)
        properties = {each.name: _schema_of(hints[each.name]) for each in dataclasses.fields(owner)}
        sections[section.name] = {"type": "object", "additionalProperties": False, "properties": properties}
    schema["properties"]["settings"]["properties"] = sections
    return json.dumps(schema, indent=1) + "\n"


def _schema_of(kind: Any) -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return {"enum": list(typing.get_args(kind))}
    if origin in (typing.Union, types.UnionType):
        choices = [_schema_of(each) for each in typing.get_args(kind)]
        if all("type" in each for each in choices):
            return {"type": [each["type"] for each in choices]}
        return {"enum": [value for each in choices for value in each.get("enum", [None])]}
    return {"type": _KINDS[kind]}


def planned_text(name: str) -> str:
    """Return a profile: what the planner prints, and what it does not know."""
    return plan_text(name) + _WEIGHTS.format(model=PLANNED[name].split()[0])


def plan_text(name: str) -> str:
    """Return what `herd plan --values` prints for a profile."""
    from cluster.planner.advice import plan_or_refuse
    from cluster.planner.read_question import Texts, read_question
    from cluster.planner.values import as_values

    model, *options = PLANNED[name].split()
    texts = dict.fromkeys([each.name for each in dataclasses.fields(Texts)]) | {"model": model, "copies": 1}
    for key, value in zip(options[::2], options[1::2], strict=True):
        texts[key.removeprefix("--")] = int(value) if key in ("--concurrency", "--copies") else value
    return as_values(plan_or_refuse(read_question(Texts(**texts))), f"herd plan {PLANNED[name]} --values")


def table_text() -> str:
    """Return the table of values, from the comments above them."""
    rows, path, comment = ["| value | default | meaning |", "|---|---|---|"], [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        found = re.match(r"( *)([A-Za-z0-9_]+):(.*)", line)
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif found is None:
            comment = []
        else:
            depth, key, value = len(found[1]) // 2, found[2], found[3].strip()
            path = [*path[:depth], key]
            if comment:
                shown = f"`{value}`" if value else "see values.yaml"
                rows.append(f"| `{'.'.join(path)}` | {shown} | {' '.join(comment)} |")
            comment = []
    return "\n".join(rows) + "\n"


def readme_text() -> str:
    """Return README.md with that table."""
    return _TABLE.sub(lambda found: found[1] + table_text() + found[3], README.read_text())


def main() -> None:
    SCHEMA.write_text(schema_text())
    for name in PLANNED:
        profile(name).write_text(planned_text(name))
    README.write_text(readme_text())
    for name in PROFILES:
        (GOLDENS / f"{name}.yaml").write_text(essence(render("--values", str(profile(name)))))


if __name__ == "__main__":
    main()
