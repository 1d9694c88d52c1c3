"""A typed client of the REST API.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit(JobSpec(...))
        for event in client.events(job.id):
            print(event.kind, event.task)
        print(client.report(job.id).quality.chain.accuracy)

Lost connections are tried again where that is safe: every request but `delete` and `retry` may be sent twice (`submit`
carries an Idempotency-Key). What the server refuses is raised as an ApiError with its code and the pointers to the
faults.
"""

import math
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from dbserve.client_keys import Keys
from dbserve.client_webhooks import Webhooks
from dbserve.contracts.cluster_view import ClusterView
from dbserve.contracts.job import AS_STORED, JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.report import Report
from dbserve.contracts.status import TERMINAL_JOB, JobStatus
from dbserve.contracts.views import (
    ArchitectureSummary,
    ArchitectureView,
    BlockView,
    EventView,
    JobMetricsView,
    JobSummary,
    JobView,
    LogView,
    ModelSummary,
    ModelView,
    Page,
    Problem,
    TaskCheckpointView,
)
from dbserve.download import unpack
from dbserve.errors import ConfigInvalid, DbserveError, Fault, ServerUnreachable
from dbserve.loglines import Level
from dbserve.sse import Message, messages

DEFAULT_URL = "http://127.0.0.1:8000"
ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.2  # doubled each time
SILENCE_SECONDS = 45.0  # three heartbeats of a stream
PATIENCE_SECONDS = 60.0  # how long a stream is looked for after it was lost

Model = TypeVar("Model", bound=BaseModel)


class ApiError(DbserveError):
    """The server refused. `code` is stable; `faults` point at what is wrong with the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.faults = tuple(Fault(fault.pointer, fault.code, fault.message) for fault in problem.errors)


class NotFound(ApiError):
    """The job, block, model or architecture is not known (404), or what was asked for was dropped (410)."""


class Conflict(ApiError):
    """Not possible as things stand (409)."""


class Refused(ApiError):
    """The request is wrong (408, 413, 415, 422)."""


class Unauthenticated(Refused):
    """The API key is missing, wrong, or has ended (401)."""


class Forbidden(ApiError):
    """The API key may not do this (403): forbidden_scope, or in this project: forbidden_project."""


class TooMany(ApiError):
    """Too many (429): requests within a minute, rate_limited; unfinished jobs, quota_exceeded; or too_many_streams."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after  # seconds, as the server asks


class Unavailable(ApiError):
    """The server lacks something it needs, and asks to be tried again (503)."""


_KINDS: Mapping[int, type[ApiError]] = {
    **dict.fromkeys((404, 410), NotFound),
    409: Conflict,
    **dict.fromkeys((408, 413, 415, 422), Refused),
    401: Unauthenticated,
    403: Forbidden,
    503: Unavailable,
}


# A proxy out of the environment is for other machines.
_PAST_THE_PROXY: Mapping[str, httpx.BaseTransport | None] = {
    f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")
}


class Client:
    """One server. Every method may raise ServerUnreachable and ApiError."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        project: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout` in seconds, for each read and write; `project` for a key of the whole deployment.

        Raises ConfigInvalid when base_url is no URL.
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        headers |= {"X-Dbserve-Project": project} if project else {}
        try:
            self._http = httpx.Client(
                base_url=base_url, headers=headers, timeout=timeout, transport=transport, mounts=_PAST_THE_PROXY
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigInvalid(f"{base_url!r} is not a URL: {error}") from None
        self.base_url = base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- jobs

    def plan(self, spec: JobSpec) -> JobPlan:
        """What the job would become; nothing is stored."""
        return self._parsed(JobPlan, self._post_spec("/v1/plans", spec))

    def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        """Submits the job. A repeated call with the same key and spec returns the job that the first one made."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parsed(JobView, self._post_spec("/v1/jobs", spec, headers))

    def jobs(self, *, status: JobStatus | None = None, labels: Mapping[str, str] | None = None) -> Iterator[JobSummary]:
        """Every job, newest first; pages are fetched as they are needed."""
        asked: dict[str, Any] = {"limit": 100, "label": [f"{key}={value}" for key, value in (labels or {}).items()]}
        if status is not None:
            asked["status"] = status.value
        return self._all(Page[JobSummary], "/v1/jobs", asked)

    def job(self, job_id: str) -> JobView:
        return self._parsed(JobView, self._request("GET", f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str, *, force: bool = False) -> JobView:
        """Asks for its end. Workers save a last checkpoint first; with `force` they are killed at once."""
        params = {"force": True} if force else {}
        return self._parsed(JobView, self._request("POST", f"/v1/jobs/{job_id}/cancel", params=params))

    def pause(self, job_id: str) -> JobView:
        """Its workers save a last checkpoint and make room, until it is resumed."""
        return self._parsed(JobView, self._request("POST", f"/v1/jobs/{job_id}/pause"))

    def resume(self, job_id: str) -> JobView:
        return self._parsed(JobView, self._request("POST", f"/v1/jobs/{job_id}/resume"))

    def retry(self, job_id: str) -> JobView:
        """Another try for what failed or was cancelled. Not repeated by itself: the second answer would be 409."""
        return self._parsed(JobView, self._request("POST", f"/v1/jobs/{job_id}/retry", attempts=1))

    def retry_block(self, job_id: str, block: int) -> BlockView:
        """The same for one block, and for what was abandoned because of it."""
        return self._parsed(BlockView, self._request("POST", f"/v1/jobs/{job_id}/blocks/{block}/retry", attempts=1))

    def checkpoints(self, job_id: str) -> tuple[TaskCheckpointView, ...]:
        """The committed checkpoints that the job's tasks could go on from."""
        found = self._request("GET", f"/v1/jobs/{job_id}/checkpoints")
        return self._parsed(Page[TaskCheckpointView], found).data

    def delete(self, job_id: str) -> None:
        """Forgets a job that has ended. Not tried again by itself: the second answer would be 404."""
        self._request("DELETE", f"/v1/jobs/{job_id}", attempts=1)

    def blocks(self, job_id: str) -> tuple[BlockView, ...]:
        return self._parsed(Page[BlockView], self._request("GET", f"/v1/jobs/{job_id}/blocks")).data

    def wait(self, job_id: str, timeout: float | None = None, *, poll_seconds: float = 1.0) -> JobView:
        """The job, once it has ended. A server that is away for a while is waited for.

        Raises TimeoutError after `timeout` seconds; the job goes on.
        """
        began = reached = time.monotonic()
        while True:
            try:
                job = self.job(job_id)
                reached = time.monotonic()
                if job.status in TERMINAL_JOB:
                    return job
            except (ServerUnreachable, Unavailable):
                if time.monotonic() - reached > PATIENCE_SECONDS:
                    raise
            left = math.inf if timeout is None else began + timeout - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} has not ended within {timeout} s")
            time.sleep(min(poll_seconds, left))

    # --- history

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[EventView]:
        """Events from the first (or after an id) to the end of the job, live. A lost stream is taken up again.

        Raises NotFound with code events_gone when events in between were dropped.
        """
        for message in self._stream(f"/v1/jobs/{job_id}/events", {}, after, last=None):
            yield EventView.model_validate_json(message.data)

    def metrics(self, job_id: str, *, points: int = 120) -> JobMetricsView:
        """The course of every training: loss, throughput and memory at some of its steps."""
        return self._parsed(
            JobMetricsView, self._request("GET", f"/v1/jobs/{job_id}/metrics", params={"points": points})
        )

    def logs(
        self,
        job_id: str,
        *,
        block: int | None = None,
        task: str | None = None,
        attempt: int | None = None,
        level: Level | None = None,
        tail: int = 200,
        follow: bool = False,
    ) -> Iterator[LogView]:
        """The last `tail` lines of `level` and above; with `follow`, also those that arrive until the job has ended."""
        asked = {"block": block, "task": task, "attempt": attempt, "level": level, "tail": tail}
        params = {name: value for name, value in asked.items() if value is not None}
        path = f"/v1/jobs/{job_id}/logs"
        if not follow:
            yield from self._parsed(Page[LogView], self._request("GET", path, params=params)).data
            return
        for message in self._stream(path, {**params, "follow": True}, None, last="end"):
            if message.event == "log":
                yield LogView.model_validate_json(message.data)

    # --- results

    def report(self, job_id: str) -> Report:
        """Raises Conflict (report_not_ready) before the evaluation has ended."""
        return self._parsed(Report, self._request("GET", f"/v1/jobs/{job_id}/report"))

    def report_html(self, job_id: str) -> str:
        """The report as one self-contained page."""
        return self._request("GET", f"/v1/jobs/{job_id}/report", params={"format": "html"}).text

    def models(self) -> Iterator[ModelSummary]:
        """Every model, newest first."""
        return self._all(Page[ModelSummary], "/v1/models", {"limit": 100})

    def model(self, model_id: str) -> ModelView:
        return self._parsed(ModelView, self._request("GET", f"/v1/models/{model_id}"))

    def download_model(self, model_id: str, directory: Path) -> Path:
        """Fetches a model into directory/<model_id>, whole or not at all; returns that path.

        Raises FileExistsError when it is there already.
        """
        try:
            with self._http.stream("GET", f"/v1/models/{model_id}/download") as response:
                self._refuse(response)
                return unpack(response.iter_bytes(), directory, model_id)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def architectures(self) -> tuple[ArchitectureSummary, ...]:
        return self._parsed(Page[ArchitectureSummary], self._request("GET", "/v1/architectures")).data

    def architecture(self, kind: str) -> ArchitectureView:
        return self._parsed(ArchitectureView, self._request("GET", f"/v1/architectures/{kind}"))

    def cluster(self) -> ClusterView:
        """Its nodes, and what of one's own runs where."""
        return self._parsed(ClusterView, self._request("GET", "/v1/cluster"))

    # --- webhooks

    @property
    def webhooks(self) -> Webhooks:
        """Who is told when jobs end and when blocks get into trouble."""
        return Webhooks(self._request, self._parsed)

    @property
    def keys(self) -> Keys:
        """API keys, and who changed what."""
        return Keys(self._request, self._parsed, self._all)

    # --- inside

    def _post_spec(self, path: str, spec: JobSpec, headers: Mapping[str, str] | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self._request("POST", path, content=spec.model_dump_json(), headers=headers)

    def _request(self, method: str, path: str, *, attempts: int = ATTEMPTS, **options: Any) -> httpx.Response:
        for attempt in range(1, attempts + 1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if attempt == attempts:
                    raise self._unreachable(error) from None
                time.sleep(FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
            else:
                self._refuse(response)
                return response
        raise AssertionError("unreachable")

    def _stream(
        self, path: str, params: Mapping[str, Any], after: str | None, *, last: str | None
    ) -> Iterator[Message]:
        """Messages until the one named `last`, or until the server says that nothing follows (204).

        A lost or silent stream is taken up again after the last id seen.
        """
        heard = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
            timeout = httpx.Timeout(self._http.timeout.connect, read=SILENCE_SECONDS)
            try:
                with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as response:
                    self._refuse(response)
                    if response.status_code == 204:
                        return
                    for message in messages(response.iter_bytes()):
                        heard, after = time.monotonic(), message.id or after
                        yield message
                        if message.event == last:
                            return
            except httpx.TransportError as error:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise self._unreachable(error) from None
            except Unavailable:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise
            time.sleep(FIRST_PAUSE_SECONDS)

    def _all(self, page: type[Page[Model]], path: str, params: Mapping[str, Any]) -> Iterator[Model]:
        after: str | None = None
        while True:
            asked = {**params, **({"after": after} if after else {})}
            found = self._parsed(page, self._request("GET", path, params=asked))
            yield from found.data
            if not found.has_more:
                return
            after = found.next

    def _parsed(self, model: type[Model], response: httpx.Response) -> Model:
        try:
            return model.model_validate_json(response.content, context=AS_STORED)
        except ValidationError:
            raise ServerUnreachable(f"what answers at {self.base_url} is not a dbserve API of this version") from None

    def _refuse(self, response: httpx.Response) -> None:
        """Raises what the server says is wrong."""
        if response.is_success:
            return
        response.read()
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            raise ServerUnreachable(
                f"what answers at {self.base_url} is not a dbserve API (HTTP {response.status_code})"
            ) from None
        if problem.status == 429:
            wait = response.headers.get("Retry-After", "")
            raise TooMany(problem, retry_after=float(wait) if wait.isdecimal() else None)
        raise _KINDS.get(problem.status, ApiError)(problem)

    def _unreachable(self, error: httpx.TransportError) -> ServerUnreachable:
        return ServerUnreachable(f"no dbserve API answers at {self.base_url} ({error or type(error).__name__})")
