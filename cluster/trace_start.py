"""Starts traces where they are wanted, and imports nothing where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.config import TraceSettings
from protos.errors import BadConfig
from protos.traced import TellAnswer

if TYPE_CHECKING:
    from cluster.tracing import Tracing

_EXPORT_TIMEOUT_S = 5
_SEND_EVERY_MS = 1000
"""A process that is killed loses what it has not sent."""
_MOST_UNSENT = 8192
"""Spans that wait to be sent; while a collector does not take them, the oldest are dropped."""


def check_tracing(settings: TraceSettings) -> None:
    """Check that traces can be made, if they are wanted.

    Raises:
        BadConfig: OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise BadConfig(
            f"trace.endpoint: expected OpenTelemetry to be installed, found: {error}; install llama-herd[trace], or "
            "leave the setting out"
        ) from error


def start_tracing(settings: TraceSettings, process: str) -> Tracing | None:
    """Return what makes this process' spans and sends them; None: traces are off.

    Args:
        settings: where to.
        process: front door, router, experts or context.

    Raises:
        BadConfig: traces are wanted, and OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return None
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from cluster.tracing import Tracing

    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=_EXPORT_TIMEOUT_S)
    processor = BatchSpanProcessor(exporter, max_queue_size=_MOST_UNSENT, schedule_delay_millis=_SEND_EVERY_MS)
    return Tracing(processor, process, settings.sample)


def start_answer_spans(settings: TraceSettings, process: str, replica_id: str) -> TellAnswer | None:
    """Return what makes the spans of a replica's answers; None: traces are off.

    Args:
        settings: where to.
        process: experts or context.
        replica_id: the replica.

    Raises:
        BadConfig: traces are wanted, and OpenTelemetry is not installed.
    """
    tracing = start_tracing(settings, process)
    return None if tracing is None else tracing.answers(process, replica_id)
