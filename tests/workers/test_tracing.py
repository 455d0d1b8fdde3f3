"""Optional traces: one from the webhook to the reversal, nothing personal in it, and nothing without a collector."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from marketplace import tracing
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.workers import reversal
from tests.api.test_webhooks import post
from tests.factories import SellerTransferFactory
from tests.inbox.conftest import paid  # noqa: F401 - a fixture
from tests.outgoing.receivers import webhook_receiver
from tests.structure.sources import ROOT
from tests.test_settings import run as start
from tests.workers.conftest import REVERSE, drain


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    # Only to have it put back.
    monkeypatch.setattr(tracing, "_tracer", None)
    tracing.use(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> list[Any]:
    return [span for span in spans.get_finished_spans() if span.name == name]


@pytest.mark.django_db
def test_one_trace_goes_from_the_webhook_to_the_reversal(
    spans: InMemorySpanExporter,
    client: Client,
    gateway: Any,
    simulator: Any,
    paid: Any,  # noqa: F811
) -> None:
    order, charge = paid
    simulator.create_refund(charge=charge)
    (event,) = simulator.events(type="refund.created")
    assert post(client, json.dumps(event).encode()).status_code == 200
    drain(reversal.ReversalQueue(gateway))
    (request,) = named(spans, "request")
    (applied,) = named(spans, "apply event")
    worked = named(spans, "reversal")
    assert len(worked) == order.transfers.count()
    trace = request.context.trace_id
    assert {span.context.trace_id for span in [applied, *worked]} == {trace}
    assert applied.parent.span_id == request.context.span_id
    assert {span.parent.span_id for span in worked} == {applied.context.span_id}
    assert dict(request.attributes) == {
        "method": "POST",
        "id": request.attributes["id"],
        "route": "webhooks/stripe/",
        "status": 200,
    }
    assert applied.attributes["event"] == event["id"] == worked[0].attributes["correlation_id"]
    inside = {span.name for span in spans.get_finished_spans() if span.parent and span.context.trace_id == trace}
    assert {f"Stripe {REVERSE}", "settle"} <= inside


@pytest.mark.django_db
def test_spans_say_what_stripe_answered(spans: InMemorySpanExporter, gateway: Any, at_stripe: Any) -> None:
    transfer = at_stripe()
    drain(reversal.ReversalQueue(gateway))
    (called,) = named(spans, f"Stripe {REVERSE}")
    assert (called.attributes["status"], called.attributes["request_id"][:4]) == (200, "req_")
    (worked,) = named(spans, "reversal")
    assert (worked.attributes["transfer"], worked.attributes["answer"]) == (transfer.pk, "Reversed")
    (settled,) = named(spans, "settle")
    assert settled.attributes["status"] == "reversed"


@pytest.mark.django_db
def test_a_page_is_named_by_its_pattern(spans: InMemorySpanExporter, client: Client) -> None:
    client.get("/healthz")
    client.get("/nowhere/private@example.com")
    assert [span.attributes["route"] for span in named(spans, "request")] == ["healthz", ""]
    assert "private" not in str([span.to_json() for span in spans.get_finished_spans()])


@pytest.mark.django_db
def test_the_text_of_an_error_is_in_no_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="s3cret"), tracing.span("reversal"):
        raise ValueError("sk_live_s3cret")
    assert "s3cret" not in str([span.to_json() for span in spans.get_finished_spans()])


@pytest.mark.django_db
def test_the_worker_tells_of_its_claims(spans: InMemorySpanExporter, gateway: Any, at_stripe: Any) -> None:
    reversal.worker(gateway)._claim(reversal.worker(gateway)._watched[0])
    assert {span.attributes["rows"] for span in named(spans, "claim")} == {0}


@pytest.mark.django_db
def test_without_a_collector_nothing_is_kept_in_rows() -> None:
    tracing.start()
    assert tracing._tracer is None
    with tracing.span("anything", row=1):
        tracing.note(more=2)
        transfer = SellerTransferFactory(reversal_pending=True)
    assert SellerTransfer.objects.get(pk=transfer.pk).traceparent == ""
    assert TransferReversal.objects.get(transfer=transfer).traceparent == ""


@pytest.mark.django_db
def test_a_row_of_before_begins_a_trace(spans: InMemorySpanExporter, gateway: Any, at_stripe: Any) -> None:
    transfer = at_stripe()
    assert transfer.traceparent == ""
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())
    drain(reversal.ReversalQueue(gateway))
    (worked,) = named(spans, "reversal")
    assert worked.parent is None


def test_spans_reach_a_collector_over_http(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    with webhook_receiver() as collector:
        settings.OTEL_EXPORTER_OTLP_ENDPOINT = collector.url
        tracing.start()
        with tracing.span("reversal", transfer=7):
            pass
        provider = tracing._tracer.span_processor
        assert provider.force_flush(10_000)
        provider.shutdown()
    (received,) = collector.received
    assert received.path == "/v1/traces"
    assert b"reversal" in received.body
    assert b"veza-marketplace" in received.body


# --- The setting ------------------------------------------------------------------------------------------------------

WITHOUT = "import sys; sys.modules['opentelemetry'] = None; "


def test_without_the_packages_the_program_runs() -> None:
    done = start("-c", WITHOUT + "import django; django.setup(); from marketplace import tracing; tracing.start()")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_collector_without_the_packages_is_refused_by_name() -> None:
    done = start("-c", WITHOUT + "from veza import settings", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "OTEL_EXPORTER_OTLP_ENDPOINT='http://127.0.0.1:4318' is not valid: expected to be empty where OpenTelemetry is"
        " not installed: pip install '.[tracing]'."
    )


@pytest.mark.parametrize(
    "address", ["collector:4318", "grpc://collector:4317", "http://user:s3cret@collector", "http://"]
)
def test_what_is_no_address_of_a_collector_is_refused(address: str) -> None:
    done = start(OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert done.returncode == 1
    assert "expected an address such as http://127.0.0.1:4318." in done.stderr
    assert "s3cret" not in done.stderr


def test_nothing_of_opentelemetry_is_loaded_without_a_collector() -> None:
    program = (
        "import django, sys; django.setup(); import veza.wsgi;"
        " print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"ENV_FILE": "/dev/null", "DJANGO_SETTINGS_MODULE": "veza.settings"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "[]\n"
