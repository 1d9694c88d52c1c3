"""Reports of every family, made by hand: what a page, a terminal and a schema are tried on."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from dbserve.contracts.plan import MemoryPlan
from dbserve.contracts.report import (
    BlockDiagnosis,
    BlockFacts,
    Comparison,
    Contestant,
    CostRow,
    LossCurve,
    LossPoint,
    Measured,
    MemoryReport,
    MemoryRow,
    Metric,
    Quality,
    Report,
    Sample,
    Score,
    ShallowSingle,
)
from dbserve.contracts.status import MemoryBytes

BITS = Metric(key="bits", title="Bits per character", unit="bits/character", better="lower", note="an upper bound")
FRECHET = Metric(
    key="frechet", title="Fréchet distance", better="lower", note="between features of 1000 test images and 1000 made"
)


def score(accuracy: float, rows: int = 450) -> Score:
    return Score(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / rows),
        cross_entropy=0.1,
        expected_calibration_error=0.02,
        layer_evaluations=6,
    )


def memory_row(task: str, layers: int, *, measured: bool = True) -> MemoryRow:
    mib = 1024**2 * layers
    plan = MemoryPlan(parameters=mib, gradients=mib, optimizer=2 * mib, activations=4 * mib, total=8 * mib)
    held = MemoryBytes(parameters=mib, gradients=mib, optimizer=2 * mib, activations=5 * mib)
    return MemoryRow(task=task, predicted=plan, measured=held if measured else None)


def diagnosed(index: int, **changes: float) -> BlockDiagnosis:
    figures = {
        "accuracy_alone": 0.9,
        "accuracy_at_sigma_max": 0.8,
        "accuracy_after": 0.95,
        "z_only_accuracy": 0.2,
        "shuffled_image_accuracy": 0.15,
        "true_image_accuracy": 0.97,
        "loss_teacher": 0.1,
        "loss_handoff": 0.15,
        "handoff_gap": 0.05,
        "amplification": 0.4,
    }
    ends = {"sigma_min": 80.0 / 10 ** (index + 1), "sigma_max": 80.0 / 10**index}
    return BlockDiagnosis(index=index, **{**ends, **figures, **changes})


def cost_row(task: str, layers: int, **changes: Any) -> CostRow:
    row = CostRow(
        task=task,
        layers=layers,
        steps=1000,
        batch_size=64,
        layer_evaluations=64_000 * layers,
        wall_seconds=30.0,
        step_seconds_mean=0.03,
        samples_per_second=2100.0,
        data_wait_share=0.01,
        bytes_per_worker=layers * 9 * 1024**2,
        attempts=1,
        node=None,
    )
    return row.model_copy(update=changes)


def report(*, blocks: int = 3, baselines: bool = True, **changes: object) -> Report:
    """Classification, with all baselines of old or with none."""
    tasks = [f"block-{index}" for index in range(blocks)]
    if baselines:
        tasks += ["end_to_end", *(f"shallow-{index}" for index in range(blocks))]
    layers = {task: 3 * blocks if task == "end_to_end" else 3 for task in tasks}
    quality = Quality(
        chain=score(0.974),
        product_of_experts=score(0.972),
        first_block=score(0.96),
        end_to_end=score(0.978) if baselines else None,
        shallow_ensemble=score(0.973) if baselines else None,
        shallow_single=ShallowSingle(**score(0.955).model_dump(), members=(0.95, 0.955, 0.96)) if baselines else None,
    )
    curve = tuple(LossPoint(step=10 * step, loss=2.3 / step) for step in range(1, 101))
    whole: dict[str, object] = {
        "job_id": "job-1",
        "job_name": "digits",
        "model_id": "job-1",
        "contract_hash": "ab" * 32,
        "created_at": "2026-01-01T00:00:00Z",
        "architecture": "vit",
        "dataset": "builtin:digits",
        "train_rows": 1200,
        "validation_rows": 147,
        "test_rows": 450,
        "classes": 10,
        "blocks": blocks,
        "depth": 3 * blocks,
        "seed": 7,
        "steps_per_task": 1000,
        "trunk_steps": 0,
        "decode": "chain",
        "validation_accuracy": {"chain": 0.97},
        "quality": quality,
        "memory": MemoryReport(
            ratio=0.352,
            ratio_kind="measured" if baselines else "predicted",
            ratio_predicted=0.346,
            rows=tuple(memory_row(task, layers[task], measured=baselines) for task in tasks),
        ),
        "cost": tuple(cost_row(task, layers[task]) for task in tasks),
        "loss": tuple(LossCurve(task=task, points=curve) for task in tasks),
        "diagnosis": tuple(diagnosed(index) for index in range(blocks)),
        "warnings": ("block 2 may ignore the image",),
        "findings": ("One block needs a third of the memory.", "End-to-end is 0.4 pp better."),
        "versions": {"torch": "2.13.0"},
        "hardware": "2 cores",
    }
    return Report.model_validate({**whole, **changes})


def compared(quality: Comparison, **changes: object) -> Report:
    """A report of another family than classification. `quality` brings the blocks, the rest is common."""
    given: dict[str, object] = {"decode": None, "validation_accuracy": {}, "diagnosis": (), "classes": None}
    return report(**{**given, "quality": quality, **changes})


def contestant(key: str, title: str = "", layers: int | None = 3, note: str = "", **values: object) -> Contestant:
    """Values by metric key: a number, or (number, standard error)."""
    measured = {
        name: Measured(value=value[0], standard_error=value[1]) if isinstance(value, tuple) else Measured(value=value)
        for name, value in values.items()
    }
    return Contestant(
        key=key, title=title or key, note=note, ours=key == "blocks", layer_evaluations=layers, values=measured
    )


def facts(blocks: int, ends: tuple[float, float], values: Mapping[str, float | None]) -> tuple[BlockFacts, ...]:
    """Blocks that share the range (low, high) in equal parts; block 0 owns the upper end."""
    low, high = ends
    edges = [high - (high - low) * index / blocks for index in range(blocks + 1)]
    return tuple(
        BlockFacts(index=index, sigma_min=edges[index + 1], sigma_max=edges[index], values=dict(values))
        for index in range(blocks)
    )


def png(width: int = 8, height: int = 4) -> str:
    """A true picture, in base64: a grey ramp."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes((x * 255 // width + 9 * y) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def masked_text(blocks: int = 3, **changes: object) -> Report:
    metrics = (
        BITS,
        Metric(
            key="accuracy", title="Masked accuracy", unit="%", better="higher", note="of masked characters at t = 0.5"
        ),
        Metric(key="distinct", title="Distinct trigrams", note="share, over all samples; of the test text it is 0.41"),
    )
    contestants = (
        contestant(
            "blocks",
            "Assembled blocks",
            2,
            "each in its interval",
            bits=(2.713, 0.011),
            accuracy=(41.2, 0.3),
            distinct=0.39,
        ),
        contestant(
            "end_to_end",
            "End-to-end",
            6,
            "one network, 6 layers",
            bits=(2.66, 0.011),
            accuracy=(43.0, 0.3),
            distinct=0.4,
        ),
        contestant("shallow", "One shallow network", 2, bits=(2.731, 0.012), accuracy=(40.9, 0.3), distinct=0.37),
        contestant("shallow_long", "One shallow network, longer", 2, "3 times the steps", bits=(2.61, 0.011)),
    )
    block_metrics = (
        Metric(
            key="loss", title="Loss", unit="nats/character", better="lower", note="cross-entropy of masked characters"
        ),
        Metric(key="share", title="Share of the bound", unit="%", note="of the bits that the block accounts for"),
    )
    text = "ROMEO:\nWhat, shall we the sun of thee, and so\n   The world is not the man that he hath been,\n\n" * 12
    quality = Comparison(
        family="masked_text",
        primary="bits",
        metrics=metrics,
        contestants=contestants,
        block_metrics=block_metrics,
        blocks=facts(blocks, (0.002, 1.0), {"loss": 1.62, "share": 33.0}),
        samples=(
            Sample(title="Assembled blocks", caption="seed 0, 50 steps, 1 200 characters", text=text),
            Sample(title="End-to-end", caption="seed 0, 50 steps", text="First Citizen:\n\tWe are accounted poor."),
        ),
    )
    return compared(
        quality,
        **{"architecture": "mdm", "dataset": "tinyshakespeare", "blocks": blocks, "job_name": "shakespeare", **changes},
    )


def generation(blocks: int = 3, **changes: object) -> Report:
    metrics = (
        FRECHET,
        Metric(key="loss", title="Denoising loss", better="lower", note="over 256 noise levels of the range"),
        Metric(key="seconds", title="Time to sample", unit="s", better="lower", note="256 images, 50 Euler steps"),
        Metric(key="network", title="Weights", unit="bytes", better="lower"),
    )
    contestants = (
        contestant(
            "blocks", "Assembled blocks", 100, frechet=(22.1, 0.6), loss=(0.2113, 0.0009), seconds=5.8, network=9e6
        ),
        contestant(
            "end_to_end", "End-to-end", 300, frechet=(24.0, 0.7), loss=(0.2051, 0.0008), seconds=17.3, network=9e6
        ),
        contestant(
            "shallow", "One shallow network", 100, frechet=(43.2, 0.9), loss=(0.231, 0.001), seconds=5.7, network=3e6
        ),
        contestant("shallow_long", "One shallow network, longer", 100, "3 times the steps", frechet=(15.5, 0.5)),
        contestant("data_parallel", "Data-parallel", 300, "6 layers on 3 workers", frechet=(54.1, 1.1)),
        contestant(
            "floor", "Test images against train images", None, "what the data score themselves", frechet=(0.51, 0.04)
        ),
    )
    quality = Comparison(
        family="generation",
        primary="frechet",
        metrics=metrics,
        contestants=contestants,
        block_metrics=(Metric(key="loss", title="Denoising loss", better="lower"),),
        blocks=facts(blocks, (0.002, 80.0), {"loss": 0.21}),
        samples=(
            Sample(
                title="Assembled blocks", caption="classes 0 to 9, one a row", png=png(140, 70), width=140, height=70
            ),
            Sample(title="Test images", caption="of the same classes", png=png(140, 70), width=140, height=70),
        ),
    )
    given: dict[str, object] = {"architecture": "dit", "classes": 10, "blocks": blocks, "job_name": "fashion"}
    layers = {"end_to_end": 6, "shallow-0": 2, "shallow_long": 2, "data_parallel": 6}
    rows = [cost_row(f"block-{index}", 2, learning_rate=0.001) for index in range(blocks)]
    rows += [cost_row(task, size, learning_rate=0.0005 * size) for task, size in layers.items()]
    rows[-1] = rows[-1].model_copy(update={"workers": 3})
    memory = MemoryReport(
        ratio=0.36,
        ratio_kind="measured",
        ratio_predicted=0.35,
        rows=tuple(memory_row(row.task, row.layers) for row in rows),
    )
    curve = tuple(LossPoint(step=10 * step, loss=0.2 + 1 / step) for step in range(1, 101))
    loss = tuple(LossCurve(task=row.task, points=curve) for row in rows)
    return compared(quality, **{**given, "cost": tuple(rows), "memory": memory, "loss": loss, **changes})


def next_token(blocks: int = 3, **changes: object) -> Report:
    contestants = (
        contestant("blocks", "Assembled blocks", 6, bits=(2.41, 0.01), nats=(1.671, 0.007)),
        contestant("end_to_end", "End-to-end", 6, bits=(2.11, 0.01), nats=(1.463, 0.007)),
    )
    quality = Comparison(
        family="next_token",
        primary="bits",
        metrics=(BITS, Metric(key="nats", title="Cross-entropy", unit="nats/token", better="lower")),
        contestants=contestants,
        block_metrics=(Metric(key="gap", title="Handoff gap", unit="nats", better="lower"),),
        blocks=facts(blocks, (0.01, 10.0), {"gap": None}),
        samples=(Sample(title="Greedy", text="the the the"),),
    )
    given: dict[str, object] = {"architecture": "llama", "experimental": True, "blocks": blocks}
    return compared(quality, **{**given, **changes})


def every_family() -> Sequence[Report]:
    return (report(), generation(), masked_text(), next_token())
