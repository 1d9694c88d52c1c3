"""The report page and the geometry of its charts."""

import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from dbserve.contracts.plan import MemoryPlan
from dbserve.contracts.report import (
    BlockDiagnosis,
    CostRow,
    LossCurve,
    LossPoint,
    MemoryReport,
    MemoryRow,
    Quality,
    Report,
    Score,
    ShallowSingle,
)
from dbserve.contracts.status import MemoryBytes
from dbserve.report.costs import alike, memory_table
from dbserve.report.page import render
from dbserve.report.verdict import compare, verdict

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "br", "line", "rect", "circle", "path", "use"}


class Page(HTMLParser):
    """Collects what the tests ask about, and insists that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def score(accuracy: float, rows: int = 450) -> Score:
    error = math.sqrt(accuracy * (1 - accuracy) / rows)
    return Score(
        accuracy=accuracy,
        standard_error=error,
        cross_entropy=0.1,
        expected_calibration_error=0.02,
        layer_evaluations=6,
    )


def memory_row(task: str, layers: int, *, measured: bool = True) -> MemoryRow:
    mib = 1024**2 * layers
    plan = MemoryPlan(parameters=mib, gradients=mib, optimizer=2 * mib, activations=4 * mib, total=8 * mib)
    held = MemoryBytes(parameters=mib, gradients=mib, optimizer=2 * mib, activations=5 * mib)
    return MemoryRow(task=task, predicted=plan, measured=held if measured else None)


def block(index: int, **changes: float) -> BlockDiagnosis:
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


def report(*, blocks: int = 3, baselines: bool = True, **changes: object) -> Report:
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
    cost = tuple(
        CostRow(
            task=task,
            layers=layers[task],
            steps=1000,
            batch_size=64,
            layer_evaluations=64_000 * layers[task],
            wall_seconds=30.0,
            step_seconds_mean=0.03,
            samples_per_second=2100.0,
            data_wait_share=0.01,
            bytes_per_worker=None,
            attempts=1,
            node=None,
        )
        for task in tasks
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
        "cost": cost,
        "loss": tuple(LossCurve(task=task, points=curve) for task in tasks),
        "diagnosis": tuple(block(index) for index in range(blocks)),
        "warnings": ("block 2 may ignore the image",),
        "findings": ("One block needs a third of the memory.", "End-to-end is 0.4 pp better."),
        "versions": {"torch": "2.13.0"},
        "hardware": "2 cores",
    }
    return Report.model_validate({**whole, **changes})


# The page


@pytest.mark.parametrize("blocks", [1, 3, 64])
@pytest.mark.parametrize("baselines", [True, False])
def test_the_page_is_well_formed_whatever_the_size_of_the_job(blocks: int, baselines: bool) -> None:
    page = Page(render(report(blocks=blocks, baselines=baselines)))
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table")


def test_sections_come_in_the_order_of_a_reader_s_questions() -> None:
    headings = re.findall(r'<h2 id="([a-z]+)"', render(report()))
    assert headings == ["findings", "accuracy", "memory", "loss", "cost", "diagnosis", "warnings", "provenance"]


def test_every_way_of_answering_has_its_row_with_its_accuracy_and_error() -> None:
    text = Page(render(report())).text
    for name, accuracy in [
        ("Chain", "97.4"),
        ("Product of experts", "97.2"),
        ("First block alone", "96.0"),
        ("End-to-end", "97.8"),
        ("Shallow ensemble", "97.3"),
        ("One shallow network", "95.5"),
    ]:
        assert re.search(rf"{name} .{{0,120}}{accuracy} ± \d\.\d %", text), name


def test_baselines_that_were_not_run_are_named_so_and_claimed_nowhere() -> None:
    text = Page(render(report(baselines=False))).text
    assert text.count("not run") >= 5
    assert "No baseline was trained" in text
    assert "by prediction" in text
    assert "not measured" in text


def test_findings_and_warnings_are_all_told() -> None:
    text = Page(render(report())).text
    assert "One block needs a third of the memory." in text
    assert "End-to-end is 0.4 pp better." in text
    assert "block 2 may ignore the image" in text


def test_text_from_outside_stays_text() -> None:
    changes = dict.fromkeys(("job_name", "dataset", "hardware", "architecture", "model_id"), HOSTILE)
    html = render(report(**changes, findings=(HOSTILE,), warnings=(HOSTILE,), versions={HOSTILE: HOSTILE}))
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8


def test_a_hostile_task_name_cannot_leave_an_attribute() -> None:
    curve = LossCurve(task='"><img src=x>', points=(LossPoint(step=1, loss=1.0),))
    rows = (memory_row('"><img src=x>', 3),)
    memory = MemoryReport(ratio=0.3, ratio_kind="measured", ratio_predicted=0.3, rows=rows)
    assert "img" not in Page(render(report(loss=(curve,), memory=memory))).tags


def test_the_page_asks_for_nothing_outside_itself() -> None:
    html = render(report())
    page = Page(html)
    links = [value for _, name, value in page.attributes if name in {"src", "href", "xlink:href", "srcset", "action"}]
    assert all(value.startswith("#") for value in links)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html


def test_every_link_on_the_page_has_its_target() -> None:
    page = Page(render(report()))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href":
            assert value[1:] in ids
        if name == "aria-labelledby":
            assert value in ids


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_nan_and_no_infinity_reaches_the_page(bad: float) -> None:
    broken = block(0, sigma_max=bad, loss_teacher=bad, loss_handoff=bad, handoff_gap=bad, amplification=bad)
    lost = score(0.9).model_copy(update={"cross_entropy": bad, "standard_error": abs(bad)})
    base = report()
    cost = base.cost[0].model_copy(update={"wall_seconds": bad, "samples_per_second": bad, "step_seconds_mean": bad})
    html = render(
        base.model_copy(
            update={
                "diagnosis": (broken, block(1, z_only_accuracy=bad, accuracy_alone=bad, sigma_min=bad)),
                "quality": base.quality.model_copy(update={"chain": lost, "end_to_end": lost}),
                "memory": base.memory.model_copy(update={"ratio": bad, "ratio_predicted": bad}),
                "cost": (cost,),
                "loss": (LossCurve(task="block-0", points=(LossPoint(step=1, loss=bad), LossPoint(step=2, loss=1.0))),),
                "swap_accuracy": bad,
            }
        )
    )
    page = Page(html)
    assert not re.search(r"\b(nan|inf|infinity|None)\b", page.text, re.IGNORECASE)
    assert not [value for _, _, value in page.attributes if re.search(r"\b(nan|inf)\b", value, re.IGNORECASE)]


def test_a_report_of_an_empty_job_still_renders() -> None:
    empty = MemoryReport(ratio=0.3, ratio_kind="predicted", ratio_predicted=0.3, rows=())
    html = render(report(memory=empty, cost=(), loss=(), diagnosis=(), findings=(), warnings=(), versions={}))
    assert "Not recorded." in Page(html).text


def _palettes() -> list[dict[str, str]]:
    css = files("dbserve").joinpath("report/templates/report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    return [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", part)) for part in (light, dark)]


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_colour_schemes_are_on_the_page_and_legible() -> None:
    assert "prefers-color-scheme: dark" in render(report())
    for palette in _palettes():
        for name in ("ink", "soft", "link", "alert", "ours"):
            assert _contrast(palette[name], palette["paper"]) >= 4.5, name
        for name in ("theirs", "parameters", "gradients", "optimizer", "activations"):
            assert _contrast(palette[name], palette["paper"]) >= 3, name


# The verdict


def test_a_difference_within_two_standard_errors_is_even() -> None:
    assert compare(score(0.974), score(0.978)).outcome == "even"
    assert compare(score(0.974, 100_000), score(0.978, 100_000)).outcome == "behind"
    assert compare(score(0.978, 100_000), score(0.974, 100_000)).outcome == "ahead"


def test_the_verdict_speaks_of_the_rule_that_validation_chose() -> None:
    sentences = " ".join(verdict(report(decode="first_block")).sentences)
    assert "96.0" in sentences
    assert "97.4" not in sentences


def test_what_was_lost_stands_in_the_verdict() -> None:
    quality = report().quality.model_copy(update={"end_to_end": score(0.99, 9000), "chain": score(0.9, 9000)})
    sentence = verdict(report(quality=quality)).sentences[1]
    assert sentence.startswith("That is 9.0\u202fpp below the same network trained end-to-end,")


def test_many_tasks_of_one_size_share_a_bar_and_a_different_one_keeps_its_own() -> None:
    rows = [memory_row(f"block-{index}", 2 if index == 5 else 1) for index in range(20)]
    assert [len(group) for group in alike(rows)] == [5, 1, 14]
    table = memory_table(report(blocks=64))
    assert table is not None
    assert len(table.bars) == 3
    assert len(table.details) == 129
