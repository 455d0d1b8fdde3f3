"""People who see to money beside the program, at random moments: debts paid by hand or written off, payments back that
are declined, attempts that somebody wants now.
"""

from collections.abc import Callable

from django.db import connection

from marketplace.services import debts, give_backs, transfers
from tests.simulation.people import answered
from tests.simulation.scene import Scene
from tests.simulation.scheduler import Host, Task


class Finance:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._requests = 0

    def act(self) -> None:
        """One of these, if there is anything to do it to."""
        self.scene.chance.choice([self._settle_a_debt, self._settle_a_debt, self._decline, self._try_now])()

    def _settle_a_debt(self) -> None:
        """All of it, a part, or too much; now and then asked for twice under one key."""
        scene, chance = self.scene, self.scene.chance
        found = _rows(
            """
            SELECT id, amount - unwanted_amount - amount_recovered - amount_written_off
            FROM marketplace_transferreversal WHERE status = 'failed' ORDER BY id
            """
        )
        if not found:
            return
        debt, left = chance.choice(found)
        amount = chance.choice([left, left, chance.randint(1, max(left, 1)), left + 1])
        settle = chance.choice([debts.pay_by_hand, debts.write_off])
        self._requests += 1
        request = debts.Request(by=scene.world.operator, key=f"debt {self._requests}")

        def run() -> str:
            entered = settle(reversal_id=debt, amount=amount, actor="finance", reason="by agreement", request=request)
            return str(entered.entry.kind) if entered.is_new else "as before"

        for _ in range(min(chance.choice([1, 1, 2]), scene.scheduler.idle_crews)):
            self._begin(f"settles {amount} of debt {debt}", run, counted={"paid", "written_off"})

    def _decline(self) -> None:
        found = _rows(
            """
            SELECT id FROM marketplace_sellertransfer
            WHERE status = 'permanently_failed' AND gives_back_of_id IS NOT NULL ORDER BY id
            """
        )
        if found:
            (transfer,) = self.scene.chance.choice(found)
            self._begin(
                f"declines transfer {transfer}",
                lambda: str(give_backs.decline(transfer_id=transfer, actor="finance", reason="agreed").status),
                counted={"canceled"},
            )

    def _try_now(self) -> None:
        found = _rows("SELECT id FROM marketplace_sellertransfer WHERE next_retry_at IS NOT NULL ORDER BY id")
        if found:
            (transfer,) = self.scene.chance.choice(found)

            def run() -> str:
                transfers.try_now(transfer_id=transfer, actor="operator", reason="wants it now")
                return "woken"

            self._begin(f"wants transfer {transfer} tried", run, counted={"woken"})

    def _begin(self, name: str, act: Callable[[], str], *, counted: set[str]) -> None:
        scene = self.scene

        def ended(task: Task) -> None:
            scene.must_not_err(task)
            scene.note(f"{name}: {task.result}")
            if task.result in counted:
                scene.counts[f"by finance: {task.result}"] += 1

        scene.scheduler.begin(Task(name, Host("web"), lambda: answered(act), ended=ended))


def _rows(sql: str) -> list[tuple[int, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())
