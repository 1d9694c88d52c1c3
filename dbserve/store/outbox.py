"""What webhooks are to be told of, written by the very transaction that makes it true."""

from collections.abc import Mapping

from redis.asyncio.client import Pipeline

from dbserve.contracts.status import Intent, Task, TaskEvent
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.connection import Seen
from dbserve.webhooks.occurrences import occurrences

OUTBOX_KEPT = 10_000  # while no reconciler takes them out


def announce(
    pipe: Pipeline, seen: Seen, changed: Mapping[str, Task], intent: Intent, event: TaskEvent | None = None
) -> None:
    """Adds to the transaction what of the change webhooks are told of; nothing where there is no webhook."""
    if not seen.has_webhooks:
        return
    after = seen.tasks | dict(changed)
    for occurrence in occurrences(seen.record, seen.tasks, after, intent, at=seen.now, event=event):
        pipe.xadd(keys.OUTBOX, {"occurrence": brief(occurrence)}, maxlen=OUTBOX_KEPT)
