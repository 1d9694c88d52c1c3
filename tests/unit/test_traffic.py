"""What is sent to other processes is counted by the calls that send it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dbserve.contracts.plan import JobPlan, TaskPlan
from tests.training import run, spec_of
from workers import trainer
from workers.data import Batch
from workers.traffic import counting_sent_bytes


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_whatever_torch_distributed_is_asked_to_send_is_counted() -> None:
    tensor = torch.ones(10)
    gathered, scattered = [torch.empty(10)], torch.empty(10)
    with counting_sent_bytes() as sent:
        counted: list[int] = []
        for call in (
            lambda: dist.all_reduce(tensor),
            lambda: dist.broadcast(tensor, 0),
            lambda: dist.all_gather(gathered, tensor),
            lambda: dist.reduce_scatter(scattered, [tensor]),
            lambda: dist.all_to_all_single(torch.empty(10), tensor),
        ):
            call()
            counted.append(sent.take()[1])
    assert counted == [40] * 5
    dist.all_reduce(tensor)
    assert sent.take() == (0, 0), "nothing is counted outside"


@pytest.mark.usefixtures("group")
def test_what_a_backend_is_asked_without_its_group_is_counted_too() -> None:
    backend: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))  # pyright: ignore[reportPrivateUsage]
    with counting_sent_bytes() as outer, counting_sent_bytes() as inner:
        backend.allreduce([torch.ones(3, dtype=torch.float64)]).wait()
    assert (outer.take(), inner.take()) == ((0, 24), (0, 24))


def test_a_block_sends_nothing() -> None:
    assert [(report.sent_bytes, report.stray_bytes) for report, _ in run(spec_of(), "block-0")] == [(0, 0)] * 10


@pytest.mark.usefixtures("group")
def test_a_block_that_did_exchange_something_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of = trainer.loss_of

    def leaking(plan: JobPlan, task: TaskPlan, network: nn.Module) -> Any:
        loss = loss_of(plan, task, network)

        def leaks(batch: Batch, generator: torch.Generator) -> torch.Tensor:
            dist.all_reduce(torch.zeros(100))
            return loss(batch, generator)

        return leaks

    monkeypatch.setattr(trainer, "loss_of", leaking)
    assert [report.stray_bytes for report, _ in run(spec_of(), "block-0")] == [400] * 10
    scanned = [report.stray_bytes for report, _ in run(spec_of(training={"lr": "scan"}), "block-0")]
    assert scanned[0] > 400, "what the scan sent is in the first report"
    assert scanned[1:] == [400] * 9
