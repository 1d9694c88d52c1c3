"""What every verdict is made of: sentences, figures, and the words they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dbserve.contracts.report import Report
from dbserve.report.numbers import MISSING, in_words, is_number, percent

Outcome = Literal["ahead", "behind", "even", "open", "not run"]  # open: nothing says how large the noise is
SETTLED_AT = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Figure:
    """One number of the headline with what it means."""

    label: str
    value: str
    note: str
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Verdict:
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


def blocks_in_words(report: Report) -> str:
    """`Three blocks`: how a verdict begins."""
    words = "one block" if report.blocks == 1 else f"{in_words(report.blocks)} blocks"
    return words[0].upper() + words[1:]


def joined(phrases: Sequence[str]) -> str:
    """`a`, `a, and b`, `a, b, and c`."""
    return ", and ".join(phrases) if len(phrases) < 3 else ", ".join((*phrases[:-1], f"and {phrases[-1]}"))


def memory_sentence(report: Report) -> tuple[str, ...]:
    """Nothing where the ratio is no number."""
    memory = report.memory
    if not is_number(memory.ratio):
        return ()
    kind = "" if memory.ratio_kind == "measured" else ", by prediction"
    return (f"Training one block takes {_share(memory.ratio)} of the memory of training end-to-end{kind}.",)


def memory_figure(report: Report) -> Figure:
    memory = report.memory
    predicted = f"of end-to-end, measured; {_share(memory.ratio_predicted)} predicted"
    note = predicted if memory.ratio_kind == "measured" else "of end-to-end, predicted"
    return Figure("Memory of one block", _share(memory.ratio), note)


def _share(ratio: float) -> str:
    return percent(ratio, 1 if is_number(ratio) and ratio < 0.1 else 0) if is_number(ratio) else MISSING
