"""What reading shows: pages of objects, filtered, and references expanded into the objects they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import errors, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

LIMIT_DEFAULT, LIMIT_MAX, DEPTH_MAX = 10, 100, 4


def page(
    world: World,
    owner: str,
    kind: str,
    url: str,
    params: Obj,
    *,
    fields: tuple[str, ...] = (),
    keep: Callable[[Obj], bool] = lambda _row: True,
    show: Callable[[Obj], Obj] = lambda row: row,
    **fixed: str,
) -> Obj:
    """One page. `fields` are the filters that mean "this field equals the parameter of the same name"."""
    limit = params.get("limit", LIMIT_DEFAULT)
    if not 1 <= limit <= LIMIT_MAX:
        word = "greater than or equal to 1" if limit < 1 else f"less than or equal to {LIMIT_MAX}"
        raise errors.invalid(f"This value must be {word}.", code="parameter_invalid_integer", param="limit")
    if "starting_after" in params and "ending_before" in params:
        raise errors.invalid(
            "You may only specify one of these parameters: ending_before, starting_after.",
            code="parameters_exclusive",
        )
    created = _created(params.get("created"))
    rows, more = world.store.table(owner, kind).page(
        limit=limit,
        wanted={field: params[field] for field in fields if field in params} | fixed,
        keep=lambda row: created(row["created"]) and keep(row),
        starting_after=params.get("starting_after"),
        ending_before=params.get("ending_before"),
        noun=kind.replace("_", " "),
    )
    return shapes.page(url, [show(row) for row in rows], has_more=more)


def _created(given: Any) -> Callable[[int], bool]:
    if given is None:
        return lambda _at: True
    if isinstance(given, int):
        return lambda at: at == given
    low = max(given.get("gte", 0), given.get("gt", -1) + 1)
    high = min(given.get("lte", 2**62), given.get("lt", 2**62) - 1)
    return lambda at: low <= at <= high


def expanded(world: World, obj: Obj, paths: list[str]) -> Obj:
    """A copy with the named references replaced by their objects, as far as anything is copied at all."""
    for path in paths:
        steps = path.split(".")
        if len(steps) - (steps[0] == "data") > DEPTH_MAX:
            raise errors.invalid(
                f"You cannot expand more than {DEPTH_MAX} levels of a property. Property: {path}",
                param="expand",
            )
        obj = _expand(world, obj, steps, path)
    return obj


def _expand(world: World, obj: Any, steps: list[str], path: str) -> Any:
    if isinstance(obj, list):
        return [_expand(world, each, steps, path) for each in obj]
    if not steps or not isinstance(obj, dict):
        return obj
    name, rest = steps[0], steps[1:]
    kind = obj.get("object", "")
    if kind == "charge" and name == "refunds" and "refunds" not in obj:
        return {**obj, "refunds": _expand(world, refunds_of(world, obj), rest, path)}
    value = obj.get(name)
    if name in shapes.EXPANDABLE.get(kind, ()):
        if isinstance(value, str):
            found = world.store.find(value) or world.account(value)
            value = value if found is None else found
        return {**obj, name: _expand(world, value, rest, path)}
    if isinstance(value, dict | list):
        return {**obj, name: _expand(world, value, rest, path)}
    raise errors.invalid(f"This property cannot be expanded ({path}).", param="expand")


def refunds_of(world: World, charge: Obj) -> Obj:
    """The charge's ten latest refunds: embedded only when asked for."""
    home = world.store.homes[charge["id"]]
    rows, more = world.store.table(home[0], "refund").page(
        limit=LIMIT_DEFAULT, wanted={"charge": charge["id"]}, keep=lambda _row: True
    )
    total = sum(1 for _ in world.store.table(home[0], "refund").select(charge=charge["id"]))
    return shapes.page(f"/v1/charges/{charge['id']}/refunds", rows, has_more=more, total_count=total)
