"""Events: made as snapshots, rendered in Stripe's envelope, signed as Stripe signs."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def emit(world: World, owner: str, kind: str, obj: Obj, *, previous: Obj | None = None) -> Obj:
    """Write an event down, as text at once: the object goes on changing, its snapshot must not."""
    request_id, key = world.cause
    event: Obj = {
        "id": world.new_id("evt"),
        "type": kind,
        "created": int(world.now()),
        "account": None if owner == world.platform else owner,
        "snapshot": _encode(obj),
        "previous": None if previous is None else _encode(previous),
        "request": request_id,
        "key": key,
        "pending": 0,
    }
    world.store.put(owner, "event", event)
    event["pending"] = world.announce(owner, event)
    return event


def render(world: World, event: Obj, *, api_version: str | None = None) -> str:
    previous = "" if event["previous"] is None else f',"previous_attributes":{event["previous"]}'
    account = "" if event["account"] is None else f'"account":"{event["account"]}",'
    request = _encode({"id": event["request"], "idempotency_key": event["key"]})
    version = api_version or world.settings.api_version
    return (
        f'{{"id":"{event["id"]}","object":"event",{account}"api_version":"{version}",'
        f'"created":{event["created"]},"data":{{"object":{event["snapshot"]}{previous}}},'
        f'"livemode":{"true" if world.livemode else "false"},"pending_webhooks":{event["pending"]},'
        f'"request":{request},"type":"{event["type"]}"}}'
    )


def as_object(world: World, event: Obj) -> Obj:
    made: Obj = json.loads(render(world, event))
    return made


def signature(body: bytes, secrets: Sequence[str], *, at: float) -> str:
    """The Stripe-Signature header: one v1 per secret, as while a secret is being rolled."""
    stamp = int(at)
    signed = f"{stamp}.".encode() + body
    marks = [f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}" for secret in secrets]
    return ",".join([f"t={stamp}", *marks])
