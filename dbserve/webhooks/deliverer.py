"""The loop that sees to every message: beside the reconciler's ticks, which it never holds up, under the same lease."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from dbserve.cancellation import end
from dbserve.contracts.webhook import Answer, Attempted, Delivery, Webhook
from dbserve.errors import DbserveError
from dbserve.failpoints import failpoint
from dbserve.store import JobStore
from dbserve.webhooks.posting import TIMEOUT_SECONDS
from dbserve.webhooks.schedule import Verdict, verdict

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
AT_A_TIME = 4  # messages to one receiver: one that hangs holds up no other, which have as many of their own
CLAIM_SECONDS = TIMEOUT_SECONDS + 20.0  # after which a message of a process that died is sent again


class Post(Protocol):
    """One attempt. What goes wrong is in the answer."""

    async def post(self, webhook: Webhook, delivery: Delivery) -> Answer: ...


class Deliverer:
    """Sends what is due, and notes what became of it, until cancelled."""

    def __init__(self, store: JobStore, poster: Post, *, claim_seconds: float = CLAIM_SECONDS) -> None:
        self._store = store
        self._poster = poster
        self._claim_seconds = claim_seconds
        self._sending: dict[asyncio.Task[None], str] = {}  # to which webhook

    async def run(self, acting: Callable[[], bool]) -> None:
        """Looks while `acting` says that it is this process that acts. What was sent when it ends is sent again."""
        try:
            while True:
                try:
                    if acting():
                        await self.look()
                except DbserveError as error:
                    log.warning("webhooks wait: %s", error)
                except Exception:  # a mistake of ours must not end what others wait for
                    log.exception("webhooks wait")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await end(*self._sending)

    async def look(self) -> None:
        """One look: what happened becomes messages, and what is due is sent; waits for no receiver."""
        webhooks = {webhook.id: webhook for webhook in await self._store.webhooks.all()}
        if not webhooks:
            return
        while await self._store.webhooks.dispatch():
            pass
        enabled = [webhook.id for webhook in webhooks.values() if webhook.disabled is None]
        claimed = await self._store.webhooks.claim(self._room(enabled), seconds=self._claim_seconds)
        for delivery in claimed:
            failpoint("webhook.claimed")
            task = asyncio.create_task(self._deliver(webhooks[delivery.webhook_id], delivery))
            self._sending[task] = delivery.webhook_id
            task.add_done_callback(self._sending.pop)

    async def settled(self) -> None:
        """Returns when nothing is being sent."""
        while self._sending:
            await asyncio.wait(list(self._sending))

    def _room(self, webhook_ids: list[str]) -> Mapping[str, int]:
        busy = Counter(self._sending.values())
        return {webhook_id: AT_A_TIME - busy[webhook_id] for webhook_id in webhook_ids}

    async def _deliver(self, webhook: Webhook, delivery: Delivery) -> None:
        try:
            answer = await self._poster.post(webhook, delivery)
        except Exception as error:  # else it would be tried every half a minute, and for ever
            log.exception("webhook %s, %s", webhook.id, delivery.event)
            answer = Answer(error=f"not sent: {type(error).__name__}")
        failpoint("webhook.answered")
        attempted, found = settlement(delivery, answer, now=time.time(), chance=random.random())  # noqa: S311
        if not answer.accepted:
            log.warning("webhook %s, %s: %s", webhook.id, delivery.event, attempted.error or f"HTTP {answer.code}")
        try:
            await self._store.webhooks.settle(delivery, attempted, found)
        except DbserveError as error:  # it is due again when its claim ends
            log.warning("webhook %s: what became of %s is not noted: %s", webhook.id, delivery.message_id, error)


def settlement(delivery: Delivery, answer: Answer, *, now: float, chance: float) -> tuple[Attempted, Verdict]:
    """An attempt as it is shown, and what follows from it."""
    attempt = delivery.attempts + 1
    found = verdict(answer, attempt=attempt, at=delivery.at, now=now, chance=chance)
    attempted = Attempted(
        at=now,
        message_id=delivery.message_id,
        event=delivery.event,
        attempt=attempt,
        code=answer.code,
        error=answer.error,
        next_try=found.next_try,
    )
    return attempted, found
