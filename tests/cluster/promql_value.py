"""What a PromQL query answers, for the part of the language that Herd's alerts are written in.

scrapes of front doors -> series with labels as Prometheus gives them -> a query's value, by its labels
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Series = dict[tuple[str, Labels], float]
"""Values of one moment, by name and labels."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<word>[a-zA-Z_:][\w:]*)|(?P<matchers>\{.*?\})"
    r"|(?P<range>\[\w+\])|(?P<sign>==|!=|>=|<=|[-+*/<>(),]))"
)
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"(.*?)"')
_AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {"max": max, "sum": sum, "count": len}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "==": float.__eq__,
    "!=": float.__ne__,
    ">": float.__gt__,
    "<": float.__lt__,
    ">=": float.__ge__,
    "<=": float.__le__,
}


def scraped(pages: Iterable[bytes], **labels: str) -> Series:
    """Return the series of front doors' metrics, each told apart by its instance; labels are of the scrape."""
    return {
        (sample.name, frozenset({**sample.labels, **labels, "instance": f"door-{index}"}.items())): sample.value
        for index, page in enumerate(pages)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


@dataclass(frozen=True, slots=True)
class Query:
    """A query over what was scraped.

    Args:
        text: in PromQL.
        now: what it is about.
        before: what was scraped at the beginning of every range; rates need it.
        seconds: since then.
    """

    text: str
    now: Series
    before: Series
    seconds: float = 300.0

    def value(self) -> Vector:
        """Return its value.

        Raises:
            ValueError: it has more than is understood here.
        """
        reader = _Reader(self, _tokens(self.text))
        value = reader.sets()
        if reader.tokens or isinstance(value, float):
            raise ValueError(f"expected a query for a vector that ends, found {reader.tokens or value} in {self.text}")
        return value


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"expected PromQL that is understood here, found {text[at:]!r}")
        found.append(match[0].strip())
        at = match.end()
    return found


class _Reader:
    """Reads tokens from the left and evaluates them on the way, loosest operators first."""

    def __init__(self, query: Query, tokens: list[str]) -> None:
        self.query, self.tokens = query, tokens

    def sets(self) -> Vector | float:
        left = self._comparison()
        while self._next() in ("or", "and", "unless"):
            word = self.tokens.pop(0)
            on = self._names("on")
            right = _vector(self._comparison())
            theirs = {_only(labels, on) for labels in right}
            if word == "or":
                mine = {_only(labels, on) for labels in _vector(left)}
                left = _vector(left) | {labels: each for labels, each in right.items() if _only(labels, on) not in mine}
            else:
                kept = word == "and"
                left = {labels: each for labels, each in _vector(left).items() if (_only(labels, on) in theirs) == kept}
        return left

    def _comparison(self) -> Vector | float:
        left = self._quotient()
        if self._next() not in _COMPARISONS:
            return left
        holds = _COMPARISONS[self.tokens.pop(0)]
        bound = self._quotient()
        if not isinstance(bound, float):
            raise ValueError("expected a number to compare with, found a vector")
        return {labels: value for labels, value in _vector(left).items() if holds(float(value), bound)}

    def _quotient(self) -> Vector | float:
        left = self._term()
        while self._next() == "/":
            self.tokens.pop(0)
            divisor = _vector(self._term())
            left = {labels: value / divisor[labels] for labels, value in _vector(left).items() if labels in divisor}
        return left

    def _term(self) -> Vector | float:
        word = self.tokens.pop(0)
        if word == "(":
            value = self.sets()
            self._take(")")
            return value
        if word[0].isdigit():
            return float(word)
        if word in _AGGREGATIONS:
            return self._aggregation(_AGGREGATIONS[word])
        if self._next() == "(":
            return self._function(word)
        return self._selected(word, self.query.now)

    def _aggregation(self, aggregate: Callable[[list[float]], float]) -> Vector:
        by = self._names("by") or ()
        groups: dict[Labels, list[float]] = defaultdict(list)
        for labels, value in _vector(self._term()).items():
            groups[_only(labels, by)].append(value)
        return {labels: float(aggregate(values)) for labels, values in groups.items()}

    def _function(self, name: str) -> Vector:
        self._take("(")
        if name == "rate":
            value = self._rate()
        elif name == "histogram_quantile":
            quantile = self._term()
            self._take(",")
            value = _quantile(float(quantile) if isinstance(quantile, float) else 0.0, _vector(self.sets()))
        elif name == "clamp_min":
            value = _vector(self.sets())
            self._take(",")
            least = self._term()
            value = {labels: max(each, least) for labels, each in value.items() if isinstance(least, float)}
        elif name == "vector":
            value = {frozenset(): float(self.tokens.pop(0))}
        elif name == "absent":
            value = {} if self.sets() else {frozenset(): 1.0}
        else:
            raise ValueError(f"expected a function that is understood here, found {name}")
        self._take(")")
        return value

    def _rate(self) -> Vector:
        name, matchers = self.tokens.pop(0), [self.tokens[0]] if self.tokens[0].startswith("{") else []
        now = self._selected(name, self.query.now)
        self.tokens.pop(0)  # every range is from `before` to `now`
        self.tokens[:0] = matchers
        before = self._selected(name, self.query.before)
        return {labels: (now[labels] - before[labels]) / self.query.seconds for labels in now.keys() & before.keys()}

    def _selected(self, name: str, series: Series) -> Vector:
        matchers = _MATCHER.findall(self.tokens.pop(0)) if self._next().startswith("{") else []
        return {
            labels: value for (each, labels), value in series.items() if each == name and _match(dict(labels), matchers)
        }

    def _names(self, keyword: str) -> tuple[str, ...] | None:
        """Read `keyword (label, ...)`, where it is next."""
        if self._next() != keyword:
            return None
        self.tokens.pop(0)
        end = self.tokens.index(")")
        names = tuple(each for each in self.tokens[1:end] if each != ",")
        del self.tokens[: end + 1]
        return names

    def _next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def _take(self, sign: str) -> None:
        found = self.tokens.pop(0)
        if found != sign:
            raise ValueError(f"expected {sign} in the query, found {found}")


def _vector(value: Vector | float) -> Vector:
    if isinstance(value, float):
        raise ValueError(f"expected a vector in the query, found {value:g}")
    return value


def _only(labels: Labels, names: tuple[str, ...] | None) -> Labels:
    """Return those labels of some names; None: all."""
    return labels if names is None else frozenset(pair for pair in labels if pair[0] in names)


def _match(labels: Mapping[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    for name, how, text in matchers:
        found = labels.get(name, "")
        is_alike = re.fullmatch(text, found) is not None if "~" in how else found == text
        if is_alike == how.startswith("!"):
            return False
    return True


def _quantile(quantile: float, buckets: Vector) -> Vector:
    """Interpolate within the bucket that the quantile is in, as Prometheus does; none where nothing was measured."""
    groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, value in buckets.items():
        groups[frozenset(pair for pair in labels if pair[0] != "le")].append((float(dict(labels)["le"]), value))
    found = {}
    for labels, unsorted in groups.items():
        bounds = sorted(unsorted)
        rank = quantile * bounds[-1][1]
        if not rank:
            continue
        index = next(index for index, (_, count) in enumerate(bounds) if count >= rank)
        low, below = bounds[index - 1] if index else (0.0, 0.0)
        high, count = bounds[index]
        found[labels] = low if high == float("inf") else low + (high - low) * (rank - below) / (count - below)
    return found
