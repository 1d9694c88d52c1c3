"""The examination of models of the next token, on small networks and on distributions that are known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbserve.contracts.plan import JobPlan, Vocabulary
from dbserve.contracts.report import Comparison
from dbserve.planner import plan_job
from tests.jobs import small_spec
from tests.plans import TEXT
from workers.data import Dataset, Split
from workers.evaluation.next_token import examine, table_losses
from workers.evaluation.next_token_words import Found, findings, warnings
from workers.evaluation.predictors import Predictor, mean_of_networks, window_losses, written
from workers.evaluation.subject import Examined, Subject
from workers.evaluation.token_blocks import Blocks, plain_writer, predictors_of
from workers.models import ARCHITECTURES
from workers.models.llama import LLAMA

CPU = torch.device("cpu")
SIZE, LENGTH = 7, 12
SYMBOLS = tuple("abcdefg")
FACTS = TEXT.model_copy(
    update={
        "sequence_length": LENGTH,
        "vocabulary": Vocabulary(kind="characters", size=SIZE, symbols=SYMBOLS, sha256="0"),
    }
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def stream(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Each token is mostly the one before it plus one."""
    jumps = np.random.default_rng(seed).choice([1, 3], size=count, p=[0.9, 0.1])
    return (np.cumsum(jumps) % SIZE).astype(np.uint16)


def plan_of(kind: str = "llama", **options: Any) -> JobPlan:
    many = kind == "llama"
    sizes = {"depth": 4, "width": 16, "heads": 2} if many else {"width": 16, "heads": 2}
    spec = small_spec(
        architecture={"kind": kind, "options": {**sizes, **options}},
        blocks={"count": 2 if many else 1},
        evaluation={"baselines": ["end_to_end", "shallow_ensemble"] if many else ["end_to_end"], "samples": 3},
    )
    return plan_job(spec, ARCHITECTURES[kind].card(), FACTS)


class TrainedJob(Subject):
    """A subject whose baselines are not read from files."""

    def baselines(self) -> dict[str, nn.Module]:
        torch.manual_seed(9)
        contract, depth = self.plan.contract, self.plan.contract.layers[-1][1]
        architecture = ARCHITECTURES[contract.architecture]
        layers = {"end_to_end": depth} | {f"shallow-{index}": depth // 2 for index in range(len(self.blocks))}
        names = {task.name for task in self.plan.tasks}
        return {name: architecture.baseline(contract, count).eval() for name, count in layers.items() if name in names}


def subject_of(plan: JobPlan, blocks: tuple[nn.Module, ...] | None = None) -> Subject:
    torch.manual_seed(1)
    contract = plan.contract
    network = ARCHITECTURES[contract.architecture]
    made = blocks or tuple(network.denoiser(contract, stop - start).eval() for start, stop in contract.layers)
    spec = small_spec(
        architecture={"kind": contract.architecture, "options": {}},
        blocks={"count": len(made)},
        evaluation={"baselines": ["end_to_end", "shallow_ensemble"], "samples": 3, "rows": 20},
    )
    split = Split.of_text(stream(3_000), LENGTH)
    test = Split.of_text(stream(600, seed=1), LENGTH)
    return TrainedJob(spec, plan, Dataset(split, test, test), made, dict[str, Path](), CPU)


def comparison_of(examined: Examined) -> Comparison:
    assert isinstance(examined.quality, Comparison)
    return examined.quality


def blocks_of(plan: JobPlan, steps: int = 5) -> Blocks:
    made = [LLAMA.denoiser(plan.contract, stop - start).eval() for start, stop in plan.contract.layers]
    for network in made:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Blocks(tuple(made), plan.contract.edges, steps)


def text(rows: int = 3) -> Tensor:
    return torch.randint(SIZE, (rows, LENGTH))


@torch.inference_mode()
def test_the_report_compares_blocks_baselines_and_counted_tables() -> None:
    examined = examine(subject_of(plan_of()))
    quality = comparison_of(examined)
    by_key = {one.key: one for one in quality.contestants}
    wanted = ["blocks", "chain", "end_to_end", "shallow", "shallow_ensemble", "bigram", "unigram", "floor"]
    assert list(by_key) == wanted
    assert quality.contestants[0].ours
    for key in wanted[:-1]:
        assert 0 < by_key[key].values["bits"].value < 5
    assert by_key["blocks"].layer_evaluations == 4
    assert by_key["chain"].layer_evaluations == 8  # the clean streams, and one step of each block
    assert by_key["shallow_ensemble"].layer_evaluations == 4
    # Fresh networks know nothing, which is ln 7; counting knows more.
    assert by_key["blocks"].values["bits"].value == pytest.approx(math.log2(SIZE), abs=0.2)
    assert by_key["bigram"].values["bits"].value < 1.0
    assert any("no better than pairs" in warning for warning in examined.warnings)
    assert any(sample.title == "Held-out text" and sample.text for sample in quality.samples)
    assert {"bits", "bound", "distinct_3", "seconds"} <= {metric.key for metric in quality.metrics}
    shown = {metric.key for metric in quality.block_metrics}
    assert all(set(block.values) == shown for block in quality.blocks)
    assert len(quality.blocks) == 2


@torch.inference_mode()
def test_recurrent_networks_are_examined_by_the_same_road() -> None:
    plan = plan_of("recurrent")
    quality = comparison_of(examine(subject_of(plan)))
    keys = [one.key for one in quality.contestants]
    assert keys[0] == "blocks"
    assert {"single_run", "runs_2", "runs_8", "end_to_end", "bigram"} <= set(keys)  # the job's own number is 4


@torch.inference_mode()
@pytest.mark.parametrize("decode", ["average", "chain"])
def test_writing_with_caches_predicts_what_reading_everything_predicts(decode: str) -> None:
    blocks = blocks_of(plan_of(kv_heads=1))
    tokens = text()
    predictor = predictors_of(blocks, (2, 2), decode)[0]
    write, whole = predictor.begin(3, CPU), predictor.predict(tokens)
    for place in range(LENGTH):
        log_p = write(tokens[:, place - 1] if place else None)
        torch.testing.assert_close(log_p, whole[:, place], rtol=1e-3, atol=1e-3)
    assert predictor.key == "blocks"


@torch.inference_mode()
def test_plain_networks_with_caches_write_what_they_predict() -> None:
    contract = plan_of().contract
    networks = [LLAMA.baseline(contract, 2).eval() for _ in range(2)]
    tokens, predict = text(), mean_of_networks(networks)
    cached = plain_writer(networks, 3)
    rereading = Predictor("x", "x", 2, predict).begin(3, CPU)
    for place in range(LENGTH):
        latest = tokens[:, place - 1] if place else None
        wanted = predict(tokens)[:, place]
        torch.testing.assert_close(cached(latest), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rereading(latest), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("decode", ["average", "chain"])
def test_a_decode_is_a_distribution_of_the_next_token_given_the_past_alone(decode: str) -> None:
    predictor = predictors_of(blocks_of(plan_of()), (2, 2), decode)[0]
    tokens, changed = text(), text()
    changed[:, :5] = tokens[:, :5]
    torch.testing.assert_close(
        predictor.predict(tokens)[:, :6], predictor.predict(changed)[:, :6], rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(predictor.predict(tokens).exp().sum(dim=2), torch.ones(3, LENGTH), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_integral_of_a_perfect_denoiser_comes_out_at_the_exact_loss() -> None:
    blocks = blocks_of(plan_of())
    windows = text(400)
    exact = window_losses(lambda tokens: blocks.average(blocks.read(tokens)), windows, SIZE, CPU)
    gap = blocks.wrapped_bound(windows, CPU).total.double().mean(dim=1) - exact
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20


@torch.inference_mode()
def test_a_block_that_ignores_the_past_is_warned_about() -> None:
    plan = plan_of()
    blocks = blocks_of(plan)
    for parameter in blocks.networks[1].layers.parameters():
        nn.init.zeros_(parameter)
    nn.init.zeros_(blocks.networks[1].embedding.weight)
    facts = blocks.facts(text(30), CPU)
    assert abs(facts[1]["shuffled"] - facts[1]["teacher"]) < 1e-6
    assert abs(facts[0]["shuffled"] - facts[0]["teacher"]) > 1e-5
    assert facts[1]["z_only"] < facts[0]["z_only"]  # lower noise tells more
    heeding = {**facts[0], "shuffled": facts[0]["teacher"] + 1.0}
    said = [warning for warning in warnings(found_of(facts=(heeding, facts[1]))) if "past" in warning]
    assert [warning.split(":")[0] for warning in said] == ["Block 1"]


def test_writing_draws_from_what_is_predicted() -> None:
    log_p = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0]).log()
    one = Predictor("x", "x", 1, lambda tokens: log_p.expand(*tokens.shape, SIZE))
    texts = written(one, rows=50, length=20, device=CPU)
    assert texts.tokens.shape == (50, 20)
    assert set(texts.tokens.unique().tolist()) == {0, 1}  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    assert float(texts.tokens.double().mean()) == pytest.approx(0.5, abs=0.08)
    torch.testing.assert_close(texts.tokens, written(one, rows=50, length=20, device=CPU).tokens)


def test_counted_tables_score_as_their_frequencies_say() -> None:
    train = Split.of_text(np.array([0, 1] * 50, dtype=np.uint16), 10)
    windows = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])
    share = torch.tensor([51, 51, 1, 1, 1, 1, 1]).double() / 107
    alone = table_losses(train, windows, SIZE, order=1)
    torch.testing.assert_close(alone, torch.full((2,), -math.log(51 / 107), dtype=torch.float64))
    pairs = table_losses(train, windows, SIZE, order=2)
    up, down, same = (50 + share[0]) / 51, (49 + share[0]) / 51, share[0] / 51
    wanted = -torch.stack((share[0] * up * down * up, share[0] * same**3)).log() / 4
    torch.testing.assert_close(pairs, wanted)


def found_of(**changes: Any) -> Found:
    values: dict[str, Any] = {
        "losses": {
            "blocks": torch.full((20,), 1.0) + 0.01 * torch.randn(20),
            "end_to_end": torch.full((20,), 0.8) + 0.01 * torch.randn(20),
            "shallow": torch.tensor([0.5, 1.5]).repeat(10),
            "bigram": torch.full((20,), 2.0),
            "unigram": torch.full((20,), 3.0),
        },
        "titles": {"blocks": "Assembled blocks, averaged", "end_to_end": "End-to-end", "shallow": "Shallow"},
        "unit": "bits/character",
        "bound": None,
        "wrapped": None,
        "facts": (),
        "distinct": {},
        "seconds": {},
        "layers": {},
    }
    return Found(**(values | changes))


def test_a_loss_is_called_a_loss_and_what_is_within_the_noise_is_level() -> None:
    said = list(findings(found_of()))
    assert "are worse than" in next(line for line in said if "end-to-end" in line)
    assert "are level with" in next(line for line in said if "one plain network of a block's layers" in line)


def test_without_an_end_to_end_network_nothing_is_said_of_what_isolation_costs() -> None:
    losses = found_of().losses
    del losses["end_to_end"]
    assert any("nothing here says what isolation costs" in line for line in findings(found_of(losses=losses)))


def test_an_integral_that_is_off_is_warned_about() -> None:
    found = found_of()
    exact = found.losses["blocks"]
    assert not list(warnings(found_of(losses=found.losses, wrapped=exact + 0.1 * torch.randn(20))))
    assert any("integral is off" in line for line in warnings(found_of(losses=found.losses, wrapped=exact + 0.3)))
