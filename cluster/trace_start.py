"""Starts traces where they are wanted, and imports nothing where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.config import TraceSettings
from protos.errors import BadConfig

if TYPE_CHECKING:
    from cluster.tracing import Tracing

_EXPORT_TIMEOUT_S = 5
_SEND_EVERY_MS = 1000
"""A process that is killed loses what it has not sent."""


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
        process: front door or router.

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
    return Tracing(BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS), process, settings.sample)
