"""The client: what it sends again, what it raises, how it takes a stream up again. No sockets: a transport by hand."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from dbserve import client as client_module
from dbserve.api.views import event_view, job_summary, job_view
from dbserve.client import (
    ApiError,
    Client,
    Conflict,
    Forbidden,
    NotFound,
    Refused,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from dbserve.contracts.status import JobStatus, LoggedEvent, TaskState
from dbserve.contracts.views import Page, Problem
from dbserve.errors import ConfigInvalid, ServerUnreachable
from tests.jobs import small_spec
from tests.snapshots import every_task, snapshot

Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_SECONDS", 0.0)


class Server:
    """Gives one prepared answer a request, and remembers the requests. An exception as an answer is raised."""

    def __init__(self, *answers: httpx.Response | Exception | Answer) -> None:
        self._answers = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def client(self, api_key: str | None = None) -> Client:
        return Client("http://server", api_key, transport=httpx.MockTransport(self))


def test_a_job_whose_labels_only_an_earlier_version_took_can_be_read() -> None:
    spec = small_spec()
    resources = spec.resources.model_copy(update={"node_labels": {"a/b/c": "x"}})
    shown = job_view(
        snapshot(spec.model_copy(update={"resources": resources}), **every_task(spec, state=TaskState.PENDING))
    )
    answer = httpx.Response(200, content=shown.model_dump_json())
    assert Server(answer).client().job("j").spec.resources.node_labels == {"a/b/c": "x"}


def problem(status: int, code: str = "some_code") -> httpx.Response:
    body = Problem(
        type="t", title="T", status=status, detail="what is wrong", instance="/", code=code, request_id="r",
        errors=({"pointer": "/training/lr", "code": "c", "message": "m"},),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return httpx.Response(status, json=body.model_dump())


def a_job(**tasks: dict[str, object]) -> httpx.Response:
    return httpx.Response(200, content=job_view(snapshot(**tasks)).model_dump_json())


AWAY = httpx.ConnectError("[Errno 111] Connection refused")
KINDS = {404: NotFound, 410: NotFound, 409: Conflict, 503: Unavailable, 500: ApiError} | dict.fromkeys(
    (408, 413, 415, 422), Refused
)
KINDS |= {401: Unauthenticated, 403: Forbidden, 429: TooMany}


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
def test_a_refusal_is_raised_as_its_kind_with_code_and_pointers(status: int, kind: type[ApiError]) -> None:
    with Server(problem(status)).client() as client, pytest.raises(kind, match="what is wrong") as refused:
        client.job("j1")
    assert (refused.value.status, refused.value.code) == (status, "some_code")
    assert [fault.pointer for fault in refused.value.faults] == ["/training/lr"]


def test_a_client_that_comes_too_often_learns_when_to_come_back() -> None:
    answer = problem(429, "rate_limited")
    answer.headers["Retry-After"] = "7"
    with Server(answer).client() as client, pytest.raises(TooMany) as refused:
        client.job("j1")
    assert (refused.value.code, refused.value.retry_after) == ("rate_limited", 7.0)


def test_key_and_project_go_with_every_request() -> None:
    server = Server(a_job(), a_job())
    with Client("http://server", "k", project="red", transport=httpx.MockTransport(server)) as client:
        client.job("j1")
    with server.client() as client:
        client.job("j1")
    named, other = (request.headers for request in server.requests)
    assert (named["authorization"], named["x-dbserve-project"]) == ("Bearer k", "red")
    assert "x-dbserve-project" not in other


def test_a_submission_is_sent_again_under_the_same_key() -> None:
    server = Server(AWAY, httpx.ReadTimeout("slow"), a_job())
    with server.client() as client:
        assert client.submit(small_spec()).id == "j1"
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 3
    assert len(keys) == 1
    assert json.loads(server.requests[-1].content) == small_spec().model_dump(mode="json")


def test_every_submission_has_its_own_key_unless_one_is_given() -> None:
    server = Server(a_job(), a_job(), a_job())
    with server.client() as client:
        for key in (None, None, "mine"):
            client.submit(small_spec(), key)
    first, second, third = (request.headers["idempotency-key"] for request in server.requests)
    assert first != second
    assert third == "mine"


def test_a_deletion_is_sent_once() -> None:
    server = Server(httpx.ReadTimeout("slow"))
    with server.client() as client, pytest.raises(ServerUnreachable):
        client.delete("j1")
    assert len(server.requests) == 1


def test_a_server_that_stays_away_is_named() -> None:
    with Server(AWAY, AWAY, AWAY).client() as client, pytest.raises(ServerUnreachable, match=r"http://server.*refused"):
        client.job("j1")


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(502, text="Bad Gateway")])
def test_another_program_at_the_address_is_not_taken_for_dbserve(answer: httpx.Response) -> None:
    with Server(answer).client() as client, pytest.raises(ServerUnreachable, match="not a dbserve API"):
        client.job("j1")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="not a URL"):
        Client("http://host:port")


def test_the_key_is_sent_as_a_bearer_token() -> None:
    server = Server(a_job())
    with server.client("secret") as client:
        client.job("j1")
    assert server.requests[0].headers["authorization"] == "Bearer secret"


def test_pages_are_fetched_until_there_are_no_more() -> None:
    item = job_summary(snapshot())
    first = Page(data=(item, item), has_more=True, next="c1").model_dump_json()
    last = Page(data=(item,)).model_dump_json()
    server = Server(httpx.Response(200, content=first), httpx.Response(200, content=last))
    with server.client() as client:
        assert len(list(client.jobs(status=JobStatus.RUNNING, labels={"team": "a", "run": "2"}))) == 3
    asked = server.requests[1].url.params
    assert asked["after"] == "c1"
    assert asked["status"] == "running"
    assert asked.get_list("label") == ["team=a", "run=2"]


# --- streams


class Stream(httpx.SyncByteStream):
    """A body that may break off."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._content, self._error = content, error

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        if self._error is not None:
            raise self._error


def an_event(event_id: str, kind: str) -> bytes:
    view = event_view(LoggedEvent(id=event_id, at=1.0, kind=kind, job_status=JobStatus.RUNNING))
    return f"id: {event_id}\nevent: {kind}\ndata: {view.model_dump_json()}\n\n".encode()


def test_a_stream_that_breaks_is_taken_up_after_the_last_event_seen() -> None:
    half = an_event("1-0", "started") + b": heartbeat\n\n" + an_event("2-0", "checkpointed")[:-1]
    server = Server(
        AWAY,
        httpx.Response(200, stream=Stream(half, httpx.ReadError("reset"))),
        problem(503),
        httpx.Response(200, stream=Stream(an_event("2-0", "checkpointed"))),
        httpx.Response(200, stream=Stream(an_event("3-0", "job_finished"))),
        httpx.Response(204),
    )
    with server.client() as client:
        assert [event.id for event in client.events("j1")] == ["1-0", "2-0", "3-0"]
    asked = [request.headers.get("last-event-id") for request in server.requests]
    assert asked == [None, None, "1-0", "1-0", "2-0", "3-0"], "only the server knows that nothing follows: a retry may"


def test_a_stream_with_nothing_left_ends() -> None:
    with Server(httpx.Response(204)).client() as client:
        assert list(client.events("j1", after="9-0")) == []


def test_a_gap_in_the_history_is_raised() -> None:
    with Server(problem(410, "events_gone")).client() as client, pytest.raises(NotFound) as gone:
        list(client.events("j1", after="1-0"))
    assert gone.value.code == "events_gone"


def test_a_stream_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", -1.0)
    with Server(AWAY).client() as client, pytest.raises(ServerUnreachable):
        list(client.events("j1"))


# --- waiting


def test_waiting_ends_with_the_job_and_survives_a_server_that_is_away_for_a_while() -> None:
    done = a_job(**every_task(state=TaskState.SUCCEEDED))
    server = Server(a_job(), problem(503), done)
    with server.client() as client:
        assert client.wait("j1", poll_seconds=0.0).status is JobStatus.SUCCEEDED
    assert len(server.requests) == 3


def test_waiting_gives_up_after_the_time_allowed() -> None:
    with Server(a_job()).client() as client, pytest.raises(TimeoutError, match="j1"):
        client.wait("j1", timeout=0.0)
