"""Jobs that train for seconds: real digits, real Ray, a network small enough to finish."""

from typing import Any

from dbserve.contracts.job import JobSpec


def digits_job(**changes: Any) -> JobSpec:
    """Two blocks of one layer each, 60 steps; `changes` replace top-level keys."""
    return JobSpec.model_validate(
        {
            "name": "digits-small",
            "architecture": {"kind": "vit", "options": {"depth": 2, "width": 32, "heads": 2, "patch": 2}},
            "data": {"uri": "builtin:digits"},
            "blocks": {"count": 2},
            "training": {"steps": 60, "batch_size": 64, "lr": 3e-3},
            "checkpoint": {"every_steps": 20},
            "retry": {"backoff_seconds": 0.0},
            "evaluation": {"baselines": []},
            **changes,
        }
    )


def long_job(**changes: Any) -> JobSpec:
    """One that is still training whenever a test looks."""
    training = {"steps": 1_000_000, "batch_size": 64}
    return digits_job(**{"training": training, "checkpoint": {"every_steps": 50}, **changes})


def patient_job(name: str = "patient") -> JobSpec:
    """Long enough to be met in training; with dropout and augmentation, so that a resume must restore every draw."""
    return digits_job(
        name=name,
        architecture={
            "kind": "vit",
            "options": {"depth": 2, "width": 32, "heads": 2, "patch": 2, "dropout": 0.1},
        },
        data={"uri": "builtin:digits", "augment": {"crop_padding": 1}},
        training={"steps": 2000, "batch_size": 64, "lr": 3e-3},
        checkpoint={"every_steps": 400},
    )
