"""The tables of docs/scale.md that are made of the model alone: python -m benchmarks.scaling.paper"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.figures import short
from benchmarks.scaling import model
from benchmarks.scaling.model import Fleet, production
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan, Vocabulary
from dbserve.planner import load_card, plan_job

SIZES = (10, 100, 1000)
BLOCKS = 8  # of a job, as production() has it
DAY = 86_400.0
DATASET = 150e9  # bytes, decoded
STARTING_SECONDS = 60.0  # of a lost attempt's successor
PRICE = 2.0  # of one GPU for an hour, in whatever currency


@dataclass(frozen=True)
class Example:
    """A network that is cut into BLOCKS blocks."""

    what: str
    plan: JobPlan
    averaged: bool


def examples() -> tuple[Example, ...]:
    image = DataFacts(
        train_shards=("train.parquet",),
        test_shards=("test.parquet",),
        train_rows=1_281_167,
        test_rows=50_000,
        validation_rows=0,
        image_shape=(32, 32, 4),
        encoding="float32",
        class_names=tuple(map(str, range(1000))),
    )
    text = DataFacts(
        train_shards=("train.parquet",),
        test_shards=("test.parquet",),
        train_rows=10_000_000,
        test_rows=10_000,
        validation_rows=0,
        encoding="text",
        vocabulary=Vocabulary(kind="bytes", size=256, sha256="0"),
        sequence_length=1024,
    )
    return (
        Example(
            "DiT, 24 layers of width 1,024, averaged",
            _planned("dit", {"depth": 24, "width": 1024, "heads": 16, "patch": 2}, image, ema=0.9999),
            averaged=True,
        ),
        Example(
            "masked diffusion, 24 layers of width 1,024",
            _planned("mdm", {"depth": 24, "width": 1024, "heads": 16}, text, ema=0.0),
            averaged=False,
        ),
        Example(
            "causal decoder, 32 layers of width 2,048",
            _planned("llama", {"depth": 32, "width": 2048, "heads": 16}, text, ema=0.0),
            averaged=False,
        ),
    )


def _planned(kind: str, options: dict[str, object], facts: DataFacts, *, ema: float) -> JobPlan:
    spec = JobSpec.model_validate(
        {
            "name": "paper",
            "architecture": {"kind": kind, "options": options},
            "data": {"uri": "file:///nowhere.parquet"},
            "blocks": {"count": BLOCKS},
            "training": {"steps": 100_000, "batch_size": 256, "ema": ema},
        }
    )
    return plan_job(spec, load_card(kind), facts)


def control_plane() -> str:
    """Rates, times and memory of 10, 100 and 1,000 blocks."""
    rows: list[tuple[str, Callable[[Fleet], str]]] = [
        ("jobs that run, and wait", lambda fleet: f"{fleet.jobs} + {fleet.waiting_jobs}"),
        ("nodes of 8", lambda fleet: f"{fleet.nodes}"),
        ("heartbeats /s", lambda fleet: short(model.heartbeats(fleet))),
        ("checkpoints /s", lambda fleet: short(model.checkpoints(fleet))),
        ("changes of a task /s", lambda fleet: short(model.events(fleet))),
        ("a look at nothing new, ms", lambda fleet: short(1000 * model.tick_seconds(fleet))),
        ("commands of Redis /s", lambda fleet: short(model.commands(fleet))),
        ("Redis, cores", lambda fleet: short(model.redis_cores(fleet))),
        ("reconciler, cores", lambda fleet: short(model.reconciler_cores(fleet))),
        ("Redis after a day, MB", lambda fleet: short(model.redis_bytes(fleet, DAY) / 1e6)),
        *(
            (f"of that, {what}, MB", lambda fleet, kind=kind: _of_a_day(fleet, kind))
            for kind, what in (("events", "events"), ("logs", "log lines"), ("course", "courses"))
        ),
    ]
    return _table(("blocks", *(f"{size:,}" for size in SIZES)), [_row(what, of) for what, of in rows])


def _row(what: str, of: Callable[[Fleet], str]) -> tuple[str, ...]:
    return what, *(of(production(size)) for size in SIZES)


def _of_a_day(fleet: Fleet, kind: str) -> str:
    return short(model.bytes_of(model.counts_of(fleet, DAY))[kind] / 1e6)


def data_plane() -> str:
    """Bytes that checkpoints and gradients take."""
    head = (
        *("network, cut into 8", "parameters, largest block / whole", "a checkpoint of it, GB"),
        *(f"checkpoints of {size:,} blocks, MB/s" for size in SIZES),
        *("gradients of 8 blocks, bytes a step", "of 8 data-parallel workers, GB a step"),
    )
    return _table(head, [_example(each) for each in examples()])


def _example(example: Example) -> tuple[str, ...]:
    blocks, whole = example.plan.blocks, example.plan.end_to_end
    largest = max(blocks, key=lambda block: block.parameters)
    one = model.checkpoint_bytes(largest, averaged=example.averaged)
    return (
        example.what,
        f"{largest.parameters / 1e6:,.0f} M / {whole.parameters / 1e6:,.0f} M",
        short(one / 1e9),
        *(short(model.checkpoint_bandwidth(production(size), one) / 1e6) for size in SIZES),
        "0",
        short(BLOCKS * model.gradient_bytes(whole, BLOCKS) / 1e9),
    )


def shards() -> str:
    """Bytes that are read of a data set of DATASET bytes."""
    head = ("blocks", *(f"{size:,}" for size in SIZES))
    rows = [
        (
            "read once a node, TB",
            *(short(model.shard_bytes(production(n), DATASET, shared=True) / 1e12) for n in SIZES),
        ),
        (
            "read once a worker, TB",
            *(short(model.shard_bytes(production(n), DATASET, shared=False) / 1e12) for n in SIZES),
        ),
    ]
    return _table(head, rows)


def money() -> str:
    """GPU-hours, and what they cost at PRICE."""
    head = ("blocks, a day each", "GPU-hours", "done again after losses", f"cost at {PRICE:g} an hour")
    return _table(head, [_bill(production(size)) for size in SIZES])


def _bill(fleet: Fleet) -> tuple[str, ...]:
    hours, again = model.gpu_hours(fleet), model.repeated_hours(fleet, STARTING_SECONDS)
    return f"{fleet.workers:,}", f"{hours:,.0f}", short(again), f"{model.cost(hours + again, PRICE):,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = (control_plane, data_plane, shards, money)


def main() -> None:
    print("\n\n".join(table() for table in TABLES))


if __name__ == "__main__":
    main()
