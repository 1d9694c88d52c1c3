"""Architecture cards: what the control plane knows of a network, and what follows from it by arithmetic. No torch.

The .json files beside this one are written by the networks (`make cards`), never by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import ceil
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import extend  # pyright: ignore[reportUnknownVariableType]
from pydantic import JsonValue

from dbserve.contracts.card import ArchitectureCard, Footprint, OptionRule
from dbserve.contracts.job import TrainingSpec
from dbserve.contracts.plan import MemoryPlan, NetworkPlan
from dbserve.errors import ConfigInvalid
from dbserve.formula import FormulaError, Value, evaluate, evaluate_number

MAX_PARAMETERS = 10**12  # of one network; beyond it a job is a typing error
OPTIONS_POINTER = "/architecture/options"


@cache
def list_cards() -> tuple[ArchitectureCard, ...]:
    """Every architecture this version knows, by kind."""
    found = [entry for entry in (files("dbserve") / "cards").iterdir() if entry.name.endswith(".json")]
    cards = (ArchitectureCard.model_validate_json(entry.read_text(encoding="utf-8")) for entry in found)
    return tuple(sorted(cards, key=lambda card: card.kind))


def load_card(kind: str) -> ArchitectureCard:
    """The card of an architecture; ConfigInvalid at /architecture/kind when there is none."""
    for card in list_cards():
        if card.kind == kind:
            return card
    known = ", ".join(card.kind for card in list_cards())
    raise ConfigInvalid(f"architecture {kind!r} is not known; known: {known}", "/architecture/kind")


def _is_integer(_checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Integers are written as integers: 6.0 heads are refused here, as the network's own strict Options would refuse them.
_OptionsValidator = cast(
    type[Draft202012Validator],
    extend(
        Draft202012Validator,
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
    ),
)


def complete_options(given: Mapping[str, JsonValue], card: ArchitectureCard) -> dict[str, JsonValue]:
    """The options with defaults filled in; ConfigInvalid with the pointer of one that the card's schema refuses."""
    properties = cast(dict[str, dict[str, JsonValue]], card.options_schema["properties"])
    for key in given:
        if key not in properties:
            raise ConfigInvalid(
                f"{card.kind} has no option {key!r}; it has: {', '.join(sorted(properties))}",
                f"{OPTIONS_POINTER}/{_escaped(key)}",
            )
    validator: Any = _OptionsValidator(card.options_schema)
    for error in validator.iter_errors(dict(given)):
        path = "".join(f"/{_escaped(str(part))}" for part in error.absolute_path)
        name = ".".join(map(str, error.absolute_path)) or "options"
        why = "; or: ".join(part.message for part in error.context) or error.message  # context: of anyOf, each way
        raise ConfigInvalid(f"{name}: {why}", OPTIONS_POINTER + path)
    return {name: given.get(name, rule.get("default")) for name, rule in properties.items()}


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


@dataclass(frozen=True)
class Sizes:
    """A card's formulas over one job's options, data and training; ConfigInvalid where a rule of the card is broken.

    `names` holds what the formulas may name (see ArchitectureCard), except `layers` and the card's definitions.
    """

    card: ArchitectureCard
    names: Mapping[str, Value]
    training: TrainingSpec
    shares: int = 1  # into which parameters, gradients and optimizer state are cut

    def __post_init__(self) -> None:
        for rule in self.card.rules:
            if not evaluate(rule.expression, self.names):
                raise ConfigInvalid(rule.message.format_map(dict(self.names)), self._pointer(rule))

    def number(self, expression: str, *, layers: int) -> float | int:
        """The value of a formula for a network of that many layers."""
        names = {**self.names, "layers": layers}
        for name, definition in self.card.definitions:
            names[name] = evaluate(definition, names)
        names["code_dim"] = evaluate(self.card.code_dim, names)
        return evaluate_number(expression, names)

    def network(self, footprint: Footprint, layers: tuple[int, int]) -> NetworkPlan:
        """Size of a network in training, on each of the workers that have a share of it: 4 bytes a parameter for itself
        and 4 for its gradient. A layer's whole, gathered for as long as it is computed with, comes on top of a share.

        Under `optimizer`: AdamW's two moments, 8 bytes a parameter, or muon's one (4) for the weights that it trains
        and 8 for the others; and 4 bytes a parameter for the averaged weights where they are kept. ConfigInvalid where
        the architecture does not offer what the training asks for.
        """
        count = layers[1] - layers[0]
        parameters = self._whole(footprint.parameters, count)
        if parameters > MAX_PARAMETERS:
            raise ConfigInvalid(
                f"a network of {count} layers would have {parameters:.3g} parameters; at most {MAX_PARAMETERS:.0e} "
                "are planned",
                OPTIONS_POINTER,
            )
        moments = 8 * parameters
        if self.training.optimizer == "muon":
            if footprint.hidden_matrices is None:
                raise ConfigInvalid(f"{self.card.kind} does not say which weights muon trains", "/training/optimizer")
            moments -= 4 * self._whole(footprint.hidden_matrices, count)
        averaged = 4 * parameters if self.training.ema else 0
        activations = self._whole(self._saved(footprint), count)
        held, kept = ceil(4 * parameters / self.shares), ceil((moments + averaged) / self.shares)
        memory = MemoryPlan(
            parameters=held,
            gradients=held,
            optimizer=kept,
            activations=activations,
            total=2 * held + kept + activations,
        )
        return NetworkPlan(layers=layers, parameters=parameters, memory=memory)

    def _saved(self, footprint: Footprint) -> str:
        if not self.training.activation_checkpointing:
            return footprint.activations
        if footprint.checkpointed is None:
            raise ConfigInvalid(f"{self.card.kind} cannot recompute its layers", "/training/activation_checkpointing")
        return footprint.checkpointed

    def _whole(self, formula: str, layers: int) -> int:
        try:
            return int(self.number(formula, layers=layers))
        except FormulaError as error:
            raise ConfigInvalid(f"a network of {layers} layers has no size here: {error}", OPTIONS_POINTER) from error

    def _pointer(self, rule: OptionRule) -> str:
        """Where a broken rule is said to be broken: see OptionRule."""
        first = rule.pointer.split("/")[1]
        inside = first in cast(Mapping[str, JsonValue], self.card.options_schema["properties"])
        return OPTIONS_POINTER + rule.pointer if inside else rule.pointer
