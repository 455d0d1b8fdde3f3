"""The picture of a transfer's states, for the documents and for a transfer's page: made of ``ALLOWED_TRANSITIONS``."""

from collections.abc import Iterable

from django.db.models import TextChoices

from marketplace import states
from marketplace.states import Status, Transitions

T = states.TransferStatus

# Steps that nobody here decides: our rows follow what was found at Stripe.
SEEN_AT_STRIPE = {
    (T.COMPLETED, T.PARTIALLY_REVERSED),
    (T.COMPLETED, T.REVERSED),
    (T.PARTIALLY_REVERSED, T.REVERSED),
    (T.PERMANENTLY_FAILED, T.PARTIALLY_REVERSED),
    (T.PERMANENTLY_FAILED, T.REVERSED),
}
BY_OPERATOR = {
    (T.PERMANENTLY_FAILED, T.REVERSAL_PENDING),
    (T.PERMANENTLY_FAILED, T.FAILED),
    (T.PERMANENTLY_FAILED, T.CANCELED),
}


def note(old: TextChoices, new: TextChoices) -> str:
    """Who makes the step, where that is not a worker or a service on its own."""
    if (old, new) in SEEN_AT_STRIPE:
        return "seen at Stripe"
    return "operator" if (old, new) in BY_OPERATOR else ""


def steps(transitions: Transitions[Status]) -> Iterable[tuple[Status, Status]]:
    """All listed steps in the order in which the statuses are defined."""
    for old in transitions:
        for new in type(old):
            if new in transitions[old]:
                yield old, new


BOX_WIDTH, BOX_HEIGHT = 158, 44
PLACES: dict[states.TransferStatus, tuple[int, int]] = {
    T.CANCELED: (20, 120),
    T.PENDING: (218, 30),
    T.FAILED: (218, 210),
    T.COMPLETED: (440, 120),
    T.REVERSAL_PENDING: (690, 30),
    T.PARTIALLY_REVERSED: (716, 210),
    T.REVERSED: (900, 120),
    T.PERMANENTLY_FAILED: (420, 330),
}
# Boxes carry their own light ground, lines a middle grey: both show on white and on black.
FILLS: dict[states.TransferStatus, str] = {
    T.CANCELED: "#d5dae1",
    T.PENDING: "#cfe3ff",
    T.FAILED: "#ffe1b8",
    T.COMPLETED: "#cdeed3",
    T.REVERSAL_PENDING: "#cfe3ff",
    T.PARTIALLY_REVERSED: "#cdeed3",
    T.REVERSED: "#9fddb0",
    T.PERMANENTLY_FAILED: "#ffc4bf",
}
PLAIN, SEEN, OPERATOR, CURRENT = "#7b8794", "#7b8794", "#d9730d", "#2f7cf6"
# Where a straight line would run through a box: the point that pulls the curve aside.
BENDS: dict[tuple[states.TransferStatus, states.TransferStatus], tuple[int, int]] = {
    (T.PERMANENTLY_FAILED, T.REVERSED): (960, 350)
}


def centre(status: states.TransferStatus) -> tuple[float, float]:
    x, y = PLACES[status]
    return x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2


def edge_of_box(
    status: states.TransferStatus, toward: tuple[float, float], aside: tuple[float, float]
) -> tuple[float, float]:
    """Where the line from the box's centre (moved ``aside``) toward a point leaves the box."""
    x, y = centre(status)
    start = (x + aside[0], y + aside[1])
    dx, dy = toward[0] - start[0], toward[1] - start[1]
    reach = [
        (limit + sign * shift) / abs(d)
        for limit, shift, d, sign in (
            (BOX_WIDTH / 2 + 3, aside[0], dx, -1 if dx > 0 else 1),
            (BOX_HEIGHT / 2 + 3, aside[1], dy, -1 if dy > 0 else 1),
        )
        if abs(d) > 0.01
    ]
    return start[0] + dx * min(reach), start[1] + dy * min(reach)


def arrow(old: states.TransferStatus, new: states.TransferStatus, *, two_way: bool) -> str:
    (x1, y1), (x2, y2) = centre(old), centre(new)
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    aside = ((y2 - y1) / length * 8, -(x2 - x1) / length * 8) if two_way else (0.0, 0.0)
    bend = BENDS.get((old, new))
    start = edge_of_box(old, bend or (x2 + aside[0], y2 + aside[1]), aside)
    end = edge_of_box(new, bend or (x1 + aside[0], y1 + aside[1]), aside)
    curve = f"Q {bend[0]} {bend[1]} " if bend else "L "
    kind = note(old, new)
    colour = {"operator": OPERATOR, "seen at Stripe": SEEN}.get(kind, PLAIN)
    dashes = ' stroke-dasharray="6 5"' if kind == "seen at Stripe" else ""
    marker = "operator" if kind == "operator" else "plain"
    return (
        f'  <path d="M {start[0]:.1f} {start[1]:.1f} {curve}{end[0]:.1f} {end[1]:.1f}" stroke="{colour}"{dashes}'
        f' marker-end="url(#{marker})"><title>{old.value} to {new.value}</title></path>'
    )


def picture(current: str = "") -> str:
    """The states of a transfer and the steps between them, as SVG; the box of ``current`` is marked."""
    missing = set(T) - set(PLACES)
    if missing:
        raise ValueError(f"{sorted(missing)} have no place in the picture: add them to PLACES.")
    listed = list(steps(states.ALLOWED_TRANSITIONS))
    arrows = [arrow(old, new, two_way=(new, old) in listed) for old, new in listed]
    boxes = []
    for status, (x, y) in PLACES.items():
        weight = 2.5 if not states.ALLOWED_TRANSITIONS[status] else 1
        bold = ""
        if status == current:
            bold = ' font-weight="bold"'
            boxes.append(
                f'  <rect class="now" x="{x - 6}" y="{y - 6}" width="{BOX_WIDTH + 12}" height="{BOX_HEIGHT + 12}"'
                f' rx="14" fill="none" stroke="{CURRENT}" stroke-width="4"/>'
            )
        boxes.append(
            f'  <rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9" fill="{FILLS[status]}"'
            f' stroke="#4a5560" stroke-width="{weight}"/>\n'
            f'  <text x="{x + BOX_WIDTH / 2:.0f}" y="{y + 27}" text-anchor="middle" fill="#15202b"{bold}>'
            f"{status.value}</text>"
        )
    legend = "\n".join(
        f'  <path d="M {x} 418 L {x + 46} 418" stroke="{colour}"{dashes} marker-end="url(#{marker})"/>\n'
        f'  <text x="{x + 58}" y="422" fill="#7b8794">{words}</text>'
        for x, colour, dashes, marker, words in (
            (40, PLAIN, "", "plain", "a worker, or a refund that succeeded"),
            (420, SEEN, ' stroke-dasharray="6 5"', "plain", "seen at Stripe: made elsewhere"),
            (760, OPERATOR, "", "operator", "an operator's retry, or decision"),
        )
    )
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{colour}" stroke="none"/></marker>'
        for name, colour in (("plain", PLAIN), ("operator", OPERATOR))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 440" role="img"'
        ' font-family="system-ui, sans-serif" font-size="14" fill="none" stroke-width="1.8">\n'
        f"  <title>The states of a seller's transfer{f'; it is {current}' if current else ''}</title>\n"
        f"  <defs>{markers}</defs>\n"
        + "\n".join(arrows)
        + '\n  <g stroke="none">\n'
        + "\n".join(boxes)
        + "\n  </g>\n"
        + legend.replace("<text", '<text stroke="none"')
        + "\n</svg>\n"
    )
