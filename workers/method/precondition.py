"""EDM preconditioning (arXiv 2206.00364, table 1): coefficients of D = c_skip z + c_out F(c_in z, c_noise).

All take and give (N,): one coefficient for each noise level, in the unit of sigma_data.
"""

from torch import Tensor


def c_skip(sigma: Tensor, sigma_data: float) -> Tensor:
    """sd^2 / (s^2 + sd^2): the share of z that passes the network by."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def c_out(sigma: Tensor, sigma_data: float) -> Tensor:
    """s sd / sqrt(s^2 + sd^2): the scale of the network's answer."""
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


def c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """1 / sqrt(s^2 + sd^2): brings z to unit variance."""
    return (sigma**2 + sigma_data**2).rsqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """ln(s) / 4: how the network is told the noise level."""
    return sigma.log() / 4
