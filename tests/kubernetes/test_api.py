"""The API as its pod would start it, on the chart's Redis; and what docs/kubernetes.md does with it first."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from dbserve.store import JobStore
from tests.integration.serving import finish, submitted
from tests.kubernetes.chart import ROOT, Object, kinds, pods, rendered
from tests.kubernetes.servers import ChartRedis, environment_of, redis_of
from tests.kubernetes.test_docs import COMMANDS, Command
from tests.ports import free_port
from tests.unit.test_report_page import report
from tests.waiting import wait_for

if shutil.which("redis-server") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("redis-server is not installed (apt install redis-server)", allow_module_level=True)


@dataclass(frozen=True)
class Api:
    """A running one, and the container that it is of."""

    url: str
    container: Object
    environment: dict[str, str]
    directory: Path
    redis: ChartRedis

    def store(self, user: str) -> JobStore:
        """On the chart's Redis, as one of its users."""
        return JobStore.from_url(f"redis://{user}:{self.redis.passwords[user]}@localhost:{self.redis.port}/0")

    def probe(self, name: str) -> int:
        """What kubelet is answered."""
        asked = self.container[f"{name}Probe"]["httpGet"]
        [port] = [port for port in self.container["ports"] if port["name"] == asked["port"]]
        assert port["containerPort"] == 8000
        return httpx.get(self.url + asked["path"], timeout=30).status_code

    def run(self, command: Command, key: str, job_id: str = "JOB") -> subprocess.CompletedProcess[str]:
        """A command of the document, as its reader with that key, in a directory of the reader's with the examples."""
        words = [word for word in command.words[1:] if word != "--watch"]  # nothing would train here
        words = [job_id if word == "JOB" else word for word in words]
        if not (examples := self.directory / "examples").exists():
            examples.symlink_to(ROOT / "examples")
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DBSERVE_URL": self.url,
            "DBSERVE_API_KEY": key,
            "COLUMNS": "200",
        }
        return subprocess.run(
            [sys.executable, "-m", "dbserve", *words],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """With the variables of the rendered container, but for where Redis and directories are."""
    objects = rendered("defaults")
    directory = tmp_path_factory.mktemp("api")
    [pod] = [pod for pod in pods(objects) if pod.labels["app.kubernetes.io/component"] == "api"]
    [container] = pod.spec["containers"]
    with redis_of(objects, tmp_path_factory.mktemp("redis")) as server:
        port = free_port()
        given = environment_of(container, objects)
        assert given["DBSERVE_HOST"] == "0.0.0.0"  # of the container; it is what makes keys asked for
        here = {
            "DBSERVE_REDIS_URL": f"redis://localhost:{server.port}/0",
            "DBSERVE_PORT": str(port),
            "DBSERVE_ARTIFACTS": str(directory / "artifacts"),
            "DBSERVE_CACHE_DIR": str(directory / "cache"),
            "HOME": str(directory),
        }
        assert here.keys() <= given.keys()
        command = [sys.executable, "-m", *container["command"]]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **given, **here}
        with (directory / "out").open("wb") as output:
            process = subprocess.Popen(command, env=environment, cwd=directory, stdout=output, stderr=output)
        running = Api(f"http://127.0.0.1:{port}", container, given, directory, server)
        try:
            wait_for(lambda: process.poll() is not None or answers(running), seconds=60, what="the startup probe")
            assert process.poll() is None, (directory / "out").read_text()
            yield running
        finally:
            process.terminate()
            assert process.wait(30) in {0, -signal.SIGTERM}


def answers(running: Api) -> bool:
    try:
        return running.probe("startup") == 200
    except httpx.TransportError:
        return False


def command(*words: str) -> Command:
    [found] = [each for each in COMMANDS if each.begins(*words)]
    return found


def test_its_probes_are_answered_without_a_key(api: Api) -> None:
    assert [api.probe(name) for name in ("startup", "liveness", "readiness")] == [200, 200, 200]


def test_prometheus_gets_in_with_the_key_of_its_monitor_and_nobody_without(api: Api) -> None:
    monitor = kinds(rendered("monitoring"), "ServiceMonitor")[0]["spec"]["endpoints"][0]
    key = api.environment["DBSERVE_SCRAPE_KEY"]
    assert monitor["authorization"]["credentials"]["key"] == "scrape-key"
    headers = {"Authorization": f"Bearer {key}"}
    assert "dbserve_" in httpx.get(api.url + monitor["path"], headers=headers).text
    assert httpx.get(api.url + monitor["path"]).status_code == 401
    assert httpx.get(f"{api.url}/v1/jobs", headers=headers).status_code in {401, 403}


def test_the_first_key_makes_another_and_that_one_submits_the_job(api: Api) -> None:
    made = api.run(command("dbserve", "keys", "create"), api.environment["DBSERVE_API_KEY"])
    assert made.returncode == 0, made.stderr
    key = next(word for word in made.stdout.split() if word.startswith("dbs_"))
    submitted = api.run(command("dbserve", "submit"), key)
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.strip()
    nodes = api.run(command("dbserve", "nodes"), key)
    assert (nodes.returncode, nodes.stderr) == (0, "")
    again = api.run(command("dbserve", "keys", "create"), key)
    assert again.returncode != 0  # it may read and submit, and no more


async def test_of_a_job_that_has_ended_the_report_is_written_as_shown(api: Api) -> None:
    """Each process of the service writes its part as its own user of Redis."""
    async with contextlib.AsyncExitStack() as stack:
        stores = {user: api.store(user) for user in ("api", "reconciler", "worker")}
        for store in stores.values():
            stack.push_async_callback(store.aclose)
        job_id = await submitted(stores["api"])
        await finish(stores["reconciler"], job_id)
        evaluation = (await stores["api"].outline(job_id)).tasks["evaluation"].run
        await stores["worker"].results.save_report(evaluation, report())
    told = command("dbserve", "report")
    done = await asyncio.to_thread(api.run, told, api.environment["DBSERVE_API_KEY"], job_id)
    assert done.returncode == 0, done.stderr
    assert "<html" in (api.directory / told.words[-1]).read_text()


def test_data_that_nothing_allows_is_refused(api: Api) -> None:
    job = yaml.safe_load((ROOT / "examples/digits.yaml").read_text())
    job["data"] = {"uri": "/etc"}
    headers = {"Authorization": f"Bearer {api.environment['DBSERVE_API_KEY']}"}
    answer = httpx.post(f"{api.url}/v1/plans", json=job, headers=headers)
    assert answer.status_code == 422, answer.text
    assert "/data/uri" in answer.text
