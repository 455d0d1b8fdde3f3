"""OpenTelemetry traces, for who has a collector: from the webhook to the reversal, over the processes between.

Without a collector nothing of OpenTelemetry is imported, and a span is nothing. Spans hold ids and numbers, no texts of
errors and no names.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.conf import settings

# One attempt to hand spans over. Those that cannot be are dropped: no work waits for them.
EXPORT_SECONDS = 5
_NOTHING: AbstractContextManager[None] = nullcontext()
# OpenTelemetry's, once this process has started it.
_tracer: Any = None


def start() -> None:
    """Send spans to the collector that the settings name, if they name one."""
    if not settings.OTEL_EXPORTER_OTLP_ENDPOINT:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    address = f"{settings.OTEL_EXPORTER_OTLP_ENDPOINT}/v1/traces"
    use(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=EXPORT_SECONDS)))


def use(processor: Any) -> None:
    """Give spans to this processor from now on."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer  # noqa: PLW0603 - one for the process, as its log is
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: settings.OTEL_SERVICE_NAME}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("marketplace")


def span(name: str, *, parent: str = "", **attributes: str | int) -> AbstractContextManager[Any]:
    """What is done within it, inside of the span that is open, or of ``parent``: a row's ``traceparent``."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    opened: AbstractContextManager[Any] = _tracer.start_as_current_span(
        name, context=context, attributes=attributes, record_exception=False, set_status_on_exception=False
    )
    return opened


def note(**attributes: str | int) -> None:
    """What the open span learned meanwhile."""
    if _tracer is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(attributes)


def traceparent() -> str:
    """The open span as W3C's ``traceparent`` (w3.org/TR/trace-context); empty where there is none. What is written
    meanwhile keeps it, so that a worker's spans belong to the same trace.
    """
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")
