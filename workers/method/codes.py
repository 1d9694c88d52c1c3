"""Target codes: the frozen points of R^d that stand for the classes, and Bayes' rule on them.

K classes, d code dimensions, N batch. All codes of a family have one norm, so |e|^2 drops out of every posterior.
"""

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CodeFamily = Literal["simplex", "orthonormal", "unit_norm"]


def code_norm(family: CodeFamily, code_dim: int, sigma_data: float) -> float:
    """Length of a code. Simplex and orthonormal codes of length sigma_data sqrt(d) have a second moment of exactly
    sigma_data^2 in every direction, so that EDM's sigma_data is true; unit_norm is the published recipe's 1."""
    return 1.0 if family == "unit_norm" else sigma_data * math.sqrt(code_dim)


def target_codes(family: CodeFamily, classes: int, code_dim: int, *, sigma_data: float, seed: int) -> Tensor:
    """E: one code for each class. Shape (K, d), float32, on the CPU; a function of its arguments alone, never trained.

    simplex: K equidistant points (d = K - 1), turned by a seeded rotation; orthonormal: K right-angled ones (d = K);
    unit_norm: seeded Gaussian directions of any d. ValueError where d does not fit the family.
    """
    wanted = {"simplex": classes - 1, "orthonormal": classes, "unit_norm": code_dim}[family]
    if classes < 2 or code_dim < 1 or code_dim != wanted:
        raise ValueError(f"{family} codes of {classes} classes have {wanted} dimensions, not {code_dim}")
    generator = torch.Generator().manual_seed(seed)
    if family == "unit_norm":
        directions = torch.randn(classes, code_dim, dtype=torch.float64, generator=generator)
        return F.normalize(directions, dim=1).float()
    rotation = _rotation(code_dim, generator)
    corners = _simplex(classes) if family == "simplex" else torch.eye(classes, dtype=torch.float64)
    return (code_norm(family, code_dim, sigma_data) * corners @ rotation).float()


def log_posterior(z: Tensor, codes: Tensor, sigma: Tensor) -> Tensor:
    """ln p(y | z) for z = E[y] + sigma eps and equally likely classes: log_softmax(z E^T / sigma^2).

    z (N, d), codes (K, d), sigma (N,) -> (N, K). Always in float32 (z E^T / sigma^2 reaches 1e6 at small sigma), under
    autocast too.
    """
    with torch.autocast(z.device.type, enabled=False):
        scores = z.float() @ codes.float().T  # (N, K)
        return F.log_softmax(scores / sigma.float().square()[:, None], dim=1)


def expected_code(log_probabilities: Tensor, codes: Tensor) -> Tensor:
    """sum_y p(y) E[y]: the mean of the codes. (N, K) normalised log-probabilities, (K, d) -> (N, d), float32."""
    with torch.autocast(codes.device.type, enabled=False):
        return log_probabilities.float().exp() @ codes.float()


def _simplex(classes: int) -> Tensor:
    """K unit vectors in K - 1 dimensions with equal angles: (K, K - 1), float64; the rows sum to zero."""
    corners = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for axis in range(classes - 1):  # Helmert: axis k tells class k from all later ones
        later = classes - 1 - axis
        corners[axis, axis] = math.sqrt(later / (later + 1))
        corners[axis + 1 :, axis] = -1 / math.sqrt(later * (later + 1))
    return corners * math.sqrt(classes / (classes - 1))


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    """A uniformly random orthogonal matrix, (dim, dim), float64 (QR of a Gaussian matrix with signs fixed)."""
    gaussian = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    q, r = cast(tuple[Tensor, Tensor], torch.linalg.qr(gaussian))  # pyright: ignore[reportUnknownMemberType]
    return q * r.diagonal().sign()
