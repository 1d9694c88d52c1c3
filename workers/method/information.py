"""What a noised code tells of its class: the information of the Gaussian channel, and edges that share it out equally.

Codes of one length at right angles and equally likely classes: then the information is an integral in one dimension,
exact for orthonormal codes. Simplex codes tell as much at length norm * sqrt(K / (K - 1)); seeded directions in
d < K dimensions meet at angles of about 1/sqrt(d), which is left out. A context that already tells much of the class
leaves less for z to tell, and moves what is left to higher noise: edges from here are even for the first look only.
Standard library only: the planner imports this file.
"""

import math
from functools import cache
from itertools import pairwise

REACH = 6.5  # standard deviations of a Gaussian that are integrated over
STEP = 0.5  # of both integrals, in the exponent of e^u: the trapezoidal rule errs by about exp(-pi^2 / STEP)
FAINT = 0.02  # (norm / sigma)^2 below which the information is linear in it
SURE = 16.0  # nats by which a wrong code is less likely, beyond which z leaves no doubt
GRID = 64  # noise levels at which the information is tabulated between two edges' limits


@cache
def information(sigma: float, classes: int, norm: float = 1.0) -> float:
    """I(y; z) in nats, z = E[y] + sigma eps, of `classes` equally likely codes of length `norm` at right angles.

    With a = norm / sigma and Gaussian n_k: H(y|z) = E ln(e^(a^2 + a n_y) + sum_(k != y) e^(a n_k)) - a^2, and
    E ln X = int (e^(-t) - E e^(-tX)) dt / t, in which the classes separate: with f(u) = E exp(-e^(u + a n)) and
    u = ln t, E ln X = int (exp(-e^u) - f(u + a^2) f(u)^(K - 1)) du. Between 0 and ln(classes).
    """
    if classes < 2 or not (0.0 < sigma < math.inf and 0.0 < norm < math.inf):
        raise ValueError(f"information of {classes} classes at sigma={sigma:g}, norm={norm:g}")
    ratio = norm / sigma
    square = ratio * ratio
    if square < FAINT:
        return (1 - 1 / classes) * square / 2  # to order a^4 / (4 K)
    if square / 4 - math.log(classes) > SURE:
        return math.log(classes)  # H(y|z) is of the order of (K - 1) e^(-a^2/4)
    shift = math.ceil(square / STEP)  # steps in a^2
    step = square / shift
    nodes = _nodes(ratio)
    low, high = -(square + REACH * ratio + math.log(classes) + 14.0), REACH * ratio + 4.0
    count = math.ceil((high - low) / step)
    kept = [_kept(low + index * step, nodes) for index in range(count + shift)]
    logarithm = step * sum(
        math.exp(-math.exp(low + index * step)) - kept[index + shift] * kept[index] ** (classes - 1)
        for index in range(count)
    )
    left = logarithm - square  # H(y|z)
    return min(max(math.log(classes) - left, 0.0), math.log(classes))


def equal_information_edges(
    count: int, *, classes: int, norm: float, sigma_min: float, sigma_max: float
) -> tuple[float, ...]:
    """count + 1 descending noise levels between which a code of length `norm` reveals equal information.

    Interpolated in a table of information(); sigma_max and sigma_min themselves are the ends. ValueError where the
    range tells too little to be cut.
    """
    if count < 1 or not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"{count} blocks between sigma_min={sigma_min:g} and sigma_max={sigma_max:g}")
    ratio = sigma_min / sigma_max
    levels = [sigma_max * ratio ** (index / GRID) for index in range(GRID + 1)]
    told = [information(sigma, classes, norm) for sigma in levels]
    edges, cell = [sigma_max], 0
    for block in range(1, count):
        wanted = told[0] + block / count * (told[-1] - told[0])
        while cell < GRID - 1 and told[cell + 1] < wanted:
            cell += 1
        inside = (wanted - told[cell]) / max(told[cell + 1] - told[cell], 1e-12)
        edges.append(levels[cell] * (levels[cell + 1] / levels[cell]) ** min(max(inside, 0.0), 1.0))
    edges.append(sigma_min)
    if any(high <= low * (1 + 1e-9) for high, low in pairwise(edges)):
        raise ValueError(f"[{sigma_min:g}, {sigma_max:g}] tells {told[-1] - told[0]:.3g} nats: too little to be cut")
    return tuple(edges)


def _nodes(ratio: float) -> list[tuple[float, float]]:
    """(a n, weight) of a Gaussian n: equidistant, near enough that e^(a n) is resolved."""
    step = min(STEP, STEP / ratio)
    half = math.ceil(REACH / step)
    return [
        (ratio * index * step, step * math.exp(-0.5 * (index * step) ** 2) / math.sqrt(2 * math.pi))
        for index in range(-half, half + 1)
    ]


def _kept(u: float, nodes: list[tuple[float, float]]) -> float:
    """f(u) = E exp(-e^(u + a n))."""
    return sum(weight * math.exp(-math.exp(u + value)) for value, weight in nodes)
