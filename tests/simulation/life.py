"""One seed, from the first payment to the last reversal: days of trouble, and then quiet until nothing is left."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from django.db import connection

from tests.simulation import due, hosts, world
from tests.simulation.due import Due
from tests.simulation.finance import Finance
from tests.simulation.mail import Mail
from tests.simulation.people import People
from tests.simulation.profiles import HOUR
from tests.simulation.scene import Scene

KINDS = ("reversal", "transfer")
# Once nothing goes wrong any more: how many rounds of work and waiting it may take until nothing is left to do.
QUIET_ROUNDS = 150
# Longer than any row is to wait for its next attempt: the longest schedule is that of insufficient funds.
LONGEST_WAIT = 12 * HOUR
# How often an operator tries a row again before giving up.
PATIENCE = 4
# Passed on by everybody at the end of a jump, at the latest.
DRAINING_STEPS = 500


class Stuck(Exception):
    """All is quiet, and yet it does not come to an end."""


class Life:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.clock, self.scheduler, self.chance = scene.clock, scene.scheduler, scene.chance
        self.mail = Mail(scene)
        self.people = People(scene)
        self.finance = Finance(scene)
        self.processes: list[hosts.Process] = []
        self._started = 0
        self._for_a_person = 0
        self._held = due.Held()
        self._held_at = -1
        self._retried: Counter[int] = Counter()
        self._tried_together = False
        self._lets_debts_be = False

    def run(self) -> None:
        self._begin()
        for _ in range(self.scene.profile.decisions):
            self._decide()
            if self._is_over():
                break
        self._quieten()

    def _begin(self) -> None:
        scene = self.scene
        scene.simulator.set(**scene.profile.stripe)
        self.people.lend_the_platform_some_money()
        scene.world = self.scheduler.call(
            lambda: world.build(
                self.chance, scene.simulator, orders=scene.profile.orders, sellers=scene.profile.sellers
            )
        )
        self.people.plan()
        for kind in KINDS:
            for _ in range(scene.profile.processes[kind]):
                self._start(kind)
        if scene.profile.is_paid_first:
            with self._calm():
                self._settle_down()
        if scene.profile.has_debts:
            self._fall_into_debt()

    def _fall_into_debt(self) -> None:
        """The sellers have spent all, and then a part of each order is refunded: what they owe cannot be had."""
        self.people.pay_out_all()
        self.people.refund_a_part_of_all()
        self._lets_debts_be = True
        with self._calm():
            self._settle_down()
        self._lets_debts_be = False

    # --- Days of trouble ----------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """What happens next."""
        scheduler, chance, profile = self.scheduler, self.chance, self.scene.profile
        ready = scheduler.ready()
        if ready and chance.random() < 0.75:
            scheduler.go_on(chance.choice(ready))
            return
        choices: list[tuple[float, Callable[[], None]]] = [
            (profile.outages, self._outage),
            (profile.by_hand, self.people.reverse_by_hand),
            (profile.payouts, self.people.pay_out_or_sell),
            (profile.capabilities, self.people.change_a_capability),
            # A night is longest for those who do not know what became of their last call.
            (profile.jumps * (8 if self.scene.wire.is_in_doubt else 1), self._jump),
            (0.05, self.people.follow_up_on_a_refund),
            (0.02, self._stop_gracefully),
            (0.01, self.mail.resend_one),
        ]
        if self.people.plans:
            choices.append((0.4, self.people.do_next))
        if profile.disputes:
            choices.append((0.2, self.people.follow_up_on_a_dispute))
        if scheduler.idle_crews:
            choices += self._work_to_begin()
        elif not ready:
            choices.append((1.0, self._wait))
        chance.choices([act for _, act in choices], [weight for weight, _ in choices])[0]()

    def _work_to_begin(self) -> list[tuple[float, Callable[[], None]]]:
        self._replace_dead()
        choices: list[tuple[float, Callable[[], None]]] = [(1.5, self._claim_or_wait)]
        if self.mail.arrived:
            choices.append((1.5, self._take_a_letter))
        at_work = sum(process.may_work for process in self.processes)
        if at_work:
            choices.append((2.0 * at_work, self._work))
        if self.scene.profile.finance:
            choices.append((self.scene.profile.finance, self.finance.act))
        if self._for_a_person:
            choices.append((0.5, self.people.retry_one))
            if self.scene.profile.together:
                choices.append((self.scene.profile.together, self.people.retry_together))
        return choices

    def _take_a_letter(self) -> None:
        self.mail.take(self.chance.choice(self.mail.arrived))

    def _work(self) -> None:
        process = self.chance.choice([each for each in self.processes if each.may_work])
        self.scheduler.begin(hosts.work(self.scheduler, process))

    def _claim_or_wait(self) -> None:
        found = self._due()
        choices = [
            (process, watched)
            for process in self.processes
            if process.may_claim
            for watched in process.queues
            if found[watched.queue.name].now or self.chance.random() < 0.02
        ]
        if choices:
            process, watched = self.chance.choice(choices)
            self.scheduler.begin(hosts.claim(self.scheduler, process, watched))
        elif not self.scheduler.ready():
            self._wait(found)

    def _is_over(self) -> bool:
        if self.people.plans or self.mail.letters or self.scheduler.tasks or self.scene.wire.late:
            return False
        if self._for_a_person or any(process.buffered for process in self.processes):
            return False
        return not any(each.now or each.next_at for each in self._due().values())

    # --- Processes ----------------------------------------------------------------------------------------------------

    def _start(self, kind: str) -> None:
        profile = self.scene.profile
        self._started += 1
        self.processes.append(
            hosts.started(
                kind,
                self._started,
                self.scene.gateway,
                batch_size=profile.batch_size,
                has_allowance=profile.has_allowance,
                concurrency=profile.concurrency,
                skew=self.chance.uniform(-1, 1) * profile.skew,
            )
        )

    def _replace_dead(self) -> None:
        for process in list(self.processes):
            if process.is_dead or process.has_stopped:
                self.processes.remove(process)
                self._start(process.kind)

    def _stop_gracefully(self) -> None:
        process = self.chance.choice(self.processes)
        if not process.is_stopping:
            self.scene.note(f"{process.name} is asked to stop")
            self.scene.counts["graceful stops"] += 1
            process.worker.stop()

    # --- Time ---------------------------------------------------------------------------------------------------------

    def _outage(self) -> None:
        wire = self.scene.wire
        if self.clock.now >= wire.outage_until:
            self.scene.counts["outages"] += 1
            wire.begin_outage(self.chance.choice([60.0, 600.0, 4 * HOUR]) * self.chance.random())

    def _wait(self, found: dict[str, Due] | None = None) -> None:
        """Until the next thing happens: the only way in which time passes, but for jumps."""
        times = [self.scheduler.next_wake(), self.scene.wire.next_arrival(), self.scene.simulator.core.world.next_due()]
        times += [letter.arrives_at for letter in self.mail.letters]
        # The end of a lease too: while one stands still, others take its rows over.
        times += [each.next_at for each in (found or self._due()).values()]
        known = [moment for moment in times if moment is not None and moment > self.clock.now]
        self._move_to(min(known) if known else self.clock.now + 60)

    def _move_to(self, moment: float) -> None:
        """What is on its way arrives when it arrives, not at the end of a long wait."""
        wire = self.scene.wire
        while (arrival := wire.next_arrival()) is not None and arrival <= moment:
            self.clock.move_to(arrival)
            wire.deliver_late()
        self.clock.move_to(moment)

    def _jump(self) -> None:
        """Hours in which nobody works: everything was stopped or killed, and is started again afterwards."""
        if self.chance.random() < 0.5:
            for process in self.processes:
                self.scheduler.kill(process)
        for _ in range(DRAINING_STEPS):
            if not self.scheduler.tasks:
                break
            self._go_on_or_wait()
        until = self.clock.now + self.chance.choice([10 * 60, HOUR, 6 * HOUR, 30 * HOUR]) * self.chance.random()
        edge = self._edge_of_a_key() if self.chance.random() < 0.5 else None
        if edge is not None:
            until = edge
            # There the old key's last call, still on its way, could meet the first one of the new key.
            self.scene.wire.late_calls = self.chance.choice([0, 1, 2])
        self.scene.counts["jumps"] += 1
        self.scene.note(f"nobody works for {(until - self.clock.now) / HOUR:.2f} h")
        self._move_to(until)
        self._replace_dead()

    def _edge_of_a_key(self) -> float | None:
        """When some key will be 20 or 24 hours old, give or take: where other rules begin."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT extract(epoch FROM first_attempted_at)::float8 FROM (
                    SELECT first_attempted_at FROM marketplace_transferreversal WHERE status IN ('pending', 'failed')
                    UNION ALL SELECT first_attempted_at FROM marketplace_sellertransfer
                        WHERE status IN ('pending', 'failed', 'permanently_failed')
                    UNION ALL SELECT first_attempted_at FROM marketplace_refund WHERE status = 'requested'
                ) AS keys WHERE first_attempted_at IS NOT NULL ORDER BY 1
                """
            )
            used = [row[0] for row in cursor.fetchall()]
        if not used:
            return None
        edge = self.chance.choice(used) + self.chance.choice([20, 24]) * HOUR
        moment: float = edge + self.chance.choice([10, 90, 900]) * self.chance.uniform(-1, 1)
        return moment if moment > self.clock.now else None

    def _due(self) -> dict[str, Due]:
        if self._held_at != self.scheduler.writes:
            self._held = due.ask(watched.queue for process in self.processes for watched in process.queues)
            self._held_at = self.scheduler.writes
            self._for_a_person = self._held.for_a_person
        return self._held.due(self.clock.now)

    # --- Quiet --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _calm(self) -> Any:
        parts: list[Any] = [self.scene, self.scheduler, self.scene.wire]
        for part in parts:
            part.is_quiet = True
        yield
        for part in parts:
            part.is_quiet = False

    def _quieten(self) -> None:
        """Nothing goes wrong any more, everybody gets their money, people look after what asks for them."""
        self.scene.note("--- quiet ---")
        with self._calm():
            self.people.provide()
            for process in self.processes:
                process.skew = 0
            self._run_all()
            self._let_everything_arrive()
            while self.people.plans:
                self.people.do_next()
                self._run_all()
            self.people.let_all_refunds_succeed()
            if self.scene.profile.disputes:
                for _ in range(self.chance.choice([0, 1, 3])):
                    self.people.follow_up_on_a_dispute()
            self._settle_down()
            while self.people.enter_amounts():
                self._settle_down()

    def _let_everything_arrive(self) -> None:
        late = [job.at for job in self.scene.simulator.core.world.jobs.values() if job.kind == "late_effect"]
        self._move_to(max([self.clock.now, *late, *(each.arrives_at for each in self.scene.wire.late)]))

    def _settle_down(self) -> None:
        """Work and wait until nothing is left to do or to wait for."""
        for _ in range(QUIET_ROUNDS):
            self._run_all()
            while self.mail.letters:
                letter = self.chance.choice(self.mail.letters)
                if letter.attempts > QUIET_ROUNDS:
                    raise Stuck(f"{letter.event['type']} is never taken")
                self.mail.take(letter)
                self._run_all()
            self._replace_dead()
            found = self._due()
            if any(each.now for each in found.values()):
                self._work_off(found)
                continue
            is_for_a_person = self._for_a_person and not self._lets_debts_be
            if is_for_a_person and (self._retry_together() or self._retry_all()):
                continue
            times = [each.next_at for each in found.values() if each.next_at is not None]
            if any(moment > self.clock.now + LONGEST_WAIT for moment in times):
                raise Stuck(f"something waits for longer than any schedule says: {self._left()}")
            next_at_stripe = self._next_at_stripe()
            if next_at_stripe is not None:
                times.append(next_at_stripe)
            if not times:
                return
            self._move_to(min(times))
        raise Stuck(f"after {QUIET_ROUNDS} rounds: {self._left()}")

    def _next_at_stripe(self) -> float | None:
        """Jobs of Stripe's that move money; not the end of a pending reversal's patience."""
        jobs = self.scene.simulator.core.world.jobs.values()
        return min((job.at for job in jobs if job.kind != "give_up_reversal"), default=None)

    def _work_off(self, found: dict[str, Due]) -> None:
        for kind in KINDS:
            process = next(each for each in self.processes if each.kind == kind and not each.is_stopping)
            for watched in process.queues:
                if found[watched.queue.name].now:
                    self.scheduler.begin(hosts.claim(self.scheduler, process, watched))
                    self._run_all()

    def _run_all(self) -> None:
        """All tasks and everything in the processes' hands, to the end."""
        while True:
            while self.scheduler.tasks:
                self._go_on_or_wait()
            held = next((process for process in self.processes if process.may_work), None)
            if held is None:
                return
            self.scheduler.begin(hosts.work(self.scheduler, held))

    def _go_on_or_wait(self) -> None:
        ready = self.scheduler.ready()
        if ready:
            self.scheduler.go_on(ready[0])
        else:
            self._move_to(self.scheduler.next_wake() or self.clock.now)

    def _retry_all(self) -> bool:
        found = [transfer for transfer in self.people.permanently_failed() if self._retried[transfer] < PATIENCE]
        for transfer in found:
            self._retried[transfer] += 1
            self.people.retry(transfer)
            self._run_all()
        return bool(found)

    def _retry_together(self) -> bool:
        """Once, and each by itself after that."""
        if not self.scene.profile.together or self._tried_together:
            return False
        self._tried_together = True
        self.people.retry_together()
        self._run_all()
        return True

    def _left(self) -> str:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT id, status, last_error_code, next_retry_at FROM marketplace_sellertransfer
                WHERE status NOT IN ('completed', 'reversed', 'partially_reversed', 'canceled') ORDER BY id
                """
            )
            rows = [f"transfer {row[0]} {row[1]} {row[2]} due {row[3]}" for row in cursor.fetchall()]
        return "; ".join(rows) or "no transfer is left over"
