"""The report page and the geometry of its charts."""

import math
import re
from importlib.resources import files

import pytest

from dbserve.contracts.report import LossCurve, LossPoint, MemoryReport
from dbserve.report.costs import alike, memory_table
from dbserve.report.page import render
from dbserve.report.verdict import compare, verdict
from tests.pages import Page
from tests.reports import cost_row, diagnosed, memory_row, report, score

HOSTILE = '<script>alert("x")</script>'


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


def test_the_two_baselines_that_a_job_may_add_have_their_rows_and_their_words() -> None:
    base = report()
    more = {"shallow_long": score(0.981), "data_parallel": score(0.969)}
    text = Page(render(base.model_copy(update={"quality": base.quality.model_copy(update=more)}))).text
    assert re.search(r"One shallow network, longer a block's depth, 3 times the steps .{0,80}98.1 ±", text)
    assert re.search(r"Data-parallel 9 layers on 3 workers.{0,99}96.9 ±", text)
    assert "below one shallow network trained three times as long" in text
    assert "above the same network trained data‑parallel" in text.replace("data-parallel", "data‑parallel")
    assert "Not run: one shallow network, longer; data-parallel." not in text
    assert "Not run: one shallow network, longer; data-parallel." in Page(render(base)).text


def test_learning_rates_and_workers_have_columns_where_the_tasks_differ() -> None:
    def cost(**changes: object) -> str:
        rows = (
            cost_row("block-0", 3, learning_rate=0.001),
            cost_row("end_to_end", 9, **{"learning_rate": 1e-3, **changes}),
        )
        _, heading, after = Page(render(report(cost=rows))).text.partition("Every task Task layers steps batch ")
        assert heading
        return after

    assert "learning rate" not in cost().partition("peak")[0]
    assert "peak learning rate of 0.001." in cost()
    assert cost().startswith("layer evaluations")
    assert cost(workers=3).startswith("workers layer evaluations")
    assert cost(learning_rate=0.004).startswith("learning rate layer evaluations")
    assert "0.004" in cost(learning_rate=0.004)
    assert cost(learning_rate=0.004, workers=3).startswith("workers learning rate layer evaluations")


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
    broken = diagnosed(0, sigma_max=bad, loss_teacher=bad, loss_handoff=bad, handoff_gap=bad, amplification=bad)
    lost = score(0.9).model_copy(update={"cross_entropy": bad, "standard_error": abs(bad)})
    base = report()
    cost = base.cost[0].model_copy(update={"wall_seconds": bad, "samples_per_second": bad, "step_seconds_mean": bad})
    html = render(
        base.model_copy(
            update={
                "diagnosis": (broken, diagnosed(1, z_only_accuracy=bad, accuracy_alone=bad, sigma_min=bad)),
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
