import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dbserve.artefacts import LocalArtefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.report import Report, report_schema
from dbserve.contracts.status import CheckpointRef, Reason, Run, Task
from dbserve.errors import CheckpointInvalid, ContractMismatch
from tests.artefacts import save
from tests.jobs import small_plan, small_spec
from workers.assemble import assemble
from workers.checkpoint import TrainingState
from workers.data import Dataset, Split
from workers.evaluate import evaluate
from workers.trainer import build_network, train_block

pytestmark = pytest.mark.usefixtures("one_thread")

BASELINES = ["end_to_end", "shallow_ensemble"]


def bright(rows: int, seed: int) -> Split:
    """Images whose brightness is their label: learnable in seconds."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, rows)
    images = labels[:, None, None, None] * 22 + random.integers(0, 40, (rows, 8, 8, 1))
    return Split(inputs=images.astype(np.uint8), labels=labels.astype(np.int64))


class Job:
    """A trained job on disk, as evaluate() finds it."""

    def __init__(self, root: Path, steps: int = 100, **changes: Any) -> None:
        self.spec: JobSpec = small_spec(
            training={"steps": steps, "batch_size": 64, "lr": 3e-3},
            evaluation={"baselines": changes.pop("baselines", BASELINES), "batch_size": 50},
            **changes,
        )
        self.plan: JobPlan = small_plan(self.spec)
        self.data = Dataset(train=bright(1000, 0), validation=bright(100, 1), test=bright(400, 2))
        self.root = root
        self.finals: dict[str, Path] = {}
        self.saved: dict[str, CheckpointRef] = {}
        self.runs: list[Task] = []

    def train(self, untrained: int | None = None) -> "Job":
        """Trains every task; block `untrained` keeps the weights it began with."""
        for task in self.plan.tasks:
            if task.steps:
                (last,) = list(train_block(self.spec, self.plan, task, self.data))[-1:]
                state = last.capture()
                if untrained is not None and task.name == f"block-{untrained}":
                    fresh = build_network(self.spec, self.plan, task).state_dict()
                    state = TrainingState(state.step, fresh, state.optimizer, state.summary)
                self.save(task.name, state)
                run = Run(job_id="job", task=task.name, attempt=2)
                self.runs.append(
                    Task(run=run, kind=task.kind, index=task.index, node="n1", started_at=100.0, finished_at=107.0)
                )
        blocks = {task.index: self.saved[task.name] for task in self.plan.tasks if task.kind == "block"}
        assemble(self.plan, LocalArtefacts(self.root), blocks, "model", job_id="job")
        return self

    def save(self, name: str, state: TrainingState) -> None:
        self.saved[name] = save(self.root, name, state, self.plan, run=f"job/{name}/2")
        self.finals[name] = self.root / name

    def report(self, **changes: Any) -> Report:
        arguments: dict[str, Any] = {"data": self.data, "finals": self.finals, "runs": self.runs} | changes
        return evaluate(
            self.spec,
            self.plan,
            arguments["data"],
            self.root / "model",
            arguments["finals"],
            arguments["runs"],
            job_id="job",
            model_id="model",
        )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job")).train()


@pytest.fixture(scope="module")
def report(job: Job) -> Report:
    return job.report()


def test_every_way_of_answering_is_scored_far_above_chance(report: Report) -> None:
    quality = report.quality
    for name in ("chain", "product_of_experts", "first_block", "end_to_end", "shallow_ensemble", "shallow_single"):
        score = getattr(quality, name)
        assert score.accuracy > 0.5, name
        assert score.cross_entropy < 1.5, name
    assert quality.shallow_single is not None
    assert len(quality.shallow_single.members) == 2
    assert quality.shallow_single.accuracy == pytest.approx(sum(quality.shallow_single.members) / 2)


def test_layer_evaluations_count_the_layers_run_for_one_answer(report: Report) -> None:
    quality = report.quality
    counted = {
        name: getattr(quality, name).layer_evaluations
        for name in ("chain", "product_of_experts", "first_block", "end_to_end", "shallow_ensemble", "shallow_single")
    }
    assert counted == {
        "chain": 2,
        "product_of_experts": 2,
        "first_block": 1,
        "end_to_end": 2,
        "shallow_ensemble": 2,
        "shallow_single": 1,
    }


def test_the_report_does_not_depend_on_the_batch_size(job: Job, report: Report) -> None:
    other = evaluate(
        job.spec.model_copy(update={"evaluation": job.spec.evaluation.model_copy(update={"batch_size": 400})}),
        job.plan,
        job.data,
        job.root / "model",
        job.finals,
        job.runs,
        job_id="job",
        model_id="model",
    )
    assert other.quality.chain.accuracy == report.quality.chain.accuracy
    assert other.quality.product_of_experts.cross_entropy == pytest.approx(
        report.quality.product_of_experts.cross_entropy, rel=1e-4
    )


def test_evaluating_twice_gives_the_same_report(job: Job, report: Report) -> None:
    assert job.report().model_copy(update={"created_at": ""}) == report.model_copy(update={"created_at": ""})


def test_the_decode_rule_is_the_best_on_validation_rows(report: Report) -> None:
    assert report.decode == max(report.validation_accuracy, key=lambda rule: report.validation_accuracy[rule])
    assert set(report.validation_accuracy) == {"chain", "product_of_experts", "first_block"}


def test_a_tie_on_validation_rows_goes_to_the_chain(job: Job) -> None:
    black_nine = Split(np.zeros((1, 8, 8, 1), dtype=np.uint8), np.array([9]))
    found = job.report(data=Dataset(job.data.train, black_nine, job.data.test))
    assert set(found.validation_accuracy.values()) == {0.0}
    assert found.decode == "chain"


def test_without_validation_rows_the_chain_answers_and_the_report_says_so(job: Job) -> None:
    none = Split(job.data.validation.inputs[:0], job.data.validation.labels[:0])
    found = job.report(data=Dataset(job.data.train, none, job.data.test))
    assert (found.decode, found.validation_accuracy) == ("chain", {})
    assert "by default" in found.findings[0]


def test_a_job_may_say_how_its_blocks_answer(tmp_path: Path) -> None:
    options = {"depth": 2, "width": 16, "heads": 2, "patch": 4, "decode": "first_block", "bridge": "hard"}
    asked = Job(tmp_path, steps=1, architecture={"kind": "vit", "options": options}, baselines=[]).train()
    found = asked.report()
    assert found.decode == "first_block"
    assert "As the job asks, the first block alone answers" in found.findings[0]


def test_diagnoses_describe_the_plans_blocks_in_order(job: Job, report: Report) -> None:
    edges = job.plan.contract.edges
    assert [(block.sigma_max, block.sigma_min) for block in report.diagnosis] == list(itertools.pairwise(edges))
    assert [block.index for block in report.diagnosis] == [0, 1]
    assert report.diagnosis[0].agreement_with_previous is None
    assert report.diagnosis[-1].accuracy_after == report.quality.chain.accuracy
    assert report.diagnosis[0].accuracy_alone == report.quality.first_block.accuracy
    assert report.diagnosis[0].accuracy_at_sigma_max == report.diagnosis[0].accuracy_alone
    assert report.diagnosis[-1].amplification == pytest.approx(1.0)


def test_information_shares_fall_along_the_whole_range_and_add_up(report: Report) -> None:
    shares = [block.information_share for block in report.diagnosis]
    assert all(share is not None and share >= 0 for share in shares)
    assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)


def test_reading_z_without_the_image_gets_easier_towards_small_sigma(report: Report) -> None:
    first, last = report.diagnosis
    assert 0.07 < first.z_only_accuracy < last.z_only_accuracy


def test_a_trained_block_uses_its_image(report: Report) -> None:
    for block in report.diagnosis:
        assert block.true_image_accuracy > block.shuffled_image_accuracy + 0.2
    assert not [warning for warning in report.warnings if "untrained" in warning or "hardly uses" in warning]


@pytest.mark.parametrize("index", [0, 1])
def test_an_untrained_block_is_named_in_the_warnings(tmp_path: Path, index: int) -> None:
    found = Job(tmp_path, baselines=[]).train(untrained=index).report()
    assert any(warning.startswith(f"Block {index}: looks untrained") for warning in found.warnings)
    assert not any(warning.startswith(f"Block {1 - index}: looks untrained") for warning in found.warnings)


def test_z_that_gives_the_label_away_is_warned_of(tmp_path: Path) -> None:
    noise = {"p_mean": -3.0, "p_std": 1.0, "sigma_min": 0.002, "sigma_max": 80.0}
    found = Job(tmp_path, steps=5, baselines=[], noise=noise).train().report()
    assert found.diagnosis[1].z_only_accuracy > 0.9
    assert any(warning.startswith("Block 1: at its upper edge") for warning in found.warnings)


def test_memory_is_the_measured_ratio_where_the_baseline_ran(job: Job, report: Report) -> None:
    memory = report.memory
    assert memory.ratio_kind == "measured"
    rows = {row.task: row.measured for row in memory.rows}
    assert set(rows) == {"block-0", "block-1", "end_to_end", "shallow-0", "shallow-1"}
    peaks = {task: measured.peak for task, measured in rows.items() if measured and measured.peak}
    assert memory.ratio == pytest.approx(max(peaks["block-0"], peaks["block-1"]) / peaks["end_to_end"])
    assert memory.ratio == pytest.approx(job.plan.memory_ratio, rel=0.05)


def test_without_an_end_to_end_baseline_the_ratio_is_the_predicted_one(tmp_path: Path) -> None:
    found = Job(tmp_path, steps=5, baselines=[]).train().report()
    assert (found.memory.ratio_kind, found.memory.ratio) == ("predicted", found.memory.ratio_predicted)
    assert found.quality.end_to_end is None
    assert found.quality.shallow_ensemble is None
    assert any("No end-to-end baseline" in finding for finding in found.findings)


def test_costs_come_from_the_plan_the_trainings_and_the_runs(report: Report) -> None:
    (row,) = [row for row in report.cost if row.task == "block-1"]
    assert row.layer_evaluations == 100 * 64 * 1
    assert (row.wall_seconds, row.attempts, row.node) == (7.0, 2, "n1")
    assert row.samples_per_second == pytest.approx(64 / row.step_seconds_mean, rel=1e-6)
    assert 0 <= row.data_wait_share <= 1


def test_the_loss_curves_reach_the_last_step(report: Report) -> None:
    assert {curve.task for curve in report.loss} == {row.task for row in report.cost}
    assert all(curve.points[-1].step == 100 and len(curve.points) <= 200 for curve in report.loss)


def test_findings_compare_with_every_baseline_and_name_the_limits(report: Report) -> None:
    text = "\n".join(report.findings)
    for phrase in ("trained end-to-end", "shallow networks", "first block alone", "bytes of end-to-end", "one seed"):
        assert phrase in text.lower() or phrase in text, phrase


def test_foreign_data_is_not_needed_to_refuse_a_foreign_checkpoint(job: Job) -> None:
    swapped = {**job.finals, "shallow-0": job.finals["shallow-1"]}
    with pytest.raises(ContractMismatch, match="task is 'shallow-1', not 'shallow-0'"):
        job.report(finals=swapped)


def test_a_baseline_that_failed_is_missing_in_the_report_and_said_to_be(job: Job) -> None:
    finals = {name: path for name, path in job.finals.items() if name != "end_to_end"}
    report = job.report(finals=finals)
    assert report.quality.end_to_end is None
    assert report.memory.ratio_kind == "predicted"
    (said,) = (warning for warning in report.warnings if warning.startswith("end_to_end could not be trained here: "))
    assert "Nothing is said against it" in said


def test_a_baseline_that_did_not_fit_is_said_to_have_needed_so_much(job: Job) -> None:
    failed = next(run for run in job.runs if run.run.task == "end_to_end")
    runs = [run for run in job.runs if run is not failed]
    runs.append(failed.model_copy(update={"reason": Reason.HOST_OOM, "message": "can't allocate memory"}))
    finals = {name: path for name, path in job.finals.items() if name != "end_to_end"}
    report = job.report(finals=finals, runs=runs)
    needed = f"{job.plan.end_to_end.memory.total:,} bytes"
    assert any(f"end_to_end could not be trained here: host_oom, of {needed}" in said for said in report.warnings)


def test_a_missing_block_is_refused_by_name(job: Job) -> None:
    finals = {name: path for name, path in job.finals.items() if name != "block-0"}
    with pytest.raises(CheckpointInvalid, match="block-0"):
        job.report(finals=finals)


def test_an_ensemble_that_lost_a_member_is_not_scored_as_one(job: Job) -> None:
    found = job.report(finals={name: path for name, path in job.finals.items() if name != "shallow-1"})
    assert found.quality.shallow_ensemble is None
    assert found.quality.shallow_single is not None
    assert len(found.quality.shallow_single.members) == 1
    assert any("whether depth composes" in finding for finding in found.findings)


def test_no_gradient_is_kept(job: Job, report: Report) -> None:
    assert torch.is_grad_enabled()  # inference mode ended with evaluate()
    assert report.contract_hash == job.plan.contract_hash


def test_the_published_schema_is_that_of_the_report() -> None:
    published = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert published.read_text() == report_schema(), "stale: run `make schema`"
