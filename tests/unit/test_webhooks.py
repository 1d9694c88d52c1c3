"""What webhooks are told, under which signature, how often, and where they may lead: the pure parts."""

import base64
import hashlib
import hmac
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dbserve.contracts.status import (
    CancelRequested,
    Checkpointed,
    CheckpointFailed,
    CheckpointRef,
    Crashed,
    Finished,
    Held,
    Intent,
    JobStatus,
    Launched,
    LostCheckpoint,
    Reason,
    Restored,
    Run,
    Started,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.contracts.webhook import Answer, NewWebhook, Occurrence, Topic, Webhook
from dbserve.contracts.work import CheckpointStage
from dbserve.errors import AddressRefused
from dbserve.lifecycle import advance, new_tasks
from dbserve.store.jobs import new_record
from dbserve.webhooks import schedule
from dbserve.webhooks.addresses import refusal, target_of
from dbserve.webhooks.deliverer import settlement
from dbserve.webhooks.occurrences import occurrences
from dbserve.webhooks.schedule import Result, retry_after_seconds, verdict, wait_seconds
from dbserve.webhooks.signing import delivery_of, headers, new_secret, signature
from tests.jobs import small_plan, small_spec

NOW = 1_800_000_000.0
SPEC = small_spec(labels={"team": "vision"})
RECORD = new_record("j1", SPEC, small_plan(SPEC), owner="", now=NOW)
TASKS = {task.run.task: task for task in new_tasks("j1", small_plan(SPEC), SPEC, now=NOW)}
BLOCK = Run(job_id="j1", task="block-1", attempt=1)


# --- signatures


def test_a_signature_is_the_one_of_the_standard_webhooks_specification() -> None:
    found = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        '{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="  # of the reference libraries' own tests


def test_a_message_carries_a_signature_of_its_id_its_time_and_its_very_bytes() -> None:
    webhook = a_webhook(secret=new_secret())
    delivery = delivery_of(an_occurrence(), webhook.id, "msg_1_0")
    sent = headers(webhook, delivery, now=NOW + 0.7)
    key = base64.b64decode(webhook.secret.removeprefix("whsec_"))
    signed = f"msg_1_0.{int(NOW)}.{delivery.body}".encode()
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert (sent["webhook-id"], sent["webhook-timestamp"]) == ("msg_1_0", str(int(NOW)))
    assert sent["webhook-signature"] == f"v1,{expected}"


def test_the_documented_verification_accepts_our_messages_and_no_others() -> None:
    page = Path(__file__).parents[2] / "docs" / "webhooks.md"
    [example] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(example, scope)  # the very text that users copy
    verify = scope["verify"]
    assert callable(verify)
    webhook = a_webhook(secret=new_secret())
    delivery = delivery_of(an_occurrence(), webhook.id, "msg_1_0")
    sent, body = dict(headers(webhook, delivery, now=NOW)), delivery.body.encode()
    assert verify(webhook.secret, sent, body, now=NOW)
    assert not verify(webhook.secret, sent, body + b" ", now=NOW)
    assert not verify(new_secret(), sent, body, now=NOW)
    assert not verify(webhook.secret, {**sent, "webhook-id": "msg_1_1"}, body, now=NOW)
    assert not verify(webhook.secret, sent, body, now=NOW + 3600)  # replayed


@pytest.mark.parametrize("secret", ["", "hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!!", f"whsec_{'A' * 88}"])
def test_a_secret_that_is_no_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValidationError) as refused:
        NewWebhook.model_validate({"url": "https://example.com", "secret": secret})
    told = str(refused.value.errors(include_url=False, include_input=False, include_context=False))
    assert not secret.removeprefix("whsec_") or secret.removeprefix("whsec_") not in told


def test_a_secret_is_shown_by_no_repr() -> None:
    webhook = a_webhook(secret=new_secret())
    assert webhook.secret not in repr(webhook)


# --- when a message is tried again


def total_wait(chances: list[float]) -> tuple[int, float]:
    """How many attempts at a receiver that never answers well, and seconds from the first to the last."""
    now, attempt = NOW, 1
    for chance in chances:
        found = verdict(Answer(code=500), attempt=attempt, at=NOW, now=now, chance=chance)
        if found.next_try is None:
            return attempt, now - NOW
        attempt, now = attempt + 1, found.next_try
    raise AssertionError("never given up")


@given(st.randoms(use_true_random=False))
def test_a_dead_receiver_is_tried_over_about_a_day_and_then_given_up(draw: random.Random) -> None:
    attempts, seconds = total_wait([draw.random() for _ in range(40)])
    assert 14 <= attempts <= 18
    assert 20 * 3600 <= seconds <= 24 * 3600


@given(attempt=st.integers(1, 1000), chance=st.floats(0, 1, exclude_max=True))
def test_waits_grow_and_stay_near_their_middle(attempt: int, chance: float) -> None:
    middle = wait_seconds(attempt, 0.5)
    assert abs(wait_seconds(attempt, chance) - middle) <= schedule.JITTER * middle * 1.0001
    assert middle <= wait_seconds(attempt + 1, 0.5) <= schedule.LONGEST_WAIT_SECONDS


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (Answer(code=200), Result.DELIVERED),
        (Answer(code=204), Result.DELIVERED),
        (Answer(code=302), Result.RETRIED),  # not followed
        (Answer(code=400), Result.RETRIED),  # a receiver that is wrong may be mended
        (Answer(code=404), Result.RETRIED),
        (Answer(code=408), Result.RETRIED),
        (Answer(code=410), Result.GONE),
        (Answer(code=429), Result.RETRIED),
        (Answer(code=500), Result.RETRIED),
        (Answer(error="no answer within 10 s"), Result.RETRIED),
    ],
)
def test_what_follows_from_an_answer(answer: Answer, result: Result) -> None:
    assert verdict(answer, attempt=1, at=NOW, now=NOW, chance=0.5).result is result


@pytest.mark.parametrize(
    ("asked", "waited"),
    [(600.0, 600.0), (0.0, 5.0), (1e9, schedule.LONGEST_WAIT_SECONDS)],
    ids=["honoured", "never sooner than ours", "within reason"],
)
def test_a_receiver_may_ask_for_more_time(asked: float, waited: float) -> None:
    found = verdict(Answer(code=503, retry_after=asked), attempt=1, at=NOW, now=NOW, chance=0.5)
    assert found.next_try == NOW + waited


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),  # over
        ("soon", None),
        ("-5", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, now=NOW) == seconds


def test_an_attempt_says_when_the_next_one_is() -> None:
    delivery = delivery_of(an_occurrence(), "w1", "msg_1_0").model_copy(update={"attempts": 2})
    attempted, found = settlement(delivery, Answer(code=500), now=NOW, chance=0.5)
    assert (attempted.attempt, attempted.code, attempted.next_try) == (3, 500, found.next_try)
    assert found.next_try == NOW + 45.0


# --- what deserves to be told


def moved(task: Task, *events: TaskEvent) -> Task:
    for event in events:
        task = advance(task, event)
    return task


LAUNCHED = Launched(run=BLOCK, cluster="c")
STARTED = Started(run=BLOCK, node="n", pid=1)
RUNNING = moved(TASKS["block-1"], LAUNCHED, STARTED)
LAST_CHANCE = RUNNING.model_copy(update={"crashes": 2})
REF = CheckpointRef(step=5, path="p", sha256="s", attempt=1, at=NOW)
LOST = LostCheckpoint(step=5, path="p", message="3 bytes of 4")
FAILED_SAVE = CheckpointFailed(run=BLOCK, step=10, message="no space")


@pytest.mark.parametrize(
    ("before", "event", "topics"),
    [
        (TASKS["block-1"], LAUNCHED, []),
        (moved(TASKS["block-1"], LAUNCHED), STARTED, []),
        (RUNNING, Crashed(run=BLOCK, reason=Reason.WORKER_LOST, message="gone"), [Topic.BLOCK_RESTARTED]),
        (RUNNING, Crashed(run=BLOCK, reason=Reason.PREEMPTED, message="SIGTERM"), [Topic.BLOCK_RESTARTED]),
        (LAST_CHANCE, Crashed(run=BLOCK, reason=Reason.WORKER_LOST, message="gone"), [Topic.BLOCK_FAILED]),
        (RUNNING, Crashed(run=BLOCK, reason=Reason.NONFINITE_LOSS, message="NaN"), [Topic.BLOCK_FAILED]),
        (
            TASKS["block-1"],
            Held(run=BLOCK, reason=Reason.UNSCHEDULABLE, message="needs 9 GPUs"),
            [Topic.BLOCK_UNSCHEDULABLE],
        ),
        (RUNNING, Checkpointed(run=BLOCK, checkpoint=REF, keep_last=2), []),
        (RUNNING, FAILED_SAVE, [Topic.CHECKPOINT_FAILED]),
        (moved(RUNNING, FAILED_SAVE), FAILED_SAVE.model_copy(update={"step": 15}), []),  # it is still full
        (RUNNING, Restored(run=BLOCK, step=5), []),
        (RUNNING, Restored(run=BLOCK, step=0, lost=(LOST,)), [Topic.CHECKPOINT_FAILED]),
        (RUNNING, Finished(run=BLOCK), []),
        (RUNNING, CancelRequested(run=BLOCK, stop_by=NOW), []),
    ],
)
def test_what_of_a_tasks_events_is_told(before: Task, event: TaskEvent, topics: list[Topic]) -> None:
    after = advance(before, event)
    told = [
        *occurrences(RECORD, TASKS | {"block-1": before}, TASKS | {"block-1": after}, Intent.RUN, at=9, event=event)
    ]
    assert [one.topic for one in told] == topics
    for one in told:
        assert (one.job_id, one.task, one.attempt, one.labels) == ("j1", "block-1", 1, {"team": "vision"})
        assert one.reason is not None
        assert one.message


@pytest.mark.parametrize(
    ("last", "intent", "topic", "status"),
    [
        (TaskState.SUCCEEDED, Intent.RUN, Topic.JOB_SUCCEEDED, JobStatus.SUCCEEDED),
        (TaskState.FAILED, Intent.RUN, Topic.JOB_FAILED, JobStatus.FAILED),
        (TaskState.CANCELLED, Intent.CANCEL, Topic.JOB_CANCELLED, JobStatus.CANCELLED),
    ],
)
def test_the_end_of_a_job_is_told_once(last: TaskState, intent: Intent, topic: Topic, status: JobStatus) -> None:
    before = {name: task.model_copy(update={"state": TaskState.SUCCEEDED}) for name, task in TASKS.items()}
    before["evaluation"] = before["evaluation"].model_copy(update={"state": TaskState.RUNNING})
    ended = before["evaluation"].model_copy(update={"state": last, "reason": Reason.DATA_ERROR, "message": "why"})
    after = before | {"evaluation": ended}
    [told] = occurrences(RECORD, before, after, intent, at=9)
    assert (told.topic, told.job_status, told.task) == (topic, status, None)
    assert (told.message is None) == (topic is Topic.JOB_SUCCEEDED)
    assert list(occurrences(RECORD, after, after, intent, at=9)) == []


def test_a_lost_checkpoint_says_which_and_that_it_was_being_read() -> None:
    event = Restored(run=BLOCK, step=0, lost=(LOST,))
    after = TASKS | {"block-1": advance(RUNNING, event)}
    [told] = occurrences(RECORD, TASKS | {"block-1": RUNNING}, after, Intent.RUN, at=9, event=event)
    assert (told.step, told.stage, told.message) == (5, CheckpointStage.RESTORE, "3 bytes of 4")


# --- where messages may go

ONLY_PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "240.0.0.1",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.2.1",
    "::1",
    "fc00::1",
    "fec0::1",
    "64:ff9b:1::a00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::7f00:1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:53aa:64c:0:0:80ff:fffe",
]
NEVER = [
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "::ffff:192.0.0.192",
    "fd00:42::42",
    "fd00:c1::a9fe:a9fe",
    "fd00:ec2::23",
    "fd00:ec2::254",
    "fd20:ce::254",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "224.0.0.1",
    "ff02::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808", "168.63.129.17"]


@pytest.mark.parametrize(
    ("address", "anywhere", "at_home"),
    [(one, False, True) for one in ONLY_PRIVATE]
    + [(one, False, False) for one in NEVER]
    + [(one, True, True) for one in PUBLIC],
)
def test_which_addresses_are_sent_to(address: str, anywhere: bool, at_home: bool) -> None:
    assert (refusal(address, private_hosts=False) is None) is anywhere
    assert (refusal(address, private_hosts=True) is None) is at_home


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "file:///etc/passwd",
        "example.com/hook",
        "http://",
        "http://user:secret-word@example.com",
        "https://token@example.com",
        "http://example.com:99999/",
        "http://example.com/\n",
        "gopher://example.com:6379/_FLUSHALL",
        "https://" + "a" * 3000,
    ],
)
def test_a_url_that_cannot_be_sent_to_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        target_of(url)
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com/hook?a=b", "example.com", 443),
        ("http://example.com:81", "example.com", 81),
        ("https://exämple.com/", "xn--exmple-cua.com", 443),
        ("http://[2001:db8::1]:8080/x", "2001:db8::1", 8080),
    ],
)
def test_a_url_names_its_host_and_port(url: str, host: str, port: int) -> None:
    target = target_of(url)
    assert (target.host, target.port) == (host, port)


def a_webhook(secret: str) -> Webhook:
    return Webhook(id="w1", url="https://example.com/hook", events=tuple(Topic), secret=secret, created_at=NOW)


def an_occurrence() -> Occurrence:
    return Occurrence(topic=Topic.JOB_SUCCEEDED, at=NOW, job_id="j1", job_name="näme", job_status=JobStatus.SUCCEEDED)
