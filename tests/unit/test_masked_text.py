"""The examination of masked diffusion, by networks whose answers are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbserve.contracts.plan import JobPlan
from dbserve.contracts.report import Comparison
from dbserve.datasets.vocabulary import characters_vocabulary
from dbserve.planner import load_card, plan_job
from tests.jobs import FACTS, small_spec
from workers.data import Dataset, Split
from workers.evaluate import EXAMINATIONS
from workers.evaluation import masked_text
from workers.evaluation.entrants import Entrant, Part
from workers.evaluation.masked_bound import bounds_of
from workers.evaluation.masked_samples import hole_of, known_words, made
from workers.evaluation.subject import Examined, Subject
from workers.evaluation.texts import distinct

CPU = torch.device("cpu")
LENGTH = 32
CHANCES = torch.tensor([0.1, 0.5, 0.3, 0.1])  # of " ", "a", "b", "c"
ENTROPY = -float((CHANCES * CHANCES.log()).sum())
VOCABULARY = characters_vocabulary(" abc")


class Known(nn.Module):
    """Answers with the same chances everywhere, whatever it sees; as a MaskedTransformer does, but with no weights."""

    vocabulary = 4
    mask = 4

    def __init__(self, chances: Tensor) -> None:
        super().__init__()
        self.log_p = chances.log()
        self.seen: list[Tensor] = []

    @property
    def table(self) -> Tensor:
        return torch.eye(4)

    def features(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens.clone())
        return self.log_p.expand(*tokens.shape, 4)

    def logits_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.features(tokens)[places]


def windows(rows: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.multinomial(CHANCES, rows * LENGTH, replacement=True, generator=draws).view(rows, LENGTH)


def entrant(key: str, *networks: nn.Module, edges: tuple[float, ...] = (1.0, 1 / LENGTH)) -> Entrant:
    return Entrant(key, key, tuple(Part((network,), 1) for network in networks), edges)


def truth() -> Known:
    return Known(CHANCES)


def uniform() -> Known:
    return Known(torch.full((4,), 0.25))


def test_the_bound_of_the_true_model_is_the_entropy_and_of_a_guess_ln_of_the_vocabulary() -> None:
    text = windows(400)
    found = bounds_of(
        [entrant("truth", truth()), entrant("guess", uniform())], text, (1.0, 1 / LENGTH), batch_size=64, device=CPU
    )
    frequencies = float(-CHANCES.log()[text].mean())
    assert found.whole("truth").mean().item() == pytest.approx(frequencies, rel=0.01)
    assert found.whole("guess").mean().item() == pytest.approx(math.log(4), rel=1e-5)
    assert found.whole("guess").std().item() < 1e-5, "a constant cross-entropy has no scatter"
    difference = found.less("guess", "truth")
    assert difference.settled
    assert difference.value == pytest.approx(math.log(4) - frequencies, rel=0.05)


@pytest.mark.parametrize("count", [2, 5])
def test_the_bound_of_one_network_does_not_depend_on_how_the_range_is_cut(count: int) -> None:
    edges = tuple(float(edge) for edge in np.linspace(1.0, 1 / LENGTH, count + 1))
    text = windows(300)
    cut = bounds_of([entrant("truth", truth())], text, edges, batch_size=100, device=CPU)
    whole = bounds_of([entrant("truth", truth())], text, (1.0, 1 / LENGTH), batch_size=100, device=CPU)
    assert cut.whole("truth").mean().item() == pytest.approx(whole.whole("truth").mean().item(), rel=0.01)
    sums = [cut.interval("truth", block) for block in range(count)]
    torch.testing.assert_close(torch.stack(sums).sum(dim=0), cut.whole("truth"))


def test_all_contestants_see_the_same_masks_each_block_in_its_own_range_alone() -> None:
    networks = [truth() for _ in range(4)]
    edges = (1.0, 0.5, 1 / LENGTH)
    blocks, whole, other = entrant("blocks", *networks[:2], edges=edges), networks[2], networks[3]
    text = windows(50)
    bounds_of([blocks, entrant("a", whole), entrant("b", other)], text, edges, batch_size=20, device=CPU)
    assert len(whole.seen) == len(other.seen) == len(networks[0].seen) + len(networks[1].seen)
    for ours, theirs, first in zip(whole.seen, other.seen, networks[0].seen + networks[1].seen, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, first)
    shares = [torch.cat([(tokens == 4).float().mean(dim=1) for tokens in one.seen]) for one in networks[:2]]
    assert shares[0].mean().item() == pytest.approx(0.76, abs=0.02)
    assert shares[1].mean().item() == pytest.approx(0.28, abs=0.03)


def test_an_ensemble_answers_with_the_mean_of_probabilities() -> None:
    mixed = Entrant("mixed", "", (Part((truth(), uniform()), 1),), (1.0, 1 / LENGTH))
    single = entrant("single", Known((CHANCES + 0.25) / 2))
    found = bounds_of([mixed, single], windows(20), (1.0, 1 / LENGTH), batch_size=8, device=CPU)
    torch.testing.assert_close(found.whole("mixed"), found.whole("single"))


def test_samples_have_no_mask_keep_what_was_given_and_are_as_varied_as_their_model() -> None:
    text = windows(60)
    edges = (1.0, 0.5, 1 / LENGTH)
    texts = made(entrant("blocks", truth(), truth(), edges=edges), text, mask=4, steps=12, device=CPU)
    hole = hole_of(LENGTH)
    assert (hole.start, hole.stop) == (8, 24)
    assert int(texts.free.max()) < 4
    assert int(texts.filled.max()) < 4
    visible = torch.ones(LENGTH, dtype=torch.bool)
    visible[hole] = False
    assert torch.equal(texts.filled[:, visible], text[:, visible])
    assert texts.recovered(text) == pytest.approx(float((CHANCES**2).sum()), abs=0.05)
    dull = made(entrant("dull", Known(torch.tensor([1e-9, 1.0, 1e-9, 1e-9]))), text, mask=4, steps=3, device=CPU)
    assert dull.distinct(3) == pytest.approx(1 / (60 * 30))
    spread, measure = texts.distinct(3), distinct(text, 3)
    assert spread is not None
    assert measure is not None
    assert spread == pytest.approx(measure, rel=0.15)


def test_distinct_n_counts_n_grams_within_rows_once() -> None:
    rows = torch.tensor([[1, 2, 1, 2], [2, 1, 2, 3]])
    assert distinct(rows, 1) == 3 / 8
    assert distinct(rows, 2) == 3 / 6  # 12, 21, 23; the rows' ends are not joined
    assert distinct(rows, 5) is None


def test_known_words_leave_out_what_the_windows_cut() -> None:
    assert known_words(["ca bab ac b", "a b"], frozenset({"bab", "b"})) == 0.5
    assert known_words(["ab", "a b"], frozenset()) is None


class FakeSubject(Subject):
    """A subject whose baselines are at hand instead of on disk."""

    networks: dict[str, nn.Module]

    def baselines(self) -> dict[str, nn.Module]:
        return self.networks


def text_split(rows: int, seed: int) -> Split:
    return Split.of_text(windows(rows, seed).flatten().numpy().astype(np.uint16), LENGTH)


def examined(*blocks: nn.Module, samples: int = 8, **networks: nn.Module) -> Examined:
    facts = FACTS.model_copy(
        update={
            "image_shape": None,
            "class_names": (),
            "encoding": "text",
            "vocabulary": VOCABULARY,
            "sequence_length": LENGTH,
        }
    )
    wanted = [name for name in ("end_to_end", "shallow_ensemble") if networks]
    settings: dict[str, Any] = {
        "architecture": {"kind": "mdm", "options": {"depth": 2 * len(blocks), "width": 8, "heads": 2}},
        "data": {"uri": "builtin:digits", "sequence_length": LENGTH},
        "blocks": {"count": len(blocks)},
        "evaluation": {"baselines": wanted, "samples": samples, "sampling_steps": 10},
    }
    spec = small_spec(**settings)
    plan: JobPlan = plan_job(spec, load_card("mdm"), facts)
    plan = plan.model_copy(
        update={"tasks": tuple(t for t in plan.tasks if not t.steps or t.name in networks or t.name[:5] == "block")}
    )
    data = Dataset(train=text_split(400, 1), validation=text_split(4, 2), test=text_split(120, 3))
    subject = FakeSubject(spec=spec, plan=plan, data=data, blocks=blocks, finals={}, device=CPU)
    object.__setattr__(subject, "networks", networks)
    with torch.inference_mode():
        return masked_text.examine(subject)


def comparison(found: Examined) -> Comparison:
    assert isinstance(found.quality, Comparison)
    return found.quality


def test_everybody_is_measured_the_blocks_first_and_the_references_last() -> None:
    found = examined(truth(), truth(), end_to_end=truth(), **{"shallow-0": truth(), "shallow-1": uniform()})
    quality = comparison(found)
    keys = [one.key for one in quality.contestants]
    assert keys == ["blocks", "end_to_end", "shallow", "shallow_ensemble", "neighbour", "unigram", "floor"]
    assert quality.primary == "bound"
    assert quality.metrics[0].unit == "bits/character"
    values = {one.key: one.values for one in quality.contestants}
    assert values["blocks"]["bound"].value == pytest.approx(ENTROPY / math.log(2), rel=0.02)
    assert values["blocks"]["bound"].standard_error is not None
    assert values["blocks"]["bound"].value < values["shallow_ensemble"]["bound"].value
    assert {"distinct_1", "distinct_2", "distinct_3", "filled_distinct_2", "recovered"} <= set(values["end_to_end"])
    assert "bound" not in values["floor"]
    assert {metric.key for metric in quality.metrics} >= set(values["blocks"])
    for block in quality.blocks:
        assert set(block.values) == {metric.key for metric in quality.block_metrics}
    total = sum(block.values["blocks"] or 0.0 for block in quality.blocks) / math.log(2)
    assert total == pytest.approx(values["blocks"]["bound"].value)
    assert all(sample.text for sample in quality.samples)


def test_equal_networks_are_level_and_no_winner_is_called() -> None:
    found = examined(truth(), truth(), end_to_end=truth())
    sentences = [sentence for sentence in found.findings if "end-to-end" in sentence]
    assert "level with" in sentences[0]
    assert "won" not in sentences[1]
    assert "lost" not in sentences[1]


def test_a_lost_comparison_is_said_with_its_figures_and_its_ranges() -> None:
    found = examined(truth(), uniform(), end_to_end=truth())
    sentences = [sentence for sentence in found.findings if "end-to-end" in sentence]
    assert "worse than the same network trained end-to-end" in sentences[0]
    assert sentences[1].count("(lost)") == 1
    assert sentences[1].count("(level)") == 1
    assert any("Block 1: looks untrained" in warning for warning in found.warnings)


def test_a_block_that_its_neighbour_beats_is_told_on() -> None:
    found = examined(Known(CHANCES * 0.7 + 0.075), truth())
    assert any(warning.startswith("Block 0:") for warning in found.warnings)
    assert "No end-to-end baseline was trained" in " ".join(found.findings)


def test_without_samples_nothing_is_made_and_one_block_has_no_neighbour() -> None:
    quality = comparison(examined(truth(), samples=0))
    assert [one.key for one in quality.contestants] == ["blocks", "unigram"]
    assert [metric.key for metric in quality.metrics] == ["bound"]
    assert quality.samples == ()


def test_the_family_is_examined_here() -> None:
    assert EXAMINATIONS["masked_text"] is masked_text.examine
