"""`make simulate`: many seeds, or one with all its steps, or as many as it takes to find a planted bug."""

import argparse
import os
import sys
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first one (default: 1)")
    parser.add_argument("--seed", type=int, help="this one alone, with a line for each of its steps")
    parser.add_argument("--plant", default="", help="with this bug in the program, until it is found; ? lists them")
    parser.add_argument("--processes", type=int, default=2, help="at once (default: 2)")
    parser.add_argument("--for-parent", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    _prepare()
    from tests.simulation import seeds
    from tests.simulation.planted import PLANTED

    if given.for_parent:
        seeds.serve_parent()
        return 0
    if given.plant and given.plant not in PLANTED:
        width = max(map(len, PLANTED))
        sys.stdout.write("".join(f"  {name:{width}}  {plant.what}\n" for name, plant in PLANTED.items()))
        return 0 if given.plant == "?" else 2
    if given.seed is not None:
        return _one(given.seed, given.plant)
    return _many(range(given.first, given.first + given.seeds), given.processes, given.plant)


def _prepare() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ.setdefault("TEST_DATABASE_NAME", f"test_simulation_{os.getpid()}")
    import django

    django.setup()


def _one(seed: int, plant: str) -> int:
    from tests.simulation.seeds import ready

    def say(at: float, who: str, what: str) -> None:
        sys.stdout.write(f"{_moment(at):>14}  {who:38.38}  {what}\n")

    with ready(plant or None) as rig:
        report = rig.live(seed, on_line=say)
    sys.stdout.write(f"\nSeed {seed}: {len(report.trace)} steps, {report.profile}\n")
    _tell_counts(report.counts)
    for breach in report.breaches:
        sys.stdout.write(f"  ✗ {breach}\n")
    sys.stdout.write("  ✓ every book is in order\n" if report.is_good else "")
    return 0 if report.is_good else 1


def _moment(seconds: float) -> str:
    """Days, hours, minutes and seconds since it began."""
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{f'{days:.0f}d ' if days else ''}{hours:02.0f}:{minutes:02.0f}:{int(rest * 1000) / 1000:06.3f}"


def _many(wanted: range, processes: int, plant: str) -> int:
    from tests.simulation.seeds import Told, run_apart, summed

    began, shown = time.monotonic(), 0.0
    told: list[Told] = []
    bad: list[Told] = []
    running = run_apart(wanted, processes=min(processes, len(wanted)), plant=plant or None)
    try:
        for each in running:
            told.append(each)
            if each.breaches:
                bad.append(each)
                _tell_bad(each, plant)
                if plant:
                    break
            if time.monotonic() - shown > (1 if sys.stderr.isatty() else 30):
                shown = time.monotonic()
                _tell_progress(len(told), len(wanted), len(bad), shown - began)
    finally:
        running.close()  # type: ignore[attr-defined]
    took = time.monotonic() - began
    _tell_counts(summed(told))
    sys.stdout.write(f"{len(told)} seeds in {took:.0f} s, {len(told) / took:.1f} a second: ")
    if plant:
        sys.stdout.write(f"{plant} is found by seed {bad[0].seed}\n" if bad else f"{plant} is not found\n")
        return 0 if bad else 1
    sys.stdout.write(f"{len(bad)} end with a breach\n" if bad else "every book is in order\n")
    return 1 if bad else 0


def _tell_bad(told: "object", plant: str) -> None:
    seed, breaches = told.seed, told.breaches  # type: ignore[attr-defined]
    again = f"make simulate SEED={seed}" + (f" PLANT={plant}" if plant else "")
    sys.stdout.write(f"✗ seed {seed}, again by: {again}\n" + "".join(f"    {each}\n" for each in breaches[:10]))


def _tell_progress(done: int, wanted: int, bad: int, took: float) -> None:
    line = f"{done} of {wanted} seeds, {bad} with a breach, {done / took:.1f} a second"
    sys.stderr.write(f"\r{line}  " if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()


def _tell_counts(counts: "object") -> None:
    sys.stdout.write("\nWhat happened:\n")
    for what, times in sorted(counts.items()):  # type: ignore[attr-defined]
        sys.stdout.write(f"  {times:9}  {what}\n")
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
