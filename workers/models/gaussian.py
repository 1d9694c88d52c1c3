"""The Gaussian noise of a contract, for whoever draws noise levels from it."""

from dbserve.contracts.plan import Contract
from workers.method.noise import NoiseDistribution


def noise_of(contract: Contract) -> NoiseDistribution:
    """The log-normal of its noise levels; ValueError where its noise is masking, which has no p_mean and no p_std."""
    if contract.p_mean is None or contract.p_std is None:
        raise ValueError(f"{contract.architecture} was planned for noise without p_mean and p_std: masking")
    return NoiseDistribution(contract.p_mean, contract.p_std)
