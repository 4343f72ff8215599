"""The picture as a web page that needs no other file and no network."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from cluster.bench.caveats import find_caveats
from cluster.bench.record import environment_record, settings_record
from cluster.bench.report import STATISTICS, describe_outcome, describe_run, latency_rows, throughput_lines
from cluster.bench.session import Result
from cluster.bench.summary import Summary

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1300px; padding: 0 1em; color: #1a1a1a; }
h1 { font-size: 1.25em; } h2 { font-size: 1.05em; margin-top: 1.6em; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #e5e5e5; }
td:first-child, th:first-child { text-align: left; }
.note { color: #8a5a00; } .severe { color: #c1121f; font-weight: bold; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
"""


def write_page(result: Result, summary: Summary, svg: str, path: Path) -> None:
    """Write picture, tables and settings.

    Args:
        result: of the run.
        summary: of the same run.
        svg: the picture, as an SVG file's text.
        path: is overwritten.
    """
    notes = "".join(
        f'<p class="{"severe" if caveat.is_severe else "note"}">{escape(caveat.text)}</p>'
        for caveat in find_caveats(result, summary)
    )
    errors = "".join(_row(error.kind, str(error.count), error.example) for error in summary.errors)
    throughput = "".join(_row(name, value) for name, value in throughput_lines(summary))
    about = {"settings": settings_record(result.settings), "environment": environment_record()}
    parts = [
        f"<h1>{escape(describe_run(result))}</h1><p>{escape(describe_outcome(summary))}, started ",
        f"{escape(result.started_at.isoformat(timespec='seconds'))}</p>{notes}",
        svg[svg.index("<svg") :],
        f"<h2>Latencies (ms)</h2><table>{_latency_rows(summary)}</table>",
        f"<h2>Throughput</h2><table>{throughput}</table>",
        f"<h2>Errors</h2><table>{errors}</table>" if errors else "",
        f"<h2>Settings</h2><pre>{escape(json.dumps(about, indent=1))}</pre>",
    ]
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>herd bench</title><style>{_CSS}</style>'
    path.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")


def _latency_rows(summary: Summary) -> str:
    header = "<tr><th></th>" + "".join(f"<th>{name}</th>" for name in STATISTICS) + "</tr>"
    return header + "".join(_row(name, *cells) for name, cells in latency_rows(summary))


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
