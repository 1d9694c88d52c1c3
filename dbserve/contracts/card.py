"""The architecture card: what the control plane knows of a network without importing torch. Generated, never edited."""

from typing import Literal

from pydantic import BaseModel, JsonValue

from dbserve.contracts.job import Partition

Family = Literal["classification", "generation", "masked_text", "next_token"]


class OptionRule(BaseModel, frozen=True):
    """A condition beyond the options' schema. `expression`, over options, data and `blocks`, must come out true.

    `pointer` is a JSON pointer inside the options ("/heads"), or from the job's root where its first key is none of
    the options ("/blocks/count", "/data/sequence_length").
    """

    expression: str
    pointer: str
    message: str


class Footprint(BaseModel, frozen=True):
    """Formulas of one network: `parameters` is a count, `activations` are bytes saved for the backward pass.

    `checkpointed` are the bytes saved where every layer is recomputed (what one layer saves while it is recomputed
    included); `hidden_matrices` counts the weights of the layers' matrices, which muon trains. None: not offered.
    """

    parameters: str
    activations: str
    checkpointed: str | None = None
    hidden_matrices: str | None = None


class NoiseDefaults(BaseModel, frozen=True):
    """The architecture's best noise, as formulas of its options. Masking has no p_mean and no p_std.

    `low_reach`: of masking, the level up to which the last block is trained at least.
    """

    process: Literal["gaussian", "masking"] = "gaussian"
    p_mean: str | None
    p_std: str | None
    sigma_min: str
    sigma_max: str
    low_reach: str = "0"


class Recipe(BaseModel, frozen=True):
    """What the architecture was found to train best with in isolation: the values of what a job leaves out."""

    partition: Partition = "equi_probability"
    overlap: float = 0.05
    lr: float = 1e-3
    ema: float = 0.0


class ArchitectureCard(BaseModel, frozen=True):
    """One card a kind. Formulas are arithmetic expressions (see dbserve.formula) over the options and

    `layers` (of this network), `batch` (rows of one forward pass: batch_size / accumulate), `bytes` (2 or 4 an
    activation), `sigma_data`, `blocks`; of images `classes`, `height`, `width_px`, `channels`; of text `vocabulary`,
    `sequence_length`; and the names in `definitions`, which are evaluated in order.
    """

    kind: str
    summary: str
    family: Family
    experimental: bool = False
    modality: Literal["images", "text"]
    recipe: Recipe = Recipe()
    options_schema: dict[str, JsonValue]
    rules: tuple[OptionRule, ...]
    definitions: tuple[tuple[str, str], ...]
    code_dim: str
    code_norm: str | None = None  # length of right-angled codes as far apart as the target codes; None: no codes
    noise: NoiseDefaults
    denoiser: Footprint
    baseline: Footprint
    # Layers that a pass of the end-to-end network runs: more than there are where some run several times.
    end_to_end_layers: str = "layers"
