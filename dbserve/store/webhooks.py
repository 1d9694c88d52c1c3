"""Webhooks, and their messages from the outbox until they have arrived or are given up."""

import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.webhook import Attempted, Delivery, Occurrence, Topic, Webhook
from dbserve.errors import TooManyWebhooks, WebhookNotFound
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.connection import reaching_redis, transaction
from dbserve.store.counters import WEBHOOK_DELIVERIES, count
from dbserve.store.history import Entry
from dbserve.store.scripts import CLAIM_DELIVERIES
from dbserve.webhooks.schedule import Result, Verdict
from dbserve.webhooks.signing import delivery_of

log = logging.getLogger(__name__)

MOST_WEBHOOKS = 50  # of one project
MOST_WAITING = 1000  # messages of one webhook: to a receiver that is down for long, later ones are not kept
ATTEMPTS_KEPT = 50  # of one webhook
AT_ONCE = 100  # occurrences taken out of the outbox in one transaction

_TOPICS = frozenset(topic.value for topic in Topic)


class Webhooks:
    """Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(CLAIM_DELIVERIES)

    async def add(self, webhook: Webhook) -> None:
        """Harmless to repeat. Raises TooManyWebhooks."""

        async def attempt(pipe: Pipeline) -> None:
            known = _parsed(await cast(Awaitable[list[str]], pipe.hvals(keys.WEBHOOKS)))
            others = [other for other in known if other.project == webhook.project and other.id != webhook.id]
            if len(others) >= MOST_WEBHOOKS:
                raise TooManyWebhooks(f"there are {len(others)} webhooks, and may be {MOST_WEBHOOKS}")
            pipe.multi()
            pipe.hset(keys.WEBHOOKS, webhook.id, brief(webhook))
            pipe.sadd(keys.WEBHOOK_IDS, webhook.id)
            await pipe.execute()

        await transaction(self._redis, [keys.WEBHOOKS], attempt)

    async def all(self) -> list[Webhook]:
        """Of every project, oldest first."""
        async with reaching_redis():
            raws = await cast(Awaitable[list[str]], self._redis.hvals(keys.WEBHOOKS))
        return _parsed(raws)

    async def get(self, webhook_id: str) -> Webhook:
        """Raises WebhookNotFound."""
        async with reaching_redis():
            raw = await cast(Awaitable[str | None], self._redis.hget(keys.WEBHOOKS, webhook_id))
        if raw is None:
            raise WebhookNotFound(webhook_id)
        return _webhook(raw)

    async def attempts(self, webhook_id: str) -> tuple[int, list[Attempted]]:
        """How many messages are on their way, and the last attempts, newest first."""
        async with reaching_redis(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hlen(keys.webhook_pending(webhook_id))
            pipe.lrange(keys.webhook_attempts(webhook_id), 0, -1)
            waiting, raws = cast(tuple[int, list[str]], await pipe.execute())
        return waiting, [Attempted.model_validate_json(raw) for raw in raws]

    async def remove(self, webhook_id: str) -> None:
        """With everything that was on its way. Raises WebhookNotFound."""
        async with reaching_redis("write"), self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(keys.WEBHOOKS, webhook_id)
            pipe.srem(keys.WEBHOOK_IDS, webhook_id)
            pipe.delete(*_of(webhook_id))
            removed = cast(list[int], await pipe.execute())[0]
        if not removed:
            raise WebhookNotFound(webhook_id)

    async def dispatch(self) -> bool:
        """Takes occurrences out of the outbox and makes of each a message to every webhook that asked for it.

        In one transaction: whoever dies here leaves both or neither. True: there may be more.
        """

        async def attempt(pipe: Pipeline) -> bool:
            entries = cast(Sequence[Entry], await pipe.xrange(keys.OUTBOX, "-", "+", count=AT_ONCE))
            if not entries:
                return False
            webhooks = [
                webhook
                for webhook in _parsed(await cast(Awaitable[list[str]], pipe.hvals(keys.WEBHOOKS)))
                if webhook.disabled is None
            ]
            room = {
                webhook.id: MOST_WAITING - await pipe.hlen(keys.webhook_pending(webhook.id)) for webhook in webhooks
            }
            pipe.multi()
            for entry_id, fields in entries:
                occurrence = _occurrence(fields)
                for webhook in webhooks:
                    if occurrence is None or not _wants(webhook, occurrence):
                        continue
                    delivery = delivery_of(occurrence, webhook.id, _message_id(entry_id))
                    if room[webhook.id] > 0:
                        room[webhook.id] -= 1
                        _put(pipe, delivery, due=occurrence.at)
                    else:
                        _write_attempt(pipe, delivery, _crowded_out(delivery), Result.DROPPED)
                pipe.xdel(keys.OUTBOX, entry_id)
            await pipe.execute()
            return len(entries) == AT_ONCE

        # The outbox is watched by nobody: entries only leave it here, and what is added meanwhile comes later.
        return await transaction(self._redis, [keys.WEBHOOKS], attempt)

    async def claim(self, room: Mapping[str, int], *, seconds: float) -> list[Delivery]:
        """Messages that are due, of each webhook at most as many as it has room for.

        They are due again `seconds` later, unless they are settled: so a death in between loses nothing.
        """
        asked = {webhook_id: count for webhook_id, count in room.items() if count > 0}
        if not asked:
            return []
        names = [name for webhook_id in asked for name in _of(webhook_id)[:2]]
        async with reaching_redis("write"):
            raws = cast(list[str], await self._claim(keys=names, args=[seconds, *asked.values()]))
        return [Delivery.model_validate_json(raw) for raw in raws]

    async def settle(self, delivery: Delivery, attempted: Attempted, verdict: Verdict) -> None:
        """Notes an attempt and what follows from it; nothing where the webhook was deleted meanwhile."""

        async def attempt(pipe: Pipeline) -> None:
            webhook_id, message_id = delivery.webhook_id, delivery.message_id
            raw = await cast(Awaitable[str | None], pipe.hget(keys.WEBHOOKS, webhook_id))
            if raw is None:
                return
            waits = await pipe.hexists(keys.webhook_pending(webhook_id), message_id)
            pipe.multi()
            if verdict.result is Result.GONE:
                disabled = _webhook(raw).model_copy(update={"disabled": "the receiver answered 410 Gone"})
                pipe.hset(keys.WEBHOOKS, webhook_id, brief(disabled))
                pipe.delete(*_of(webhook_id)[:2])
            elif verdict.next_try is None:
                pipe.hdel(keys.webhook_pending(webhook_id), message_id)
                pipe.zrem(keys.webhook_due(webhook_id), message_id)
            elif waits:  # else another process has settled it: this one was slower than its claim
                _put(pipe, delivery.model_copy(update={"attempts": attempted.attempt}), due=verdict.next_try)
            _write_attempt(pipe, delivery, attempted, verdict.result)
            await pipe.execute()

        await transaction(self._redis, [keys.WEBHOOKS], attempt)


def _of(webhook_id: str) -> tuple[str, str, str]:
    return keys.webhook_due(webhook_id), keys.webhook_pending(webhook_id), keys.webhook_attempts(webhook_id)


def _parsed(raws: Sequence[str]) -> list[Webhook]:
    return sorted(map(_webhook, raws), key=lambda webhook: (webhook.created_at, webhook.id))


def _webhook(raw: str) -> Webhook:
    """Without the topics that a newer version wrote and this one does not know: the others are told as before."""
    stored: dict[str, Any] = json.loads(raw)
    known = [topic for topic in stored["events"] if topic in _TOPICS]
    return Webhook.model_validate_json(json.dumps({**stored, "events": known}))


def _occurrence(fields: Mapping[str, str]) -> Occurrence | None:
    """None for what a version of another time wrote, and this one cannot read."""
    try:
        return Occurrence.model_validate_json(fields["occurrence"])
    except ValidationError as invalid:
        log.warning("an event that is not understood is told to no webhook: %s", invalid)
        return None


def _wants(webhook: Webhook, occurrence: Occurrence) -> bool:
    """What happened before a webhook was made, or in another project, is not its business."""
    ours = occurrence.project == webhook.project
    return ours and occurrence.topic in webhook.events and occurrence.at >= webhook.created_at


def _message_id(entry_id: str) -> str:
    """Of what happened, so the same for every receiver and at every attempt."""
    return "msg_" + entry_id.replace("-", "_")


def _put(pipe: Pipeline, delivery: Delivery, *, due: float) -> None:
    pipe.hset(keys.webhook_pending(delivery.webhook_id), delivery.message_id, brief(delivery))
    pipe.zadd(keys.webhook_due(delivery.webhook_id), {delivery.message_id: due})


def _crowded_out(delivery: Delivery) -> Attempted:
    return Attempted(
        at=delivery.at,
        message_id=delivery.message_id,
        event=delivery.event,
        attempt=0,
        error=f"never sent: {MOST_WAITING} earlier messages still wait for this receiver",
    )


def _write_attempt(pipe: Pipeline, delivery: Delivery, attempted: Attempted, result: Result) -> None:
    name = keys.webhook_attempts(delivery.webhook_id)
    pipe.lpush(name, brief(attempted))
    pipe.ltrim(name, 0, ATTEMPTS_KEPT - 1)
    count(pipe, WEBHOOK_DELIVERIES, result)
