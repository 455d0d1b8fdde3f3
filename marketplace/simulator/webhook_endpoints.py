"""Webhook endpoints made through the API: at most 16; the secret is shown once."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import errors, metadata, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

ENDPOINTS_MAX = 16


def create(world: World, owner: str, params: Obj) -> Obj:
    """`connect: true` makes it receive events of connected accounts instead of the platform's own."""
    _check_url(params["url"])
    if sum(1 for _ in world.store.table(owner, "webhook_endpoint").rows) >= ENDPOINTS_MAX:
        raise errors.refused(f"You have reached the maximum of {ENDPOINTS_MAX} test webhook endpoints.")
    endpoint = shapes.make(
        "webhook_endpoint",
        id=world.new_id("we"),
        api_version=params.get("api_version"),
        created=int(world.now()),
        description=params.get("description"),
        enabled_events=params["enabled_events"],
        livemode=world.livemode,
        metadata=metadata.merged({}, params.get("metadata")),
        status="enabled",
        url=params["url"],
    )
    world.store.put(owner, "webhook_endpoint", endpoint)
    secret = f"whsec_{secrets.token_hex(16)}"
    world.store.put(
        owner,
        "_endpoint_secret",
        {"id": f"secret/{endpoint['id']}", "secrets": [secret], "connect": bool(params.get("connect"))},
    )
    return {**endpoint, "secret": secret}


def _check_url(url: str) -> None:
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise errors.refused("Invalid URL: An explicit scheme (such as https) must be provided.", param="url")


def update(world: World, owner: str, endpoint: Obj, params: Obj) -> Obj:
    if "url" in params:
        _check_url(params["url"])
    for name in ("url", "enabled_events", "description"):
        if name in params:
            endpoint[name] = params[name]
    if "disabled" in params:
        endpoint["status"] = "disabled" if params["disabled"] else "enabled"
    if "metadata" in params:
        endpoint["metadata"] = metadata.merged(endpoint["metadata"], params["metadata"])
    world.store.changed(owner, "webhook_endpoint", endpoint)
    return endpoint


def delete(world: World, owner: str, endpoint: Obj) -> Obj:
    world.store.remove(owner, "webhook_endpoint", endpoint["id"])
    world.store.remove(owner, "_endpoint_secret", f"secret/{endpoint['id']}")
    return {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}
