"""The report as one HTML page that needs nothing else: no script, no font, no request."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from dbserve.contracts.report import Comparison, Quality, Report
from dbserve.report.comparison import block_headings, block_how, block_table, comparison_table, noise_name
from dbserve.report.costs import KINDS, MOST_ROWS, TextRow, cost_table, loss_groups, memory_table
from dbserve.report.curves import loss_chart
from dbserve.report.diagnosis import chain, handoffs, image_use, intervals
from dbserve.report.numbers import count, duration, percent, significant
from dbserve.report.quality import quality_table
from dbserve.report.samples import shown_samples
from dbserve.report.verdict import RULES, validation_note, verdict

_ENVIRONMENT = Environment(
    loader=PackageLoader("dbserve.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(report: Report) -> str:
    """The page. Every text of the report is escaped; figures that are missing or not finite are named as such."""
    quality = report.quality
    return _ENVIRONMENT.get_template("report.html.j2").render(
        report=report,
        verdict=verdict(report),
        **(_classification(report, quality) if isinstance(quality, Quality) else _comparison(report, quality)),
        memory=memory_table(report),
        memory_kinds=KINDS,
        memory_ratio=_memory_ratio(report),
        cost=cost_table(report),
        provenance=provenance(report),
        summary=_summary(report),
        many_rows=MOST_ROWS,
        dense=report.blocks > MOST_ROWS,
    )


def _classification(report: Report, quality: Quality) -> dict[str, object]:
    return {
        "quality": quality_table(report, quality),
        "intervals": intervals(report),
        "image_use": image_use(report),
        "handoffs": handoffs(report),
        "chain": chain(report),
        "swap": "" if report.swap_accuracy is None else percent(report.swap_accuracy),
        "loss": loss_chart(loss_groups(report), report.classes),
        "loss_words": "In nats",
    }


def _comparison(report: Report, comparison: Comparison) -> dict[str, object]:
    squares = comparison.family == "generation"
    return {
        "quality": None,
        "comparison": comparison_table(comparison),
        "noise": noise_name(report),
        "blocks": block_table(report, comparison),
        "block_headings": block_headings(report, comparison),
        "block_how": block_how(report, comparison),
        "samples": shown_samples(comparison),
        "loss": loss_chart(loss_groups(report), None, "" if squares else "nats"),
        "loss_words": "Weighted squared error of the denoised image, without a unit" if squares else "In nats",
    }


def provenance(report: Report) -> tuple[TextRow, ...]:
    """All that is needed to tell this run from another."""
    rule = report.decode
    chosen = () if rule is None else tuple(filter(None, (RULES[rule], validation_note(report, rule))))
    rows = [
        ("Job", (f"{report.job_name}", report.job_id)),
        ("Model", (report.model_id,)),
        ("Contract", (report.contract_hash,)),
        ("Written", (report.created_at,)),
        ("Dataset", (report.dataset,)),
        (
            "Rows",
            (
                f"{count(report.train_rows)} train",
                f"{count(report.validation_rows)} validation",
                f"{count(report.test_rows)} test",
            ),
        ),
        *([("Classes", (count(report.classes),))] if report.classes is not None else []),
        ("Architecture", (report.architecture, f"{report.depth} layers in {report.blocks} blocks")),
        ("Steps", (f"{count(report.steps_per_task)} per task", f"{count(report.trunk_steps)} of a shared trunk")),
        ("Seed", (str(report.seed),)),
        *([("Decode rule", chosen)] if chosen else []),
        ("Hardware", (report.hardware,)),
        ("Versions", tuple(f"{name} {version}" for name, version in sorted(report.versions.items()))),
    ]
    return tuple(TextRow(name, cells) for name, cells in rows)


def _memory_ratio(report: Report) -> str:
    ratio, predicted = significant(report.memory.ratio), significant(report.memory.ratio_predicted)
    if report.memory.ratio_kind == "measured":
        return f"Largest block over end-to-end: {ratio} measured, {predicted} predicted."
    return f"Largest block over end-to-end: {predicted} predicted. It could not be measured: end-to-end was not run."


def _summary(report: Report) -> tuple[str, ...]:
    blocks = "1 block" if report.blocks == 1 else f"{report.blocks} blocks"
    longest = max((row.wall_seconds for row in report.cost), default=None)
    return (
        report.dataset,
        f"{report.architecture}, {report.depth} layers in {blocks}",
        f"{count(report.steps_per_task)} steps per task",
        *([f"after {count(report.trunk_steps)} of a shared trunk"] if report.trunk_steps else []),
        f"seed {report.seed}",
        *([f"longest task {duration(longest)}"] if longest is not None else []),
    )
