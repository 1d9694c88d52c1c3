"""The page of every family but classification: the verdict, the tables, the blocks, the samples."""

import base64
import math
import re
from typing import Any

import pytest

from dbserve.contracts.report import (
    BlockFacts,
    Comparison,
    Contestant,
    LossCurve,
    LossPoint,
    Measured,
    Metric,
    Report,
    Sample,
)
from dbserve.report.comparison import comparison_table
from dbserve.report.measures import margin, written
from dbserve.report.page import render
from dbserve.report.verdict import verdict
from tests.pages import Page
from tests.reports import (
    BITS,
    compared,
    contestant,
    cost_row,
    facts,
    generation,
    masked_text,
    next_token,
    png,
)

HOSTILE = '<script>alert("x")</script>'
LOWER = Metric(key="x", title="X", better="lower")
HIGHER = Metric(key="x", title="X", better="higher")
NEITHER = Metric(key="x", title="X")


def quality_of(report: Report) -> Comparison:
    assert isinstance(report.quality, Comparison)
    return report.quality


def changed(report: Report, **changes: Any) -> Report:
    """The report with other facts in its comparison."""
    quality = Comparison.model_validate({**dict(quality_of(report)), **changes})
    return report.model_copy(update={"quality": quality})


def shown(report: Report) -> Page:
    return Page(render(report))


def fight(ours: object, theirs: object, key: str = "end_to_end") -> Report:
    """Blocks against one baseline, in bits."""
    contestants = (contestant("blocks", "Blocks", bits=ours), contestant(key, "Rival", bits=theirs))
    return changed(masked_text(), contestants=contestants, metrics=(BITS,))


# The page


@pytest.mark.parametrize("blocks", [1, 3, 64])
@pytest.mark.parametrize("family", [masked_text, generation, next_token])
def test_the_page_of_every_family_is_well_formed_whatever_the_number_of_blocks(family: Any, blocks: int) -> None:
    page = shown(family(blocks))
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


def test_sections_come_in_the_order_of_a_reader_s_questions() -> None:
    headings = re.findall(r'<h2 id="([a-z]+)"', render(masked_text()))
    wanted = ["findings", "comparison", "samples", "blocks", "memory", "loss", "cost", "warnings", "provenance"]
    assert headings == wanted


def test_what_belongs_to_classification_alone_is_not_on_the_page() -> None:
    text = shown(masked_text()).text
    for words in ("Decode rule", "test images", "Classes", "Diagnosis", "Accuracy ±"):
        assert words not in text, words
    assert "Classes 10" in shown(generation()).text


def test_only_an_experimental_architecture_gets_the_notice_and_it_stands_before_the_verdict() -> None:
    assert "Experimental." not in shown(masked_text()).text
    text = shown(next_token()).text
    assert text.index("Experimental. No recipe of the architecture llama") < text.index("trained apart")


def test_a_level_of_masking_is_never_called_sigma() -> None:
    text = shown(masked_text()).text
    assert "mask probability t" in text
    assert "sigma" not in text
    assert "interval of sigma" in shown(generation()).text


def test_text_from_outside_stays_text() -> None:
    metric = Metric(key="bits", title=HOSTILE, unit=HOSTILE, note=HOSTILE, better="lower")
    contestants = (
        contestant("blocks", HOSTILE, note=HOSTILE, bits=(1.0, 0.1)),
        contestant("x", HOSTILE, bits=(2.0, 0.1)),
    )
    samples = (
        Sample(title=HOSTILE, caption=HOSTILE, text=f"</pre>{HOSTILE}"),
        Sample(title='" onerror="alert(1)', caption=HOSTILE, png=png()),
    )
    report = changed(
        masked_text(),
        metrics=(metric, NEITHER),
        contestants=contestants,
        samples=samples,
        block_metrics=(metric,),
    )
    page = shown(report)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 9
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_page_asks_for_nothing_outside_itself() -> None:
    for report in (masked_text(), generation(), next_token()):
        html = render(report)
        page = Page(html)
        links = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action"}]
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
        assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
        assert "url(" not in html
        assert "@import" not in html


def test_a_loss_without_a_unit_is_not_given_one_and_nobody_guesses() -> None:
    html = render(generation())
    assert "Weighted squared error" in html
    assert "nats" not in html
    assert "In nats" in render(masked_text())
    around = LossCurve(task="block-0", points=(LossPoint(step=1, loss=9.0), LossPoint(step=2, loss=0.1)))
    for report in (generation(loss=(around,)), masked_text(loss=(around,), classes=10)):
        assert "loss of guessing" not in render(report)


# The verdict


@pytest.mark.parametrize(
    ("metric", "outcome"), [(LOWER, "ahead"), (HIGHER, "behind"), (NEITHER, "open")], ids=["lower", "higher", "neither"]
)
def test_who_is_ahead_depends_on_which_way_is_better(metric: Metric, outcome: str) -> None:
    ours, theirs = Measured(value=1.0, standard_error=0.1), Measured(value=2.0, standard_error=0.1)
    found = margin(metric, ours, theirs)
    assert found is not None
    assert found.outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(1.28, "even"), (1.29, "ahead"), (0.72, "even"), (0.71, "behind")])
def test_two_standard_errors_of_the_difference_decide(value: float, outcome: str) -> None:
    ours = Measured(value=1.0, standard_error=0.1)
    found = margin(LOWER, ours, Measured(value=value, standard_error=0.1))  # 2 sqrt(0.02) = 0.283
    assert found is not None
    assert found.outcome == outcome


@pytest.mark.parametrize("error", [None, math.nan, math.inf])
def test_without_a_standard_error_nobody_is_called_ahead(error: float | None) -> None:
    ours = Measured(value=1.0, standard_error=0.001)
    found = margin(LOWER, ours, Measured(value=9.0, standard_error=error))
    assert found is not None
    assert found.outcome == "open"
    sentences = verdict(fight((1.0, 0.001), 9.0)).sentences
    assert "8.000 bits/character better than the same network trained end-to-end (no error known)" in sentences[1]


def test_bits_have_three_decimals_and_other_values_what_their_error_leaves() -> None:
    assert written(BITS, Measured(value=2.7, standard_error=0.011)) == "2.700\u00a0±\u00a00.011"
    assert written(BITS, Measured(value=2.7)) == "2.700"
    assert written(BITS, Measured(value=2.7), unit=True) == "2.700 bits/character"
    assert written(LOWER, Measured(value=22.1234, standard_error=0.6)) == "22.1\u00a0±\u00a00.6"
    assert written(LOWER, Measured(value=12345.6, standard_error=12.0)) == "12\u202f346\u00a0±\u00a012"
    assert written(LOWER, Measured(value=17.0)) == "17"
    assert written(LOWER, Measured(value=-0.00213)) == "−0.00213"
    assert written(LOWER, None) == written(LOWER, Measured(value=math.nan)) == "n/a"


def test_the_headline_tells_defeat_and_victory_and_what_is_too_close() -> None:
    sentences = verdict(masked_text()).sentences
    assert sentences[0] == (
        "Three blocks, trained apart, reach 2.713\u00a0±\u00a00.011 bits/character "
        "(Bits per character; lower is better)."
    )
    assert "0.053 bits/character worse than the same network trained end-to-end" in sentences[1]
    assert "0.018 bits/character better than one shallow network (too close to call)" in sentences[1]
    assert "0.103 bits/character worse than one shallow network trained three times as long" in sentences[1]


def test_a_difference_that_was_measured_row_by_row_decides_where_the_values_alone_cannot() -> None:
    report = masked_text()
    assert isinstance(report.quality, Comparison)

    def with_paired(one: Contestant) -> Contestant:
        return one.model_copy(update={"paired": Measured(value=-0.018, standard_error=0.004)})

    shallow = tuple(with_paired(one) if one.key == "shallow" else one for one in report.quality.contestants)
    settled = report.model_copy(update={"quality": report.quality.model_copy(update={"contestants": shallow})})
    assert "0.018 bits/character better than one shallow network (too close to call)" in verdict(report).sentences[1]
    assert "0.018 bits/character better than one shallow network, " in verdict(settled).sentences[1]


def test_the_shallow_rival_among_the_figures_is_the_hardest_to_beat() -> None:
    figure = verdict(masked_text()).figures[2]
    assert (figure.label, figure.outcome) == ("Against the longer shallow network", "behind")


def test_what_was_not_measured_is_said() -> None:
    assert "Not measured: one shallow network." in verdict(fight((2.0, 0.1), (2.1, 0.1))).sentences
    lost = verdict(fight((2.0, 0.1), math.nan)).sentences
    assert "No baseline was measured, so nothing says whether it is good." in lost
    nothing = verdict(fight(math.nan, (2.0, 0.1))).sentences
    assert nothing[0] == "Three blocks, trained apart: Bits per character was not measured."
    alone = shown(changed(masked_text(), contestants=())).text
    assert "Nothing was measured." in alone


def test_a_floor_is_no_rival() -> None:
    sentences = " ".join(verdict(generation()).sentences)
    assert "Test images against" not in sentences
    row = comparison_table(quality_of(generation())).rows[-1]
    assert (row.floor, row.against, row.best) == (True, "–", False)


# The tables


def test_every_contestant_has_every_metric_and_what_is_missing_is_named() -> None:
    table = comparison_table(quality_of(generation()))
    assert len(table.rows) == len(table.metrics) == 6
    assert all(len(row.cells) == 4 for row in table.metrics)
    assert [cell.text for cell in table.metrics[3].cells] == ["15.5\u00a0±\u00a00.5", "n/a", "n/a", "n/a"]
    assert table.metrics[0].cells[3].text == "8.58\u202fMiB"


@pytest.mark.parametrize(("theirs", "best"), [((2.69, 0.011), False), ((2.6, 0.011), True), (2.0, False)])
def test_only_a_lead_beyond_noise_is_bold(theirs: object, best: bool) -> None:
    assert comparison_table(quality_of(fight((2.71, 0.011), theirs))).rows[1].best is best


def test_nobody_is_best_of_one() -> None:
    alone = changed(masked_text(), contestants=(contestant("blocks", "Blocks", bits=(2.7, 0.01)),))
    assert not comparison_table(quality_of(alone)).rows[0].best


def test_a_metric_s_note_and_direction_can_be_read_without_a_pointer() -> None:
    text = shown(masked_text()).text
    assert "Bits per character An upper bound. Lower is better." in text
    assert "Masked accuracy Of masked characters at t = 0.5. Higher is better." in text


def test_a_value_that_was_not_measured_has_no_dot() -> None:
    page = shown(fight((2.7, 0.01), math.inf))
    assert "not measured n/a" in page.text
    assert [value for tag, name, value in page.attributes if tag == "circle" and value == "at"] == ["at"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_nan_and_no_infinity_reaches_the_page(bad: float) -> None:
    report = changed(
        generation(),
        contestants=(
            contestant("blocks", "Blocks", frechet=(bad, bad), loss=(0.2, bad), seconds=bad),
            contestant("end_to_end", "End-to-end", frechet=(20.0, bad), network=bad),
        ),
        blocks=(
            BlockFacts(index=0, sigma_min=bad, sigma_max=80.0, values={"loss": bad}),
            BlockFacts(index=1, sigma_min=0.1, sigma_max=bad, values={"loss": None}),
            BlockFacts(index=2, sigma_min=0.1, sigma_max=1.0, values={}),
        ),
    ).model_copy(update={"cost": (cost_row("block-0", 2, learning_rate=bad), cost_row("end_to_end", 6))})
    page = shown(report)
    assert not re.search(r"\b(nan|inf|infinity)\b", page.text, re.IGNORECASE)
    assert "None" not in page.text
    assert not [value for _, _, value in page.attributes if re.search(r"\b(nan|inf)\b", value, re.IGNORECASE)]
    assert page.text.count("n/a") >= 9


def test_a_comparison_without_blocks_and_samples_says_so() -> None:
    text = shown(changed(masked_text(), blocks=(), block_metrics=(), samples=())).text
    assert "Nothing was measured block by block." in text
    assert "None were made." in text


@pytest.mark.parametrize("blocks", [1, 64])
def test_every_block_has_a_row_with_its_interval(blocks: int) -> None:
    report = changed(masked_text(blocks), blocks=facts(blocks, (0.0, 1.0), {"loss": 1.5}))
    html = render(report)
    assert len(re.findall(r'<td role="cell" data-label="mask probability t">', html)) == blocks
    assert html.count("1.500") == blocks


# Samples


def test_the_white_space_of_a_text_is_kept() -> None:
    text = "\n  two\n\n\tend  \n"
    html = render(changed(masked_text(), samples=(Sample(title="s", text=text),)))
    assert f'aria-label="s">\n{text}</pre>' in html, "HTML drops the first line break after <pre>"


def test_a_picture_is_drawn_whole_pixel_by_pixel_and_described() -> None:
    sample = Sample(title="Grid", caption="one class a row", png=png(60, 30), width=1, height=1)
    page = shown(changed(generation(), samples=(sample,)))
    image = {name: value for tag, name, value in page.attributes if tag == "img"}
    assert (image["width"], image["height"]) == ("60", "30"), "what the file says counts"
    assert image["style"] == "width:600px"
    assert image["alt"] == "Grid. one class a row: 60 × 30 pixels"
    assert image["src"] == f"data:image/png;base64,{png(60, 30)}"


@pytest.mark.parametrize(
    "data",
    [
        "",
        "not base64!",
        png()[:-3] + "\n==",
        png()[:20] + "!" + png()[20:],
        base64.b64encode(b"x" * 12 + b"IHDR" + b"1" * 8).decode(),
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        png(0, 4),
        'x" onerror="alert(1)',
        "é",
    ],
)
def test_what_is_no_png_is_left_out_with_a_note(data: str) -> None:
    page = shown(changed(generation(), samples=(Sample(title="Grid", png=data),)))
    assert "img" not in page.tags
    assert "The picture is left out: its data are no PNG in base64." in page.text


def test_an_empty_sample_is_called_empty() -> None:
    samples = (Sample(title="a", text=""), Sample(title="b"))
    text = shown(changed(masked_text(), samples=samples)).text
    assert "The model wrote nothing." in text
    assert "Nothing was recorded of this sample." in text


def test_a_caption_of_any_length_is_told_whole() -> None:
    caption = "seed " * 2000 + "x" * 5000
    text = shown(changed(masked_text(), samples=(Sample(title="s", caption=caption, text="t"),))).text
    assert caption in text


def test_the_smallest_comparison_renders() -> None:
    quality = Comparison(family="next_token", primary="bits", metrics=(), contestants=())
    text = shown(compared(quality, cost=(), loss=(), findings=(), warnings=())).text
    assert "Three blocks, trained apart: bits was not measured." in text
