"""The fake Stripe of the benchmark, spoken to as it is there: over HTTP, by a process of its own."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from bench.fakes import FakeStripe
from bench.processes import ChildFailed


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[FakeStripe]:
    with FakeStripe(tmp_path) as fake:
        yield fake


def reverse(stripe: FakeStripe, key: str, *, transfer: str = "tr_1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", stripe.port, timeout=10)
    form = urlencode({"amount": "4500", "metadata[operation_id]": "op"})
    connection.request("POST", f"/v1/transfers/{transfer}/reversals", body=form, headers={"Idempotency-Key": key})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_a_key_is_replayed(stripe: FakeStripe) -> None:
    first, second, other = reverse(stripe, "a"), reverse(stripe, "a"), reverse(stripe, "b")
    assert first == second
    assert first[0] == other[0] == 200
    assert first[1] != other[1]


def test_an_answer_takes_the_time_it_was_told_to_take(stripe: FakeStripe) -> None:
    stripe.configure(latency=0.05)
    reverse(stripe, "a", transfer="tr_slow")
    (call,) = stripe.calls()
    assert call.subject == "tr_slow"
    assert call.answered - call.arrived >= 0.05


def test_what_a_window_of_one_second_holds_is_limited(stripe: FakeStripe) -> None:
    stripe.configure(limit=2)
    assert [reverse(stripe, key)[0] for key in "abc"] == [200, 200, 429]
    assert [call.status for call in stripe.calls()] == [200, 200, 429]


def test_a_refused_key_is_not_kept(stripe: FakeStripe) -> None:
    stripe.configure(limit=1)
    assert [reverse(stripe, key)[0] for key in "ab"] == [200, 429]
    stripe.configure()
    assert reverse(stripe, "b")[0] == 200


def test_one_call_in_so_many_is_slow(stripe: FakeStripe) -> None:
    stripe.configure(slow=0.03, slow_every=5, seed=3)
    for number in range(20):
        reverse(stripe, f"key-{number}")
    slow = [call.answered - call.arrived >= 0.03 for call in stripe.calls()]
    assert [sum(slow[begin : begin + 5]) for begin in range(0, 20, 5)] == [1, 1, 1, 1]


def test_a_call_that_was_not_meant_spoils_the_measurement(stripe: FakeStripe) -> None:
    reverse(stripe, "a", transfer="tr_1/reversals/of")
    with pytest.raises(ChildFailed, match="asked for"):
        stripe.calls()
