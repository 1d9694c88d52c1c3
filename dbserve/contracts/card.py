"""The architecture card: what the control plane knows of a network without importing torch. Generated, never edited."""

from pydantic import BaseModel, JsonValue


class OptionRule(BaseModel, frozen=True):
    """A condition between options, beyond their schema. `expression` must come out true."""

    expression: str
    pointer: str  # JSON pointer inside the options, e.g. "/heads"
    message: str


class Footprint(BaseModel, frozen=True):
    """Formulas of one network: `parameters` is a count, `activations` are bytes saved for the backward pass."""

    parameters: str
    activations: str


class NoiseDefaults(BaseModel, frozen=True):
    """The architecture's best noise, as formulas of its options."""

    p_mean: str
    p_std: str
    sigma_min: str
    sigma_max: str


class ArchitectureCard(BaseModel, frozen=True):
    """One card a kind. Formulas are arithmetic expressions (see dbserve.formula) over the options and

    `layers` (of this network), `batch`, `classes`, `height`, `width_px`, `channels`, `bytes` (2 or 4 an activation)
    and the names in `definitions`, which are evaluated in order.
    """

    kind: str
    summary: str
    options_schema: dict[str, JsonValue]
    rules: tuple[OptionRule, ...]
    definitions: tuple[tuple[str, str], ...]
    code_dim: str
    noise: NoiseDefaults
    denoiser: Footprint
    baseline: Footprint
