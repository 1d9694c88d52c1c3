"""Workers of one task on hosts that share no address: each speaks to the others at its own."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos.namespaces import Host, lan, require
from tests.training import dataset, planned, run, spec_of
from workers.parallel import STOP_SECONDS, Call, Death
from workers.subprocesses import Subprocesses
from workers.trainer import train_block

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300, method="thread")]  # one that hangs does so within torch


@pytest.fixture(autouse=True)
def namespaces() -> None:
    require()


@dataclass(frozen=True)
class OnHosts(Subprocesses):
    """A crew whose other workers are on a host each."""

    hosts: tuple[Host, ...] = ()
    directory: Path = field(default_factory=Path)

    def hire(self, call: Call) -> "_There":  # pyright: ignore[reportIncompatibleMethodOverride]
        told = self.directory / f"call-{call.rank}.json"
        told.write_text(call.model_dump_json() + "\n")
        script = f"exec {sys.executable} -m workers.follower < {told}"
        log = self.directory / f"worker-{call.rank}.log"
        return _There(self.hosts[call.rank - 1].run(["sh", "-c", script], log), log)


class _There:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def death(self, wait: float) -> Death | None:
        try:
            code = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        return Death(f"ended with {code}: {self._log.read_text()[-2000:]}")

    def end(self) -> None:
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.mark.parametrize("sharding", ["none", "state"])
def test_three_hosts_train_one_task_together(tmp_path: Path, sharding: str) -> None:
    spec = spec_of(
        resources={"replicas": 3, "min_replicas": 1, "sharding": sharding},
        training={"steps": 3, "warmup": 1, "batch_size": 48},
    )
    plan = planned(spec)
    with lan(["one", "two"], private=[]) as network:
        crew = OnHosts(3, threads=1, host=network.address, hosts=tuple(network.hosts), directory=tmp_path)
        reports = train_block(spec, plan, plan.task("block-0"), dataset(), crew=crew)
        course = [(report, report.capture()) for report in reports]
    assert [report.step for report, _ in course] == [1, 2, 3]
    expected = run(spec, "block-0")
    assert [report.loss for report, _ in course] == pytest.approx([report.loss for report, _ in expected], rel=1e-5)
