"""Webhooks on a real Redis, to a real server: what is told, and that nothing of it is lost."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis as redis_sync

from dbserve.cancellation import end
from dbserve.contracts.status import Crashed, Reason
from dbserve.contracts.webhook import Answer, Delivery, Topic, Webhook
from dbserve.errors import TooManyWebhooks, WebhookNotFound
from dbserve.failpoints import VARIABLE
from dbserve.store import JobStore, keys
from dbserve.store.webhooks import MOST_WAITING, MOST_WEBHOOKS
from dbserve.webhooks import deliverer as delivering
from dbserve.webhooks import schedule
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster
from dbserve.webhooks.schedule import Result
from tests.integration.delivering import hook, look
from tests.integration.serving import finish, start, submitted
from tests.receiver import Receiver, receiving, self_signed, signed
from tests.waiting import eventually

SECONDS = 20.0  # for whatever a test waits for


@contextlib.asynccontextmanager
async def at_work(one: Deliverer, acting: Callable[[], bool]) -> AsyncIterator[None]:
    running = asyncio.create_task(one.run(acting))
    try:
        yield
    finally:
        await end(running)


def ahead(redis_url: str, webhook_id: str = "w1") -> None:
    """Waits for no backoff: whatever is to be tried again is due now."""
    with contextlib.closing(redis_sync.Redis.from_url(redis_url, decode_responses=True)) as client:
        for message_id in client.zrange(keys.webhook_due(webhook_id), 0, -1):
            client.zadd(keys.webhook_due(webhook_id), {message_id: 0})


# --- what is told


async def test_the_life_of_a_job_is_told_to_whom_it_concerns(store: JobStore) -> None:
    with receiving() as everything, receiving() as ends:
        webhook = await hook(store, everything.url)
        await hook(store, ends.url, Topic.JOB_SUCCEEDED, name="w2")
        job_id = await submitted(store, labels={"team": "vision"})
        run = await start(store, job_id, "block-0")
        await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="gone"))
        await start(store, job_id, "block-0", attempt=2)
        await finish(store, job_id)
        await look(store)
        assert sorted(everything.topics()) == ["block.restarted", "job.succeeded"]
        assert ends.topics() == ["job.succeeded"]
        assert all(signed(sent, webhook.secret) for sent in everything.sent)
        restarted = next(sent.message for sent in everything.sent if sent.message["type"] == "block.restarted")
    told = {name: restarted["data"][name] for name in ("job_id", "task", "attempt", "reason", "message", "labels")}
    assert told == {
        "job_id": job_id,
        "task": "block-0",
        "attempt": 1,
        "reason": "worker_lost",
        "message": "gone",
        "labels": {"team": "vision"},
    }


async def test_a_cancelled_job_that_never_ran_is_told_too(store: JobStore) -> None:
    with receiving() as receiver:
        await hook(store, receiver.url)
        job_id = await submitted(store)
        await store.wishes.cancel(job_id)
        await look(store)
        assert [sent.message["data"]["reason"] for sent in receiver.sent] == ["user_cancelled"]
        assert receiver.topics() == ["job.cancelled"]


async def test_nothing_is_written_where_there_is_no_webhook(store: JobStore, redis_url: str) -> None:
    await finish(store, await submitted(store))
    with contextlib.closing(redis_sync.Redis.from_url(redis_url)) as client:
        assert not client.exists(keys.OUTBOX)


async def test_what_happened_before_a_webhook_was_made_is_not_told(store: JobStore) -> None:
    with receiving() as early, receiving() as late:
        await hook(store, early.url)
        await finish(store, await submitted(store))
        await hook(store, late.url, name="w2")
        await look(store)
        assert (early.topics(), late.topics()) == (["job.succeeded"], [])


# --- deliveries


async def test_a_message_is_repeated_under_its_id_until_it_is_accepted(store: JobStore, redis_url: str) -> None:
    with receiving(500, 404, 200) as receiver:
        webhook = await hook(store, receiver.url)
        await finish(store, await submitted(store))
        for _ in range(4):
            await look(store)
            ahead(redis_url)
        assert len({sent.id for sent in receiver.sent}) == 1
        assert len(receiver.sent) == 3
        assert all(signed(sent, webhook.secret) for sent in receiver.sent)
    waiting, attempts = await store.webhooks.attempts("w1")
    assert waiting == 0
    assert [(one.attempt, one.code) for one in attempts] == [(3, 200), (2, 404), (1, 500)]
    assert [one.next_try is None for one in attempts] == [True, False, False]
    counted = (await store.counters.read()).labelled("webhook_deliveries")
    assert counted == {Result.RETRIED: 2, Result.DELIVERED: 1}


async def test_an_attempt_that_is_not_due_is_not_made(store: JobStore) -> None:
    with receiving(503, 200, headers={"retry-after": "600"}) as receiver:
        await hook(store, receiver.url)
        await finish(store, await submitted(store))
        await look(store)
        await look(store)
        assert len(receiver.sent) == 1
    [attempt] = (await store.webhooks.attempts("w1"))[1]
    assert attempt.next_try is not None
    assert attempt.next_try - attempt.at == pytest.approx(600, abs=1)


async def test_a_receiver_that_is_gone_for_good_gets_nothing_more(store: JobStore) -> None:
    with receiving(410) as receiver:
        await hook(store, receiver.url)
        for _ in range(3):
            await finish(store, await submitted(store))
            await look(store)
        assert len(receiver.sent) == 1
    assert (await store.webhooks.get("w1")).disabled == "the receiver answered 410 Gone"
    assert (await store.webhooks.attempts("w1"))[0] == 0


async def test_a_redirect_is_not_followed(store: JobStore) -> None:
    with receiving() as elsewhere, receiving(302, headers={"location": elsewhere.url}) as receiver:
        await hook(store, receiver.url)
        await finish(store, await submitted(store))
        await look(store)
        assert elsewhere.sent == []
    [attempt] = (await store.webhooks.attempts("w1"))[1]
    assert (attempt.code, attempt.error) == (302, "redirects are not followed")


async def test_a_name_that_leads_to_a_private_address_at_delivery_is_not_connected_to(store: JobStore) -> None:
    with receiving() as receiver:
        await hook(store, receiver.url.replace("127.0.0.1", "localhost"))
        await finish(store, await submitted(store))
        await look(store, Poster(private_hosts=False))
        assert receiver.sent == []
    waiting, [attempt] = await store.webhooks.attempts("w1")
    assert waiting == 1
    assert attempt.error is not None
    assert "this machine's own" in attempt.error


async def test_a_name_is_connected_to_under_its_own_name(store: JobStore) -> None:
    with receiving() as receiver:
        await hook(store, receiver.url.replace("127.0.0.1", "localhost") + "?a=b")
        await finish(store, await submitted(store))
        await look(store)
        [sent] = receiver.sent
    assert sent.headers["host"] == f"localhost:{receiver.server.server_address[1]}"
    assert sent.path == "/hook?a=b"


async def test_a_receiver_that_hangs_holds_up_neither_the_others_nor_the_loop(store: JobStore) -> None:
    with receiving() as hangs, receiving() as answers:
        hangs.hang()
        await hook(store, hangs.url, name="w1")
        await hook(store, answers.url, name="w2")
        ended = [await submitted(store) for _ in range(delivering.AT_A_TIME + 2)]
        for job_id in ended:
            await finish(store, job_id)
        async with at_work(Deliverer(store, Poster(private_hosts=True)), lambda: True):
            await eventually(lambda: _told(answers) == len(ended), seconds=SECONDS, what="the other is told of all")
            assert len(hangs.sent) == delivering.AT_A_TIME
            hangs.released.set()
            await eventually(lambda: _told(hangs) == len(ended), seconds=SECONDS, what="the slow one too, at last")


def _told(receiver: Receiver) -> int:
    return len({sent.id for sent in receiver.sent})


async def test_a_receiver_that_does_not_answer_in_time_has_failed(store: JobStore) -> None:
    with receiving() as receiver:
        receiver.hang()
        await hook(store, receiver.url)
        await finish(store, await submitted(store))
        await look(store, Poster(private_hosts=True, timeout_seconds=0.2))
    [attempt] = (await store.webhooks.attempts("w1"))[1]
    assert (attempt.code, attempt.error) == (None, "no answer within 0.2 s")


async def test_a_reconciler_that_does_not_act_sends_nothing(store: JobStore) -> None:
    asked: list[bool] = []

    def acting() -> bool:
        asked.append(True)
        return False

    with receiving() as receiver:
        await hook(store, receiver.url)
        await finish(store, await submitted(store))
        async with at_work(Deliverer(store, Poster(private_hosts=True)), acting):
            await eventually(lambda: len(asked) >= 2, seconds=SECONDS, what="it has looked whether it acts")
        assert receiver.sent == []


@pytest.mark.parametrize("point", ["webhook.claimed", "webhook.answered"])
async def test_a_deliverer_that_is_killed_loses_nothing(
    store: JobStore, redis_url: str, tmp_path: Path, point: str
) -> None:
    marker = tmp_path / "reached"
    environment = os.environ | {VARIABLE: f"{point}={marker}"}
    with receiving() as receiver:
        await hook(store, receiver.url)
        job_ids = [await submitted(store) for _ in range(3)]
        for job_id in job_ids:
            await finish(store, job_id)
        command = [sys.executable, "-m", "tests.integration.delivering", redis_url, "1"]
        dies = await asyncio.create_subprocess_exec(*command, env=environment)
        assert await asyncio.wait_for(dies.wait(), SECONDS) == -signal.SIGKILL
        assert marker.exists()
        assert not await _settled(store)
        follows = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            await eventually(lambda: _settled(store), seconds=SECONDS, what="everything has arrived")
        finally:
            follows.kill()
            await follows.wait()
        assert {sent.message["data"]["job_id"] for sent in receiver.sent} == set(job_ids)
        assert len({sent.id for sent in receiver.sent}) == len(job_ids)


async def _settled(store: JobStore) -> bool:
    waiting, attempts = await store.webhooks.attempts("w1")
    return waiting == 0 and bool(attempts)


async def test_messages_for_a_receiver_that_is_down_are_bounded(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_WAITING == 1000
    monkeypatch.setattr("dbserve.store.webhooks.MOST_WAITING", 2)
    await hook(store, "http://127.0.0.1:9/")
    for _ in range(3):
        await finish(store, await submitted(store))
    while await store.webhooks.dispatch():
        pass
    waiting, [crowded_out] = await store.webhooks.attempts("w1")
    assert waiting == 2
    assert crowded_out.error is not None
    assert crowded_out.error.startswith("never sent")


async def test_what_was_under_way_when_its_webhook_was_deleted_leaves_nothing(store: JobStore) -> None:
    await hook(store, "http://127.0.0.1:9/")
    await finish(store, await submitted(store))
    await store.webhooks.dispatch()
    [delivery] = await store.webhooks.claim({"w1": 5}, seconds=60)
    await store.webhooks.remove("w1")
    attempted, verdict = delivering.settlement(delivery, _refused(), now=time.time(), chance=0.5)
    await store.webhooks.settle(delivery, attempted, verdict)
    assert verdict.result is Result.RETRIED
    assert await store.webhooks.attempts("w1") == (0, [])
    with pytest.raises(WebhookNotFound):
        await store.webhooks.get("w1")


async def test_a_message_given_up_after_a_day_waits_no_more(store: JobStore, redis_url: str) -> None:
    await hook(store, "http://127.0.0.1:9/")
    await finish(store, await submitted(store))
    await store.webhooks.dispatch()
    [delivery] = await store.webhooks.claim({"w1": 5}, seconds=60)
    late = delivery.at + schedule.GIVE_UP_SECONDS
    attempted, verdict = delivering.settlement(_tried(delivery, 15), _refused(), now=late, chance=0.5)
    await store.webhooks.settle(delivery, attempted, verdict)
    assert verdict.result is Result.GIVEN_UP
    waiting, [shown] = await store.webhooks.attempts("w1")
    assert (waiting, shown.attempt, shown.next_try) == (0, 16, None)
    assert await store.webhooks.claim({"w1": 5}, seconds=60) == []


def _tried(delivery: Delivery, attempts: int) -> Delivery:
    return delivery.model_copy(update={"attempts": attempts})


def _refused() -> Answer:
    return Answer(error="ConnectError: refused")


async def test_there_are_only_so_many_webhooks(store: JobStore) -> None:
    for number in range(MOST_WEBHOOKS):
        await hook(store, "https://example.com", name=f"w{number}")
    await hook(store, "https://example.com", name="w0")  # repeated, it is the same one
    with pytest.raises(TooManyWebhooks):
        await hook(store, "https://example.com", name="one-more")


async def test_an_event_that_cannot_be_read_holds_up_no_other(store: JobStore, redis_url: str) -> None:
    with receiving() as receiver:
        await hook(store, receiver.url)
        with contextlib.closing(redis_sync.Redis.from_url(redis_url)) as client:
            client.xadd(keys.OUTBOX, {"occurrence": '{"topic": "of.another.version"}'})
        await finish(store, await submitted(store))
        await look(store)
        assert receiver.topics() == ["job.succeeded"]


async def test_a_webhook_that_asks_for_what_only_a_newer_version_tells_is_told_the_rest(
    store: JobStore, redis_url: str
) -> None:
    with receiving() as receiver:
        await hook(store, receiver.url, Topic.JOB_SUCCEEDED)
        with contextlib.closing(redis_sync.Redis.from_url(redis_url, decode_responses=True)) as client:
            written = str(client.hget(keys.WEBHOOKS, "w1"))
            client.hset(keys.WEBHOOKS, "w1", written.replace('"events":[', '"events":["job.exploded",'))
            assert "job.exploded" in str(client.hget(keys.WEBHOOKS, "w1"))
        await finish(store, await submitted(store))
        await look(store)
        assert receiver.topics() == ["job.succeeded"]
    assert [webhook.events for webhook in await store.webhooks.all()] == [(Topic.JOB_SUCCEEDED,)]
    assert (await store.webhooks.get("w1")).events == (Topic.JOB_SUCCEEDED,)


async def test_a_message_that_we_cannot_send_is_an_attempt_as_any_other(store: JobStore) -> None:
    class Broken:
        async def post(self, webhook: Webhook, delivery: Delivery) -> Answer:
            raise RuntimeError("a mistake of ours")

    await hook(store, "http://127.0.0.1:9/")
    await finish(store, await submitted(store))
    one = Deliverer(store, Broken())
    await one.look()
    await one.settled()
    waiting, [attempt] = await store.webhooks.attempts("w1")
    assert (waiting, attempt.error, attempt.next_try is None) == (1, "not sent: RuntimeError", False)


@pytest.mark.parametrize(("named", "accepted"), [("localhost", True), ("another.example", False)])
async def test_a_certificate_must_be_the_names_though_its_address_is_connected_to(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, accepted: bool
) -> None:
    certificate, key = self_signed(named, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiving(tls=(certificate, key)) as receiver:
        await hook(store, receiver.url.replace("127.0.0.1", "localhost"))
        await finish(store, await submitted(store))
        await look(store)
        assert bool(receiver.sent) is accepted
    [attempt] = (await store.webhooks.attempts("w1"))[1]
    assert accepted or "certificate" in str(attempt.error)
