"""Several replicas learn what one worker would: the same batch in the same parts, whoever takes them."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dbserve.contracts.job import JobSpec
from tests.fellows import Fellows
from tests.training import dataset, planned, same, spec_of
from workers import trainer
from workers.checkpoint import TrainingState
from workers.group import Alone, share_of
from workers.parallel import Watch
from workers.subprocesses import Subprocesses
from workers.trainer import StepReport, train_block

pytestmark = pytest.mark.usefixtures("one_thread")

Course = list[tuple[StepReport, TrainingState]]
TRAINING = {"steps": 5, "warmup": 2, "ema": 0.9}
NO_MATTER = "qkv.bias"  # softmax takes no notice of the keys' part of it: AdamW makes steps of what is rounded


@pytest.fixture(scope="module")
def fellows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fellows]:
    others = Fellows(2, tmp_path_factory.mktemp("fellows"))
    yield others
    others.close()


def job(replicas: int, *, sharding: str = "none", **training: Any) -> JobSpec:
    resources = {"replicas": replicas, "min_replicas": 1, "sharding": sharding}
    return spec_of(resources=resources, training=TRAINING | training)


def alone(spec: JobSpec, task: str, state: TrainingState | None = None) -> Course:
    plan = planned(spec)
    reports = train_block(spec, plan, plan.task(task), dataset(), state=state)
    return [(report, report.capture()) for report in reports]


def agree(found: Course, expected: Course) -> None:
    """But for the order in which floats are summed up."""
    for (report, _), (wanted, _) in zip(found, expected, strict=True):
        assert (report.step, report.samples) == (wanted.step, wanted.samples)
        assert report.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-3)
        for band, same_band in zip(report.eval_loss, wanted.eval_loss, strict=True):
            assert band.loss == pytest.approx(same_band.loss, rel=1e-4)
    (_, last), (_, wanted_last) = found[-1], expected[-1]
    for kind in ("weights", "optimizer", "average"):
        tensors, wanted_tensors = getattr(last, kind), getattr(wanted_last, kind)
        assert tensors.keys() == wanted_tensors.keys()
        for name, tensor in wanted_tensors.items():
            if not name.endswith(NO_MATTER):
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=3e-5, msg=f"{kind} {name}")


@pytest.mark.parametrize(("parts", "size"), [(1, 1), (4, 2), (4, 3), (64, 7), (3, 3)])
def test_every_part_is_taken_by_one_worker_and_none_has_two_more_than_another(parts: int, size: int) -> None:
    shares = [share_of(parts, rank, size) for rank in range(size)]
    assert [part for share in shares for part in share] == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(shares)


@pytest.mark.parametrize(
    ("replicas", "granted", "task"), [(2, 2, "block-0"), (4, 3, "block-1"), (2, 2, "end_to_end")], ids=str
)
def test_losses_and_weights_are_those_of_one_worker(fellows: Fellows, replicas: int, granted: int, task: str) -> None:
    spec = job(replicas)
    plan = planned(spec)
    together = fellows.train(granted, spec, plan, plan.task(task))
    expected = alone(spec, task)
    agree(together, expected)
    if granted == replicas:  # two gradients have one sum
        assert [report.loss for report, _ in together] == [report.loss for report, _ in expected]
        assert same(together[-1][1], expected[-1][1])
    gradients = sum(tensor.nbytes for tensor in together[0][1].weights.values())
    assert {report.sent_bytes for report, _ in together} == {gradients + 4}, "every gradient, and the loss"
    assert {report.stray_bytes for report, _ in together} == {0}


def test_as_many_replicas_as_there_are_go_on_where_others_stopped(fellows: Fellows) -> None:
    spec = job(4)
    plan = planned(spec)
    expected = alone(spec, "block-0")
    by_three = fellows.train(3, spec, plan, plan.task("block-0"))
    by_two = fellows.train(2, spec, plan, plan.task("block-0"), state=by_three[1][1])
    by_one = alone(spec, "block-0", state=by_two[1][1])
    agree([*by_three[:2], *by_two[:2], *by_one], expected)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"accumulate": 2, "grad_clip": 0.05},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
        {"lr": "scan", "steps": 40},
        {"compile": True, "steps": 3},
    ],
    ids=str,
)
def test_a_sharded_state_learns_the_same_and_is_saved_whole(fellows: Fellows, training: dict[str, Any]) -> None:
    spec = job(2, sharding="state", **training)
    plan = planned(spec)
    shared = fellows.train(2, spec, plan, plan.task("block-0"))
    agree(shared, alone(job(2, **{**training, "compile": False}), "block-0"))


def test_each_of_three_replicas_holds_a_third_of_the_state_and_one_may_go_on_from_it(fellows: Fellows) -> None:
    spec = job(4, sharding="state")
    plan = planned(spec)
    expected = alone(spec, "end_to_end")
    shared = fellows.train(3, spec, plan, plan.task("end_to_end"))  # four parts: two of them compute one in vain
    agree(shared, expected)
    whole, share = expected[0][0].memory, shared[0][0].memory
    assert whole is not None
    assert share is not None
    for kind in ("parameters", "gradients", "optimizer"):
        assert getattr(share, kind) == pytest.approx(getattr(whole, kind) / 3, rel=0.15)
    assert share.activations == pytest.approx(whole.activations, rel=0.01)
    agree([*shared[:2], *alone(spec, "end_to_end", state=shared[1][1])], expected)
    agree([*shared[:2], *fellows.train(2, spec, plan, plan.task("end_to_end"), state=expected[1][1])], expected)


@pytest.mark.parametrize("sharding", ["none", "state"])
def test_a_leader_is_in_a_call_while_it_steps_and_captures_what_is_shared_and_not_while_it_saves(
    monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    spec = job(2, sharding=sharding)
    plan = planned(spec)
    watch = Watch(plan.task("block-0"), Subprocesses(2, threads=1))
    away = watch.away.is_set
    first = alone(spec, "end_to_end")[0][0]
    steps: list[bool] = []
    captures: list[bool] = []

    @contextlib.contextmanager
    def leading(*_: object) -> Generator[tuple[Alone, Watch], None, None]:
        yield Alone(), watch

    def training(*_: object) -> Generator[StepReport, None, None]:
        for _ in range(2):
            steps.append(away())
            yield replace(first, capture=lambda: captures.append(away()))  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(trainer, "leading", leading)
    monkeypatch.setattr(trainer, "training", training)
    crew = Subprocesses(2, threads=1)
    for report in train_block(spec, plan, plan.task("block-0"), dataset(), crew=crew):
        assert away()
        report.capture()
        assert away(), "what is captured is written"
    assert steps == [False, False]
    assert captures == [sharding == "none"] * 2, "a whole state is copied without the others"
