"""Every process on its own user of Redis: what it needs is there, and nothing else."""

import asyncio
import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_sync
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from dbserve.api.app import create_app
from dbserve.artefacts import open_artefacts
from dbserve.contracts.cluster import Capacity, Node, Presence, Resources
from dbserve.contracts.status import Reason, Run, Task
from dbserve.errors import StoreUnavailable
from dbserve.reconciler import Reconciler
from dbserve.store import JobStore, keys
from dbserve.store.acl import USERS, acl_file
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster
from tests.chaos import rayless
from tests.integration.serving import settings
from tests.jobs import small_spec
from tests.ports import free_port
from tests.receiver import receiving
from tests.redis_servers import redis_server
from tests.tenants import BOOTSTRAP, bearer
from tests.waiting import eventually
from workers.presence import look

SECONDS = 120


@dataclass
class Guarded:
    """A Redis that knows its users alone, and one more that the tests look with."""

    port: int
    passwords: dict[str, str]
    root: redis_sync.Redis

    def url(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/0"

    def as_user(self, user: str) -> Any:
        return redis_sync.Redis(
            port=self.port, username=user, password=self.passwords[user], decode_responses=True, protocol=2
        )

    def denied(self) -> list[str]:
        """What was refused since the log was last emptied, but for how a driver introduces itself."""
        entries: list[dict[str, Any]] = self.root.acl_log()  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
        return [
            f"{entry['username']}: {entry['reason']} {entry['object']}"
            for entry in entries
            if not str(entry["object"]).startswith("client|") and entry["object"] != "client"
        ]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    passwords = {user.name: secrets.token_hex(16) for user in USERS}
    rules = acl_file({name: hashlib.sha256(word.encode()).hexdigest() for name, word in passwords.items()})
    (directory / "users.acl").write_text(f"{rules}user root on nopass ~* &* +@all\n")
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(directory / "users.acl")]
    with redis_server(directory, arguments, port=port, username="root", password="any", protocol=2) as root:
        yield Guarded(port, passwords, root)


@pytest.fixture(autouse=True)
def empty(guarded: Guarded) -> None:
    guarded.root.flushall()
    guarded.root.acl_log_reset()  # pyright: ignore[reportUnknownMemberType]


@dataclass
class Forks:
    """dbserve.reconciler.Cluster: the real workers, as processes of this machine."""

    url: str
    directory: Path
    identity: str = "forks"
    workers: dict[Run, BaseProcess] = field(default_factory=dict[Run, BaseProcess])

    def capacity(self) -> Capacity:
        return Capacity((Node("node", "node", Resources(2.0, 0.0)),))

    def alive(self) -> set[Run]:
        return {run for run, worker in self.workers.items() if worker.is_alive()}

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        if run not in self.workers:
            self.workers[run] = rayless.start(
                run, self.url, str(self.directory / "artifacts"), self.directory / "cache"
            )

    def stop(self, run: Run, *, task: Task | None) -> None:
        if run in self.workers:
            self.workers[run].kill()

    def presence(self, task: Task) -> Presence:
        if task.pid is None:
            return Presence.PRESENT if task.run in self.alive() else Presence.GONE
        return look(task.pid, task.born, gpu=False)

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        return None


async def test_a_job_goes_to_its_end_with_each_process_on_its_own_user(guarded: Guarded, tmp_path: Path) -> None:
    plain = f"redis://127.0.0.1:{guarded.port}/0"
    beside = {"redis_username": "api", "redis_password": guarded.passwords["api"]}
    chosen = settings(plain, tmp_path, api_key=BOOTSTRAP, webhook_private_hosts=True, **beside)
    its_store = JobStore.at(chosen.redis)
    app = create_app(chosen, its_store)
    store = JobStore.from_url(guarded.url("reconciler"))
    cluster = Forks(guarded.url("worker"), tmp_path)
    stopping = asyncio.Event()
    deliverer = Deliverer(store, Poster(private_hosts=True))
    reconciler = Reconciler(store, cluster, open_artefacts(str(tmp_path / "artifacts")), deliverer=deliverer)
    async with contextlib.AsyncExitStack() as stack:
        receiver = stack.enter_context(receiving())

        async def tidied() -> bool:
            return not await store.wishes.deleted()

        transport, key = httpx.ASGITransport(app), bearer(BOOTSTRAP)
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=key)
        )
        await store.schema.upgrade()
        await store.ping()
        await store.deployment()
        running = asyncio.create_task(reconciler.run(stopping))
        hook = await http.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.succeeded"]})
        assert hook.status_code == 201, hook.text
        job = await submitted(http, "wanted")
        unwanted = await submitted(http, "unwanted")
        assert (await http.post(f"/v1/jobs/{unwanted}/cancel")).status_code in (200, 202)
        assert await status_of(http, job) == "succeeded", guarded.denied()
        assert await status_of(http, unwanted) == "cancelled"
        await eventually(lambda: bool(receiver.sent), seconds=SECONDS, what="the webhook is told")
        for path in ("", "/events", "/logs", "/report"):
            assert (await http.get(f"/v1/jobs/{job}{path}")).status_code == 200, path
        for path in ("/v1/jobs", "/v1/models", f"/v1/models/{job}", "/metrics", "/readyz", "/v1/webhooks"):
            assert (await http.get(path)).status_code == 200, path
        assert (await http.delete(f"/v1/jobs/{unwanted}")).status_code == 204
        assert (await http.delete(f"/v1/webhooks/{hook.json()['id']}")).status_code == 204
        await eventually(tidied, seconds=SECONDS, what="the deleted job is tidied up")
        stopping.set()
        await running
        await store.aclose()
        await its_store.aclose()
    assert guarded.denied() == []


async def submitted(http: httpx.AsyncClient, name: str) -> str:
    spec = small_spec(name=name, training={"steps": 6, "batch_size": 32}, checkpoint={"every_steps": 2, "keep_last": 2})
    made = await http.post("/v1/jobs", json=spec.model_dump(mode="json"), headers={"Idempotency-Key": spec.digest()})
    assert made.status_code in (200, 202), made.text
    return made.json()["id"]


async def status_of(http: httpx.AsyncClient, job_id: str) -> str:
    """How it ended."""
    status = ""

    async def ended() -> bool:
        nonlocal status
        status = (await http.get(f"/v1/jobs/{job_id}")).json()["status"]
        return status in ("succeeded", "failed", "cancelled")

    await eventually(ended, seconds=SECONDS, what=f"{job_id} ends")
    return status


REFUSED_IN_A_SCRIPT = re.compile("ACL failure in script|not allowed from script|user executing the script can't")
NOBODYS = [
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "CONFIG SET dir /tmp",
    "KEYS *",
    "BGREWRITEAOF",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "ACL SETUSER worker +@all",
    "SCRIPT FLUSH",
    "MONITOR",
    "REPLICAOF 127.0.0.1 1",
    "MODULE LIST",
    "SLOWLOG GET",
    "CLIENT KILL TYPE normal",
    "SAVE",
    "GET somebody-elses",
    "SUBSCRIBE anything",
    "MIGRATE 127.0.0.1 1 dbserve:jobs 0 10",
]
SECRETS = [f"HGETALL {keys.WEBHOOKS}", f"HGETALL {keys.API_KEYS}", f"HGET {keys.API_KEYS} x"]
THROUGH_A_SCRIPT = [
    f"EVAL return(redis.call('HGETALL','{keys.WEBHOOKS}')) 0",
    "EVAL return(redis.call('CONFIG','GET','*')) 0",
]


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *((user, command) for user in ("api", "reconciler", "worker", "exporter", "ray") for command in NOBODYS),
        *(("worker", command) for command in [*SECRETS, *THROUGH_A_SCRIPT]),
        *(("worker", f"SET {key} x") for key in (keys.LEASE, keys.SCHEMA_KEY, f"{keys.API_KEYS_MADE}")),
        *(("worker", f"{command} {keys.audit('default')} + -") for command in ("DEL", "XREVRANGE")),
        *(("reconciler", command) for command in SECRETS[1:]),
        ("api", f"SET {keys.LEASE} x"),
        *(("exporter", f"{command} {keys.COUNTERS}") for command in ("HGETALL", "DEL", "TYPE")),
        ("ray", f"HGETALL {keys.COUNTERS}"),
    ],
)
def test_a_user_may_not(guarded: Guarded, user: str, command: str) -> None:
    with contextlib.closing(guarded.as_user(user)) as client, pytest.raises(redis_sync.ResponseError) as refused:
        client.execute_command(*command.split())
    assert isinstance(refused.value, NoPermissionError) or REFUSED_IN_A_SCRIPT.search(str(refused.value))


@pytest.mark.parametrize("command", ["PING", "INFO", "GET dbserve:schema", "ACL WHOAMI", "CLIENT LIST"])
def test_whoever_says_no_name_gets_nothing(guarded: Guarded, command: str) -> None:
    anonymous = redis_sync.Redis(port=guarded.port, protocol=2, retry=Retry(NoBackoff(), 0))
    with contextlib.closing(anonymous) as client, pytest.raises(AuthenticationError):
        client.execute_command(*command.split())


def test_the_exporter_sees_the_servers_figures(guarded: Guarded) -> None:
    with contextlib.closing(guarded.as_user("exporter")) as client:
        assert client.info()["maxmemory_policy"] == "noeviction"
        assert client.dbsize() == 0


async def test_a_wrong_password_is_no_reason_to_show_it(guarded: Guarded) -> None:
    wrong = "wrong-password-of-the-api"
    store = JobStore.from_url(f"redis://api:{wrong}@127.0.0.1:{guarded.port}/0")
    with pytest.raises(StoreUnavailable) as refused:
        await store.ping()
    await store.aclose()
    assert wrong not in str(refused.value)
