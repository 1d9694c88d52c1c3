"""Workers of one task on hosts that share no address: each speaks to the others at its own."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos.namespaces import Host, lan, require
from tests.training import dataset, planned, run, spec_of
from workers.parallel import Call
from workers.subprocesses import Process, Subprocesses
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

    def hire(self, call: Call) -> Process:
        told = self.directory / f"call-{call.rank}.json"
        told.write_text(call.model_dump_json() + "\n")
        script = f"exec {sys.executable} -m workers.follower < {told}"
        log = self.directory / f"worker-{call.rank}.log"
        return Process(self.hosts[call.rank - 1].run(["sh", "-c", script], log), log.open("rb"))


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
