"""The plain text: what every CPython carries about itself, one document per function, class, module and topic."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

SKIPPED = (
    "test", "idlelib", "turtledemo", "turtle", "tkinter", "antigravity", "this", "lib2to3", "encodings", "distutils",
    "pydoc_data", "ensurepip", "venv", "msilib", "nt", "winreg", "winsound", "msvcrt", "sre_compile", "sre_constants",
    "sre_parse", "curses", "posix", "asynchat", "asyncore", "imp", "smtpd", "pip", "crypt",
)  # fmt: skip
"""Tests, GUIs, import side effects, and modules that later Pythons dropped."""

FIRST = (
    "builtins",
    "os",
    "os.path",
    "pathlib",
    "re",
    "json",
    "math",
    "itertools",
    "functools",
    "collections",
    "random",
)
"""Read before the others, so that a text found under two names is kept under the one people use."""

HELD_OUT_PER_MILLE = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One documented name."""

    name: str
    """As people write it: `str.join`, `os.path.join`, `json`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    signature: str
    """`(iterable, /)`, or empty where Python knows none."""
    doc: str
    """The docstring, dedented."""
    document: str
    """Name of the document that holds it: the class's for a method, else its own."""


def module_names() -> list[str]:
    """List the public standard-library modules and submodules that import without side effects, in reading order."""
    names = set(FIRST)
    for top in sys.stdlib_module_names:
        if top.startswith("_") or top in SKIPPED:
            continue
        module = _import(top)
        if module is None:
            continue
        names.add(top)
        for found in pkgutil.iter_modules(getattr(module, "__path__", []), top + "."):
            if not found.name.rpartition(".")[2].startswith("_") and ".test" not in found.name:
                names.add(found.name)
    names |= {"xml.etree.ElementTree", "concurrent.futures.thread", "concurrent.futures.process"}
    return [*FIRST, *sorted(names - set(FIRST))]


def read_entries() -> list[Entry]:
    """Read every docstring of the standard library, the builtins first.

    Cost: imports some 300 modules; about a second.
    """
    entries: dict[str, Entry] = {}
    # Deprecated modules and names warn when they are looked at; looking is all that happens here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module_name in module_names():
            module = _import(module_name)
            for entry in _module_entries(module_name, module) if module is not None else ():
                entries.setdefault(entry.name, entry)
    return list(entries.values())


def read_documents(entries: list[Entry]) -> dict[str, str]:
    """Join the entries to documents and add the language topics; a text that repeats an earlier one is dropped."""
    parts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for entry in entries:
        if entry.doc not in seen:
            seen.add(entry.doc)
            parts.setdefault(entry.document, []).append(f"{entry.name}{entry.signature}\n\n{entry.doc}\n")
    documents = {name: "\n".join(texts) for name, texts in parts.items()}
    documents |= {f"topic {name}": text.strip() + "\n" for name, text in sorted(topics.items())}
    return documents


def split_held_out(documents: dict[str, str], keep: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split into (training, held out), by a hash of the document's name: the same split on every machine.

    Args:
        documents: name to text.
        keep: documents that must be trained on, because the chat answers quote them.

    Returns:
        Two maps. A paragraph of the second is removed from the first, for the language topics quote each other.
    """
    held_out = {name: text for name, text in documents.items() if name not in keep and _is_held_out(name)}
    hidden = {part for text in held_out.values() for part in text.split("\n\n") if len(part) > 60}
    training = {
        name: "\n\n".join(part for part in text.split("\n\n") if part not in hidden)
        for name, text in documents.items()
        if name not in held_out
    }
    return training, held_out


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def _import(name: str) -> types.ModuleType | None:
    # Some modules print, or need a library that this machine lacks; a missing one only makes the corpus smaller.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, AttributeError):
            return None


def _module_entries(module_name: str, module: types.ModuleType) -> Iterator[Entry]:
    prefix = "" if module_name == "builtins" else module_name + "."
    yield from _entry(module_name, "module", module, module_name)
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not _belongs(value, module_name):
            continue
        if inspect.isclass(value):
            yield from _class_entries(prefix + name, value)
        elif callable(value):
            yield from _entry(prefix + name, "function", value, prefix + name)


def _class_entries(class_name: str, cls: type) -> Iterator[Entry]:
    yield from _entry(class_name, "class", cls, class_name)
    for name, value in sorted(vars(cls).items()):
        if not name.startswith("_") and (callable(value) or isinstance(value, (classmethod, staticmethod, property))):
            yield from _entry(f"{class_name}.{name}", "method", getattr(cls, name, value), class_name)


def _entry(name: str, kind: str, value: object, document: str) -> Iterator[Entry]:
    try:
        doc = inspect.getdoc(value)
    except Exception:  # noqa: BLE001  a lazy attribute may raise anything; it then has no docstring
        doc = None
    if not isinstance(doc, str) or len(doc) < 12:
        return
    if kind not in ("module", "class") and doc == inspect.getdoc(type(value)):
        return  # an instance that only repeats its class's docstring
    doc = doc.replace("\t", "    ").strip()
    yield Entry(name=name, kind=kind, signature=_signature(value, kind), doc=doc, document=document)


def _signature(value: object, kind: str) -> str:
    if kind == "module":
        return ""
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):
        return ""
    text = text.replace("(self, /, ", "(").replace("(self, ", "(").replace("(self, /)", "()").replace("(self)", "()")
    return text if len(text) <= 120 and "0x" not in text and "<" not in text else ""


def _belongs(value: object, module_name: str) -> bool:
    """Tell whether a module is where people look for this value, not merely one that imported it."""
    home = getattr(value, "__module__", None)
    if home is None or isinstance(value, types.ModuleType):
        return home is None and callable(value)
    top = module_name.partition(".")[0]
    alias = {"os": ("posix",), "os.path": ("posixpath", "genericpath")}
    return (
        module_name == "builtins"
        or home == module_name
        or home in alias.get(module_name, ())
        or home.startswith(top + ".")
        or home.lstrip("_").partition(".")[0] == top
        or (home.startswith("_") and module_name not in ("os", "typing"))
    )
