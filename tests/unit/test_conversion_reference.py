"""Converted networks against the libraries they come from: what ours compute is what theirs compute, to 1e-5."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbserve.cards import load_card
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan
from dbserve.conversion import with_source
from dbserve.planner import plan_job
from tests.jobs import FACTS
from tests.unit.test_conversion import TEXT, spec_of
from workers.conversion import initial_weights
from workers.data import Dataset, Split
from workers.models.dit import DitNetwork
from workers.models.llama import LlamaDecoder
from workers.models.vit import VitClassifier
from workers.trainer import build_network, train_block

transformers: Any = pytest.importorskip("transformers")
diffusers: Any = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def lively(network: Any) -> Any:
    """With weights large enough that an error in any of them is seen."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.2)
    return network.eval()


def converted(kind: str, source: Path, facts: DataFacts, task: str) -> tuple[nn.Module, JobSpec, JobPlan]:
    spec = spec_of(kind, source)
    plan = plan_job(with_source(spec, facts), load_card(kind), facts)
    network = build_network(spec, plan, plan.task(task))
    weights = initial_weights(spec, plan, plan.task(task))
    assert weights is not None
    network.load_state_dict(weights)
    return network.eval(), spec, plan


def same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def vit(tmp_path: Path) -> tuple[Any, Path]:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-3,
        id2label=dict(enumerate(FACTS.class_names)),
    )
    theirs = lively(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    return theirs, tmp_path


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def llama(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, Path]:
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        vocab_size=20,
        max_position_embeddings=32,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        tie_word_embeddings=request.param,
    )
    theirs = lively(transformers.LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    return theirs, tmp_path


@pytest.fixture
def dit(tmp_path: Path) -> tuple[Any, Path]:
    theirs = lively(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=1,
            num_layers=4,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_eps=1e-3,
        )
    )
    theirs.save_pretrained(tmp_path)
    return theirs, tmp_path


def test_the_end_to_end_vit_gives_hugging_faces_logits(vit: tuple[Any, Path]) -> None:
    theirs, source = vit
    ours, _, _ = converted("vit", source, FACTS, "end_to_end")
    assert isinstance(ours, VitClassifier)
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        same(ours(images), theirs(pixel_values=images).logits)


def test_a_vit_block_runs_its_own_layers_of_the_source(vit: tuple[Any, Path]) -> None:
    theirs, source = vit
    block, _, _ = converted("vit", source, FACTS, "block-1")
    x = torch.randn(5, 5, 16)
    with torch.no_grad():
        hidden = x
        for layer in theirs.vit.layers[2:]:
            hidden = layer(hidden)
        first, last = block.get_submodule("trunk.layers.0"), block.get_submodule("trunk.layers.1")
        same(last(first(x)), hidden[:, :1])  # the last one updates the cls token alone


def test_the_end_to_end_llama_gives_hugging_faces_logits(llama: tuple[Any, Path]) -> None:
    theirs, source = llama
    ours, _, _ = converted("llama", source, TEXT, "end_to_end")
    assert isinstance(ours, LlamaDecoder)
    tokens = torch.randint(20, (3, 12))
    begun = torch.cat((torch.ones(3, 1, dtype=torch.int64), tokens[:, :-1]), dim=1)  # 1: its bos_token_id
    with torch.no_grad():
        same(ours(tokens), theirs(begun).logits)


def test_a_llama_block_runs_its_own_layers_of_the_source(llama: tuple[Any, Path]) -> None:
    theirs, source = llama
    block, _, _ = converted("llama", source, TEXT, "block-1")
    assert isinstance(block, LlamaDecoder)
    x = torch.randn(3, 12, 16)
    with torch.no_grad():
        place = torch.arange(12)[None]
        rotation = theirs.model.rotary_emb(x, place)
        hidden = x
        for layer in theirs.model.layers[2:]:
            hidden = layer(hidden, position_embeddings=rotation, position_ids=place)
        same(block.read(x).hidden, theirs.model.norm(hidden))


@pytest.mark.parametrize("task", ["block-1", "end_to_end"])
def test_dit_layers_give_the_hidden_states_of_diffusers(dit: tuple[Any, Path], task: str) -> None:
    theirs, source = dit
    ours, _, _ = converted("dit", source, FACTS, task)
    assert isinstance(ours, DitNetwork)
    x, steps, labels = torch.randn(3, 16, 16), torch.tensor([7, 300, 999]), torch.tensor([0, 4, 9])
    first = 2 if task == "block-1" else 0
    hidden, mine = x, x
    with torch.no_grad():
        for index, layer in enumerate(ours.layers, start=first):
            block = theirs.transformer_blocks[index]
            condition = block.norm1.emb(steps, labels, hidden_dtype=torch.float32)
            hidden = block(hidden, timestep=steps, class_labels=labels)
            mine = layer(mine, condition)
    same(mine, hidden)


def test_dit_patches_and_positions_are_those_of_diffusers(dit: tuple[Any, Path]) -> None:
    theirs, source = dit
    ours, _, _ = converted("dit", source, FACTS, "block-0")
    assert isinstance(ours, DitNetwork)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        cut = torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
        same(ours.embedding(cut) + ours.positions, theirs.pos_embed(images))


def test_a_configuration_of_the_library_alone_is_planned_too(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    facts = FACTS.model_copy(update={"image_shape": (224, 224, 3)})
    spec = spec_of("vit", tmp_path, blocks={"count": 4})
    plan = plan_job(with_source(spec, facts), load_card("vit"), facts)
    assert plan.contract.layers == ((0, 3), (3, 6), (6, 9), (9, 12))
    assert plan.end_to_end.parameters > 85_000_000


@pytest.mark.parametrize("task", ["block-1", "end_to_end"])
def test_training_goes_on_from_the_sources_weights(llama: tuple[Any, Path], task: str) -> None:
    theirs, source = llama
    _, spec, plan = converted("llama", source, TEXT, task)
    stream = np.arange(200 * 12, dtype=np.int64) % 20
    data = Dataset(*(Split(inputs=stream.reshape(200, 12), labels=None, tokens=stream) for _ in range(3)))
    start = initial_weights(spec, plan, plan.task(task))
    assert start is not None
    steps = train_block(spec, plan, plan.task(task), data, initial_weights=start)
    reports = [next(steps) for _ in range(3)]
    weights = reports[-1].capture().weights
    steps.close()
    first = 2 if task == "block-1" else 0
    source_weight = theirs.model.layers[first].mlp.up_proj.weight.detach()
    moved = (weights["layers.0.up.weight"] - source_weight).abs().max().item()
    assert 0.0 < moved < 0.05
    assert all(np.isfinite(report.loss) for report in reports)
