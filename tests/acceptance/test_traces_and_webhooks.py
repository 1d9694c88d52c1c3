"""A job on a running service: one trace from its submission to its report, and a signed word of its end."""

from collections.abc import Iterator

import httpx
import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus
from dbserve.contracts.views import JobView
from dbserve.contracts.webhook import Topic
from dbserve.webhooks.signing import signature
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job
from tests.collector import Collector, Span
from tests.receiver import Receiver, receiving
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving(500, 200) as opened:  # the ping is not accepted, what follows is
        yield opened


@pytest.fixture(scope="module")
def secret(service: Service, receiver: Receiver) -> Iterator[str]:
    with service.client() as client:
        made = client.webhooks.create(receiver.url, events=[Topic.JOB_SUCCEEDED])
        assert client.webhooks.test(made.id).code == 500
        yield made.secret
        client.webhooks.delete(made.id)


@pytest.fixture(scope="module")
def job(service: Service, secret: str) -> JobView:
    """One that has succeeded, submitted by a caller that traces."""
    spec: JobSpec = digits_job(name="traced")
    accepted = httpx.post(
        f"{service.url}/v1/jobs",
        content=spec.model_dump_json(),
        headers={"content-type": "application/json", "traceparent": CALLER},
        timeout=60.0,
    )
    assert accepted.status_code == 202, accepted.text
    with service.client() as client:
        ended = client.wait(accepted.json()["id"], timeout=240)
    assert ended.status is JobStatus.SUCCEEDED, ended.message
    return ended


def test_the_end_of_a_job_is_told_signed_to_its_receiver(
    client: Client, job: JobView, receiver: Receiver, secret: str
) -> None:
    wait_for(lambda: "job.succeeded" in receiver.topics(), seconds=60, what="the receiver is told")
    [sent] = [sent for sent in receiver.sent if sent.message["type"] == "job.succeeded"]
    assert sent.message["data"]["job_id"] == job.id
    assert sent.message["data"]["job_status"] == "succeeded"
    expected = signature(secret, sent.id, int(sent.headers["webhook-timestamp"]), sent.body.decode())
    assert sent.headers["webhook-signature"] == expected
    [webhook] = client.webhooks.all()
    wait_for(lambda: bool(client.webhooks.show(webhook.id).deliveries), seconds=30, what="the delivery is noted")
    shown = client.webhooks.show(webhook.id)
    assert (shown.waiting, [one.code for one in shown.deliveries]) == (0, [200])


def test_a_job_is_one_trace_from_its_submission_to_its_report(job: JobView, collector: Collector) -> None:
    names = {"POST /v1/jobs", "launch", "train", "save checkpoint", "assemble", "evaluate"}
    wait_for(
        lambda: {span.name for span in collector.of_job(job.id)} == names and _named(collector, job, "launch", 4),
        seconds=30,
        what="every span has arrived",
    )
    spans = collector.of_job(job.id)
    by_id = {span.id: span for span in spans}
    assert {span.trace_id for span in spans} == {CALLER.split("-")[1]}
    parents = {
        "POST /v1/jobs": {CALLER.split("-")[2]},
        "launch": {"POST /v1/jobs"},
        "train": {"launch"},
        "save checkpoint": {"train"},
        "assemble": {"launch"},
        "evaluate": {"launch"},
    }
    found: dict[str, set[str]] = {}
    for span in spans:
        parent = by_id.get(span.parent)
        found.setdefault(span.name, set()).add(parent.name if parent else span.parent)
    assert found == parents
    assert {span.service for span in spans} == {"dbserve-api", "dbserve-reconciler", "dbserve-worker"}
    assert not [span for span in spans if span.failed]


def test_the_spans_of_an_attempt_say_whose_it_is_and_how_it_ended(job: JobView, collector: Collector) -> None:
    wait_for(lambda: _named(collector, job, "train", 2), seconds=30, what="both trainings have been told of")
    trainings = [span for span in collector.of_job(job.id) if span.name == "train"]
    assert {span.attributes["dbserve.task"] for span in trainings} == {"block-0", "block-1"}
    for span in trainings:
        assert span.attributes["dbserve.attempt"] == 1
        assert span.attributes["dbserve.outcome"] == "succeeded"
        assert span.attributes["dbserve.node"]
        saves = [one for one in collector.of_job(job.id) if one.parent == span.id]
        assert sorted(save.attributes["dbserve.step"] for save in saves) == [20, 40, 60]


def _named(collector: Collector, job: JobView, name: str, count: int) -> bool:
    found: list[Span] = [span for span in collector.of_job(job.id) if span.name == name]
    return len(found) == count
