"""5 Learning: whether blocks learn."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import BLOCK_LEGEND, COUNT, RED, UNITLESS, Query, bars, lines
from dashboards.queries import gauge

EVALUATED = gauge("dbserve_block_eval_loss", labels=("sigma_band",))


def build() -> Dashboard:
    return board(
        "learning",
        "Learning",
        "Loss of each block, on held-out data by noise level, gradient norms, learning rates, steps that were not "
        "finite.",
        [Section("Loss", _loss()), Section("Optimizer", _optimizer())],
    )


def _loss() -> list[Builder[Panel]]:
    return [
        lines(
            "Training loss",
            "Of the last step, so it is noisy. Blocks own different noise levels: compare a block with itself, and "
            "with the same block of another job.",
            UNITLESS,
            Query(gauge("dbserve_block_loss"), BLOCK_LEGEND),
            least=None,
        ),
        lines(
            "Held-out loss by noise level",
            "Measured at each checkpoint, in at most five bands of sigma. Falls first at low noise. A band that "
            "rises while the training loss falls is overfitted.",
            UNITLESS,
            Query(EVALUATED, f"{BLOCK_LEGEND} sigma {{{{sigma_band}}}}"),
            least=None,
        ),
        bars(
            "Held-out loss now",
            "The last measurement of each band, to compare blocks and bands side by side. A bar far above those of "
            "the neighbouring bands: that block lags.",
            UNITLESS,
            Query(EVALUATED, f"{BLOCK_LEGEND} sigma {{{{sigma_band}}}}"),
        ),
        lines(
            "Steps that were not finite",
            "Steps whose loss or gradient was NaN or infinite, since the job began. There should be none: one ends "
            "the attempt (alert DbserveBlockNonfinite).",
            COUNT,
            Query(gauge("dbserve_block_nonfinite_steps_total"), BLOCK_LEGEND),
            limits=[(1, RED)],
        ),
    ]


def _optimizer() -> list[Builder[Panel]]:
    return [
        lines(
            "Gradient norm",
            "Before clipping, on a logarithmic axis. Growing by decades: the learning rate is too high. Falling to "
            "0: "
            "nothing is learnt any more.",
            UNITLESS,
            Query(gauge("dbserve_block_grad_norm"), BLOCK_LEGEND),
            logarithmic=True,
        ),
        lines(
            "Learning rate",
            "As the schedule has it. With lr: scan, blocks choose their own.",
            UNITLESS,
            Query(gauge("dbserve_block_learning_rate"), BLOCK_LEGEND),
        ),
    ]
