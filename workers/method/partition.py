"""level <-> block: the one place that knows which noise level belongs to which block.

HIGH level = EARLY block = FIRST layers. Edges descend: edges[0] = sigma_max, edges[B] = sigma_min, and block b owns
(edges[b + 1], edges[b]]; the last block also owns sigma_min. Of Gaussian noise a level is sigma; of masking it is t,
the probability that a token is masked. Standard library only: the planner imports this file.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import neg
from statistics import NormalDist


def equal_mass_edges(
    count: int, *, p_mean: float, p_std: float, sigma_min: float, sigma_max: float
) -> tuple[float, ...]:
    """Edges that give every block the same probability mass of the log-normal of sigma (paper, section 3.3).

    q_b = q_min + b/B (q_max - q_min), edge = exp(p_mean + p_std * Phi^-1(q)). Returns count + 1 descending noise
    levels in the unit of sigma_data. ValueError where the mass within the range is too small to be cut in floats.
    """
    _check_range(count, sigma_min, sigma_max)
    log_sigma = NormalDist(p_mean, p_std)
    # Beyond the mean the mass is counted from the far side, where floats still resolve it.
    mirrored = math.log(sigma_min) > p_mean
    sign = -1.0 if mirrored else 1.0
    q_low, q_high = (_tail(sign * (math.log(sigma) - p_mean) / p_std) for sigma in (sigma_min, sigma_max))
    edges = [sigma_max]
    for block in range(1, count):
        mass = q_high + block / count * (q_low - q_high)
        if not 0.0 < mass < 1.0:
            raise ValueError(_too_thin(log_sigma, sigma_min, sigma_max))
        edges.append(math.exp(p_mean + sign * p_std * NormalDist().inv_cdf(mass)))
    edges.append(sigma_min)
    if any(high <= low for high, low in pairwise(edges)):
        raise ValueError(_too_thin(log_sigma, sigma_min, sigma_max))
    return tuple(edges)


def interval_mass(low: float, high: float, *, p_mean: float, p_std: float) -> float:
    """Probability that the log-normal of sigma lies in (low, high], counted from the tail that floats resolve."""
    below, above = ((math.log(sigma) - p_mean) / p_std for sigma in (low, high))
    return _tail(-below) - _tail(-above) if below > 0 else _tail(above) - _tail(below)


def log_uniform_edges(count: int, *, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    """Edges at equal distances in ln sigma: the paper's uniform alternative (section 3.3, ablation).

    Returns count + 1 descending noise levels in the unit of sigma_data.
    """
    _check_range(count, sigma_min, sigma_max)
    ratio = sigma_min / sigma_max
    return (sigma_max, *(sigma_max * ratio ** (block / count) for block in range(1, count)), sigma_min)


def training_interval(edges: Sequence[float], block: int, overlap: float) -> tuple[float, float]:
    """(low, high): the noise levels block is trained on (paper, App. C).

    Its own interval, widened on both sides by overlap (gamma) times its width in ln sigma, clamped to the whole range.
    """
    high, low = edges[block], edges[block + 1]
    margin = (high / low) ** overlap
    return max(low / margin, edges[-1]), min(high * margin, edges[0])


def masking_edges(count: int, *, t_min: float, t_max: float) -> tuple[float, ...]:
    """Edges between which alpha, the share of tokens left unmasked, falls by equal decrements (paper, App. D).

    With the linear schedule alpha(t) = 1 - t, so they are equally far apart in t. Returns count + 1 descending
    probabilities of a mask.
    """
    _check_range(count, t_min, t_max)
    if t_max > 1.0:
        raise ValueError(f"a probability of a mask is at most 1, not {t_max:g}")
    return (t_max, *(t_max + block / count * (t_min - t_max) for block in range(1, count)), t_min)


def masking_training_interval(
    edges: Sequence[float], block: int, overlap: float, *, low_reach: float = 0.0
) -> tuple[float, float]:
    """(low, high): the probabilities of a mask that block is trained on (paper, App. C and D).

    Its own interval, widened on both sides by overlap (gamma) times its width in t, clamped to the whole range. The
    last block, where hardly a token is masked and so hardly one teaches, is trained up to low_reach at least.
    """
    high, low = edges[block], edges[block + 1]
    margin = overlap * (high - low)
    reach = low_reach if block == len(edges) - 2 else 0.0
    return max(low - margin, edges[-1]), min(max(high + margin, reach), edges[0])


def block_of(sigma: float, edges: Sequence[float]) -> int:
    """The block that owns sigma. A sampler step *from* edges[b] belongs to block b.

    ValueError where sigma lies outside [edges[-1], edges[0]] or is not a number.
    """
    if not edges[-1] <= sigma <= edges[0]:
        raise ValueError(f"sigma={sigma:g} lies outside [{edges[-1]:g}, {edges[0]:g}]")
    return bisect_right(edges[1:-1], -sigma, key=neg)


def _tail(x: float) -> float:
    """Mass of the standard normal below x. erfc resolves the far tail, where Python 3.11's NormalDist.cdf is 0."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _check_range(count: int, sigma_min: float, sigma_max: float) -> None:
    if count < 1:
        raise ValueError(f"a partition has at least one block, not {count}")
    if not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"0 < sigma_min < sigma_max must hold; got {sigma_min:g} and {sigma_max:g}")


def _too_thin(log_sigma: NormalDist, sigma_min: float, sigma_max: float) -> str:
    return (
        f"the log-normal with p_mean={log_sigma.mean:g}, p_std={log_sigma.stdev:g} has too little mass in "
        f"[{sigma_min:g}, {sigma_max:g}] to be cut into blocks"
    )
