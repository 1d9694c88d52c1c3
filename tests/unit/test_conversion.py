import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dbserve.cards import load_card
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan, TaskPlan, Vocabulary
from dbserve.conversion import read_source, stored_tensors, with_source
from dbserve.errors import ConfigInvalid
from dbserve.jobfile import read_job
from dbserve.planner import plan_job
from tests.jobs import FACTS, small_spec
from tests.networks import DIT, LLAMA, VIT, write_config, write_llama_weights
from workers.conversion import initial_weights

SOURCE = "/architecture/source"
TEXT = DataFacts(
    train_shards=("/nowhere/train.parquet",),
    test_shards=(),
    train_rows=1000,
    test_rows=200,
    validation_rows=100,
    encoding="text",
    vocabulary=Vocabulary(kind="characters", size=20, symbols=tuple("abcdefghijklmnopqrst"), sha256="0" * 64),
    sequence_length=12,
)


def spec_of(kind: str, source: Path | None, **changes: Any) -> JobSpec:
    options = changes.pop("options", {})
    architecture = {"kind": kind, "options": options, "source": None if source is None else str(source)}
    return small_spec(
        **{
            "architecture": architecture,
            "evaluation": {"baselines": ["end_to_end", "shallow_ensemble"]},
            **changes,
        }
    )


def planned(spec: JobSpec, facts: DataFacts) -> JobPlan:
    return plan_job(with_source(spec, facts), load_card(spec.architecture.kind), facts)


def refused(kind: str, source: Path, facts: DataFacts, **changes: Any) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as error:
        planned(spec_of(kind, source, **changes), facts)
    return error.value


@pytest.mark.parametrize(
    ("kind", "config", "facts", "options"),
    [
        (
            "vit",
            VIT,
            FACTS,
            {"depth": 4, "width": 16, "heads": 2, "mlp": 24, "patch": 4, "norm_eps": 1e-12, "activation": "gelu"},
        ),
        (
            "llama",
            LLAMA | {"rope_parameters": {"rope_theta": 500000, "rope_type": "default"}, "tie_word_embeddings": True},
            TEXT,
            {"depth": 4, "kv_heads": 2, "table": 20, "positions": 32, "tied": True, "rope_theta": 500_000.0},
        ),
        ("llama", LLAMA | {"rope_theta": 777.0, "rms_norm_eps": 1e-3}, TEXT, {"rope_theta": 777.0, "norm_eps": 1e-3}),
        (
            "dit",
            DIT,
            FACTS,
            {
                "depth": 4,
                "width": 16,
                "patch": 2,
                "conditioning": "adaln",
                "activation": "gelu_tanh",
                "norm_eps": 1e-5,
                "attention_norm_eps": 1e-6,
            },
        ),
    ],
)
def test_a_configuration_becomes_options_and_is_planned_in_blocks(
    tmp_path: Path, kind: str, config: dict[str, Any], facts: DataFacts, options: dict[str, Any]
) -> None:
    plan = planned(spec_of(kind, write_config(tmp_path, config)), facts)
    found = plan.contract.options
    assert {name: found[name] for name in options} == options
    assert plan.contract.layers == ((0, 2), (2, 4))


def test_what_a_configuration_leaves_out_is_what_its_library_takes(tmp_path: Path) -> None:
    vit, llama, dit = (
        read_source(str(write_config(tmp_path / name, config)))
        for name, config in (
            ("vit", {"model_type": "vit"}),
            ("llama", {"model_type": "llama"}),
            ("dit", {"_class_name": "DiTTransformer2DModel"}),
        )
    )
    assert (vit.options["width"], vit.options["depth"], vit.options["mlp"], vit.image) == (768, 12, 3072, (224, 3))
    assert (llama.options["width"], llama.options["kv_heads"], llama.tokens, llama.start_token) == (4096, 32, 32000, 1)
    assert (dit.options["width"], dit.options["depth"], dit.options["mlp"], dit.image) == (1152, 28, 4608, (32, 4))


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        (VIT, {"model_type": "bert"}, "'bert' cannot be converted; vit, llama, DiTTransformer2DModel can"),
        (VIT, {"model_type": ...}, "neither a model_type nor a _class_name"),
        (VIT, {"model_type": ..., "_class_name": "UNet2DConditionModel"}, "skip connections"),
        (VIT, {"model_type": ..., "_class_name": "UVit2DModel"}, "skip connections"),
        (VIT, {"hidden_size": 15}, "2 heads do not divide hidden_size"),
        (VIT, {"hidden_size": "16"}, "hidden_size .* whole number"),
        (VIT, {"num_hidden_layers": 0}, "num_hidden_layers .* at least 1"),
        (VIT, {"hidden_act": "relu"}, "hidden_act .*: is none that we have"),
        (VIT, {"qkv_bias": False}, "our attention has biases"),
        (VIT, {"patch_size": 3}, "does not divide image_size"),
        (VIT, {"image_size": [8, 16]}, "side of a square"),
        (VIT, {"layer_norm_eps": -1}, "above 0"),
        (LLAMA, {"attention_bias": True}, "our attention has no biases"),
        (LLAMA, {"mlp_bias": True}, "our MLP has no biases"),
        (LLAMA, {"head_dim": 8}, "hidden_size / num_attention_heads = 4"),
        (LLAMA, {"hidden_act": "gelu"}, "SwiGLU"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "not scaled"),
        (LLAMA, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "not scaled"),
        (LLAMA, {"num_key_value_heads": 3}, "does not divide num_attention_heads"),
        (LLAMA, {"tie_word_embeddings": "no"}, "true or false"),
        (DIT, {"norm_type": "ada_norm_single"}, "adaLN-zero"),
        (DIT, {"norm_elementwise_affine": True}, "no weights of their own"),
        (DIT, {"attention_bias": False}, "our attention has biases"),
        (DIT, {"activation_fn": "geglu"}, "is none that we have"),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused_with_the_reason(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigInvalid, match=reason) as error:
        read_source(str(write_config(tmp_path, base, **changes)))
    assert error.value.pointer == SOURCE


def test_pixels_that_are_normalised_in_another_way_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path, VIT)
    settings = tmp_path / "preprocessor_config.json"
    settings.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    read_source(str(tmp_path))
    settings.write_text(json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.5]}))
    with pytest.raises(ConfigInvalid, match="image_mean"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "changes", "pointer"),
    [
        ("dit", {}, "/architecture/kind"),
        ("vit", {"options": {"width": 32}}, "/architecture/options/width"),
        ("vit", {"options": {"conditioning": "adaln"}}, "/architecture/options/conditioning"),
        ("vit", {"options": {"no_such": 1}}, "/architecture/options/no_such"),
        ("vit", {"blocks": {"count": 3}}, "/blocks/count"),
        ("vit", {"blocks": {"count": 2, "branch": {"steps": 5}}}, "/blocks/branch"),
    ],
)
def test_a_job_that_contradicts_its_source_is_refused_at_the_key(
    tmp_path: Path, kind: str, changes: dict[str, Any], pointer: str
) -> None:
    assert refused(kind, write_config(tmp_path, VIT), FACTS, **changes).pointer == pointer


def test_an_option_that_says_what_the_source_says_and_one_that_it_leaves_open_are_taken(tmp_path: Path) -> None:
    spec = spec_of("vit", write_config(tmp_path, VIT), options={"width": 16, "dropout": 0.1, "codes": "orthonormal"})
    options = planned(spec, FACTS).contract.options
    assert (options["width"], options["dropout"], options["codes"]) == (16, 0.1, "orthonormal")


@pytest.mark.parametrize(
    ("shape", "pointer"), [((8, 8, 3), "/data/uri"), ((16, 16, 1), "/data/image_size"), ((8, 4, 1), "/data/image_size")]
)
def test_images_that_the_source_does_not_take_are_refused(
    tmp_path: Path, shape: tuple[int, int, int], pointer: str
) -> None:
    facts = FACTS.model_copy(update={"image_shape": shape})
    assert refused("vit", write_config(tmp_path, VIT), facts).pointer == pointer


def vocabulary(**changes: Any) -> DataFacts:
    assert TEXT.vocabulary is not None
    return TEXT.model_copy(update={"vocabulary": TEXT.vocabulary.model_copy(update=changes)})


def test_a_vocabulary_larger_than_the_table_is_refused_and_a_smaller_one_leaves_rows_unused(tmp_path: Path) -> None:
    source = write_config(tmp_path, LLAMA)
    assert refused("llama", source, vocabulary(size=21)).pointer == "/data/vocabulary"
    plan = planned(spec_of("llama", source), vocabulary(size=9))
    assert plan.contract.options["table"] == 20


def test_windows_longer_than_the_sources_positions_are_refused(tmp_path: Path) -> None:
    facts = TEXT.model_copy(update={"sequence_length": 33})
    assert refused("llama", write_config(tmp_path, LLAMA), facts).pointer == "/architecture/options/positions"


def test_where_the_source_has_a_tokenizer_the_data_must_be_cut_by_it(tmp_path: Path) -> None:
    source = write_config(tmp_path, LLAMA)
    (source / "tokenizer.json").write_text("{}")
    assert refused("llama", source, TEXT).pointer == "/data/tokenizer"
    assert refused("llama", source, vocabulary(kind="tokenizer")).pointer == "/data/tokenizer"
    own = hashlib.sha256(b"{}").hexdigest()
    planned(spec_of("llama", source), vocabulary(kind="tokenizer", sha256=own))


def test_a_source_is_a_directory_here_with_a_readable_configuration(tmp_path: Path) -> None:
    for uri, reason in (
        (str(tmp_path / "none"), "no directory"),
        ("x" * 4000, "cannot be read"),
        ("s3://bucket/network", "download"),
        (str(tmp_path), "holds no config.json"),
    ):
        with pytest.raises(ConfigInvalid, match=reason) as error:
            read_source(uri)
        assert error.value.pointer == SOURCE
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigInvalid):
            read_source(str(tmp_path))
    assert read_source(write_config(tmp_path, VIT).as_uri()).kind == "vit"


def test_a_job_file_names_its_source_from_its_own_directory(tmp_path: Path) -> None:
    text = json.dumps(spec_of("vit", Path("network")).model_dump(mode="json")).encode()
    assert read_job(text, form="json", directory=tmp_path).architecture.source == str(tmp_path / "network")


def test_a_job_without_a_source_goes_on_as_it_is() -> None:
    spec = small_spec()
    assert with_source(spec, FACTS) is spec
    plan = planned(spec, FACTS)
    assert initial_weights(spec, plan, plan.task("block-0")) is None


# Weights


@pytest.fixture
def llama(tmp_path: Path) -> tuple[JobSpec, JobPlan, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    stored = write_llama_weights(write_config(tmp_path, LLAMA))
    spec = spec_of("llama", tmp_path)
    return spec, planned(spec, TEXT), stored


def test_every_network_starts_from_its_own_layers(
    llama: tuple[JobSpec, JobPlan, dict[str, torch.Tensor]],
) -> None:
    spec, plan, stored = llama
    first_layers = {"block-0": 0, "block-1": 2, "end_to_end": 0, "shallow-0": 0, "shallow-1": 2}
    for name, first in first_layers.items():
        weights = initial_weights(spec, plan, plan.task(name))
        assert weights is not None
        layers = 4 if name == "end_to_end" else 2
        for index in range(layers):
            theirs = stored[f"model.layers.{first + index}.mlp.up_proj.weight"]
            assert torch.equal(weights[f"layers.{index}.up.weight"], theirs), name
        assert torch.equal(weights["embedding.weight"], stored["model.embed_tokens.weight"])
        assert torch.equal(weights["start"], stored["model.embed_tokens.weight"][1])
        assert torch.equal(weights["head.weight"], stored["lm_head.weight"])


def test_what_the_source_lacks_is_drawn_from_the_seed(
    llama: tuple[JobSpec, JobPlan, dict[str, torch.Tensor]],
) -> None:
    spec, plan, _ = llama
    first, again = (initial_weights(spec, plan, plan.task("block-0")) for _ in range(2))
    other = initial_weights(spec, plan, plan.task("block-1"))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first["z_projection.weight"], again["z_projection.weight"])
    assert not torch.equal(first["z_projection.weight"], other["z_projection.weight"])


def test_a_configuration_without_weights_is_planned_and_starts_afresh(tmp_path: Path) -> None:
    spec = spec_of("llama", write_config(tmp_path, LLAMA))
    plan = planned(spec, TEXT)
    task: TaskPlan = plan.task("block-0")
    assert initial_weights(spec, plan, task) is None


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    write_llama_weights(write_config(tmp_path, LLAMA))
    stored = {name: torch.ones(tensor.shape, dtype=torch.bfloat16) for name, tensor in stored_tensors(tmp_path).items()}
    save_file(stored, tmp_path / "model.safetensors")
    spec = spec_of("llama", tmp_path)
    plan = planned(spec, TEXT)
    weights = initial_weights(spec, plan, plan.task("block-0"))
    assert weights is not None
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("layers", "more", "reason"),
    [
        (3, {}, "hold no model.layers.3.input_layernorm.weight"),
        (5, {}, "more layers than config.json says"),
        (4, {"model.layers.2.self_attn.q_norm.weight": torch.ones(4)}, "our layers have nothing like it"),
    ],
)
def test_layers_that_are_not_ours_are_refused_before_anything_runs(
    tmp_path: Path, layers: int, more: dict[str, torch.Tensor], reason: str
) -> None:
    write_llama_weights(write_config(tmp_path, LLAMA), layers=layers, **more)
    with pytest.raises(ConfigInvalid, match=reason) as error:
        planned(spec_of("llama", tmp_path), TEXT)
    assert error.value.pointer == SOURCE


def test_a_layer_may_hold_what_older_libraries_stored_with_it(tmp_path: Path) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    write_llama_weights(write_config(tmp_path, LLAMA), **old)
    planned(spec_of("llama", tmp_path), TEXT)


def test_a_tensor_of_another_shape_is_refused_by_name(
    tmp_path: Path, llama: tuple[JobSpec, JobPlan, dict[str, torch.Tensor]]
) -> None:
    spec, plan, stored = llama
    save_file({**stored, "model.norm.weight": torch.ones(17)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigInvalid, match=r"norm.weight has shape \(17,\), not \(16,\)"):
        initial_weights(spec, plan, plan.task("block-0"))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (write_config(tmp_path, LLAMA) / "pytorch_model.bin").write_bytes(b"")
    assert "safetensors" in str(refused("llama", tmp_path, TEXT))


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 16, (4).to_bytes(8, "little") + b"oops"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (write_config(tmp_path, LLAMA) / "model.safetensors").write_bytes(content)
    assert refused("llama", tmp_path, TEXT).pointer == SOURCE


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (write_config(tmp_path, LLAMA) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "elsewhere" in str(refused("llama", tmp_path, TEXT))
