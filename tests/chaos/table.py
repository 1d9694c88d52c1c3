"""What a soak comes to: faults by kind, jobs by end, and the columns that must all be 0."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.injector import Fault

# Everything that the service promises not to happen, in the order of the table.
BAD = (
    "jobs lost",
    "jobs made twice",
    "jobs without one end",
    "jobs with another end than theirs",
    "wishes lost",
    "events missed",
    "histories that do not add up",
    "attempts used twice",
    "stale commits",
    "rollbacks below the last commit",
    "committed checkpoints not whole",
    "digests differing",
    "left in the artefact store",
    "Redis keys leaked",
    "processes left",
    "zombies",
    "unclean ends",
)


@dataclass(frozen=True)
class Soak:
    """The result. `bad` names each offence under its column."""

    seed: int
    minutes: float
    date: str
    machine: Mapping[str, str]
    faults: tuple[Fault, ...]
    ends: Mapping[str, int]  # jobs by their status at the end
    checked: Mapping[str, int]  # what was compared, and how often
    left_out: tuple[str, ...] = ()  # kinds of fault that this machine does not allow
    bad: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __post_init__(self) -> None:
        assert set(self.bad) <= set(BAD), set(self.bad) - set(BAD)

    @property
    def injected(self) -> Counter[str]:
        """Only those that demonstrably happened."""
        return Counter(fault.kind.value for fault in self.faults if fault.evidence is not None)

    @property
    def counts(self) -> dict[str, int]:
        return {column: len(self.bad.get(column, ())) for column in BAD}

    @property
    def exit_code(self) -> int:
        return 1 if any(self.counts.values()) else 0


def markdown(soak: Soak) -> str:
    """The table as bench-output/soak.md holds it."""
    injected, missed = soak.injected, sum(fault.evidence is None for fault in soak.faults)
    machine = ", ".join(f"{name} {value}" for name, value in soak.machine.items())
    lines = [
        "# Soak",
        "",
        f"`make soak MINUTES={soak.minutes:g} SEED={soak.seed}`, {soak.date}; {machine}.",
        "",
        "| fault | injected |",
        "|---|---:|",
        *(f"| {kind} | {count} |" for kind, count in sorted(injected.items())),
        f"| **together** | **{injected.total()}** |",
        "",
        f"Drawn, but without a target when their turn came: {missed}."
        + (f" Left out on this machine: {', '.join(soak.left_out)}." if soak.left_out else ""),
        "",
        "| jobs that ended | |",
        "|---|---:|",
        *(f"| {status} | {count} |" for status, count in sorted(soak.ends.items())),
        "",
        "Checked: " + ", ".join(f"{count} {what}" for what, count in soak.checked.items()) + ".",
        "",
        "| must be 0 | |",
        "|---|---:|",
        *(f"| {column} | {count} |" for column, count in soak.counts.items()),
        "",
    ]
    offences = [f"- {column}: {offence}" for column in BAD for offence in soak.bad.get(column, ())]
    return "\n".join([*lines, *offences, *([""] if offences else [])])
