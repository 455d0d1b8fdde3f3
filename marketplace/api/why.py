"""An explanation as the API shows it."""

from typing import Any

from rest_framework import serializers

from marketplace.explain import runbook
from marketplace.explain.shapes import Explanation, Key, Kind


class NextAttemptSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField(help_text="At the earliest, by the database's clock; past where it is due.")
    why = serializers.CharField(help_text="Why then.")


class AttemptSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    number = serializers.IntegerField(help_text="Waits do not count, so several may bear the same.")
    actor = serializers.CharField()
    code = serializers.CharField(help_text="Empty for a success.")
    answer = serializers.CharField(help_text="What Stripe said.")
    request_id = serializers.CharField(help_text="Stripe's req_…, where it gave one.")
    request_url = serializers.CharField(help_text="In Stripe's dashboard; empty with the simulator.")


class KeySerializer(serializers.Serializer[Any]):
    operation_id = serializers.CharField()
    generation = serializers.IntegerField()
    first_used_at = serializers.DateTimeField(allow_null=True)
    age_seconds = serializers.SerializerMethodField(help_text="Since its first use; null before.")
    reused_until = serializers.DateTimeField(
        allow_null=True, help_text="Until then it is sent again as it is; after it Stripe is looked at first."
    )
    looks_first = serializers.BooleanField(help_text="Stripe is looked at before anything is sent.")

    def get_age_seconds(self, key: Key) -> int | None:
        return None if key.age is None else int(key.age.total_seconds())


class OwedReversalSerializer(serializers.Serializer[Any]):
    reversal = serializers.IntegerField()
    status = serializers.CharField()
    is_in_turn = serializers.BooleanField(help_text="The oldest pending one: it is sent first.")
    amount = serializers.IntegerField()
    currency = serializers.CharField()
    cause = serializers.CharField()
    refund = serializers.IntegerField(allow_null=True)
    stripe_refund_id = serializers.CharField()
    dispute = serializers.IntegerField(allow_null=True)
    stripe_dispute_id = serializers.CharField()
    stripe_reversal_id = serializers.CharField()


class LinkSerializer(serializers.Serializer[Any]):
    title = serializers.CharField()
    url = serializers.CharField()


class AllowedActionSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(help_text="`retry`, `try_now`, `enter_transfer_id`, `write_off`, `decline`.")
    title = serializers.CharField()
    permission = serializers.CharField()
    is_allowed = serializers.BooleanField(help_text="For you, now.")
    refusal = serializers.CharField(help_text="Why not.")
    debt = serializers.IntegerField(allow_null=True, help_text="What `write_off` is about.")


class WhySerializer(serializers.Serializer[Any]):
    """Why a transfer is where it is."""

    kind = serializers.ChoiceField(choices=Kind.choices)
    cause = serializers.CharField(help_text="In one or two plain sentences.")
    unblocks = serializers.CharField(help_text="What moves it on.")
    since = serializers.DateTimeField(allow_null=True)
    until = serializers.DateTimeField(allow_null=True, help_text="At the latest; a worker or a person has it then.")
    next_attempt = NextAttemptSerializer(allow_null=True)
    notes = serializers.ListField(child=serializers.CharField(), help_text="What else matters, a sentence each.")
    retries_spent = serializers.IntegerField()
    max_retries = serializers.IntegerField()
    attempts_made = serializers.IntegerField()
    attempts = AttemptSerializer(many=True, help_text="The newest first, at most twenty.")
    key = KeySerializer(allow_null=True, help_text="The idempotency key; null where nothing is to be sent.")
    owed = OwedReversalSerializer(many=True, help_text="All reversals on it, the oldest first.")
    links = LinkSerializer(many=True, help_text="Into Stripe's dashboard; none with the simulator.")
    runbook = serializers.SerializerMethodField(help_text="The entry of the runbook; empty where nothing is to do.")
    actions = AllowedActionSerializer(many=True)
    now = serializers.DateTimeField(help_text="The database's clock when it was asked.")

    def get_runbook(self, explanation: Explanation) -> str:
        return runbook.address(explanation.runbook)
