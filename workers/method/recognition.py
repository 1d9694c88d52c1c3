"""How often the class can be named from its noised code alone. Standard library only: the planner imports this file."""

from statistics import NormalDist

REACH = 8.0  # standard deviations of a Gaussian that are integrated over
STEPS = 256


def code_accuracy(sigma: float, classes: int, norm: float) -> float:
    """Share of right answers of the best guess from z = E[y] + sigma eps, for equally likely classes.

    Codes of length `norm` at right angles: the guess is right when the code's own projection, a + n with a = norm /
    sigma, exceeds the classes - 1 others', so P = int phi(x - a) Phi(x)^(classes - 1) dx (trapezoid rule). From
    1 / classes (only noise) to 1.
    """
    ratio, normal = norm / sigma, NormalDist()
    width = 2 * REACH / STEPS
    places = (ratio - REACH + index * width for index in range(STEPS + 1))
    right = sum(normal.pdf(x - ratio) * normal.cdf(x) ** (classes - 1) for x in places) * width
    return min(max(right, 1 / classes), 1.0)
