"""The exponential moving average of a network's weights, which answers in the network's place."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dbserve.errors import CheckpointInvalid
from workers.shares import like, local, share_of


class Average:
    """average <- d * average + (1 - d) * weights after every step, d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps keeps the initial weights out of it: after t steps they weigh 1 / C(t + 9, 9),
    where a constant decay would leave them decay^t, which is most of the average of a short training.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._names = dict(network.state_dict(keep_vars=True))
        self._weights = list({id(tensor): tensor for tensor in self._names.values()}.values())  # a tied one once
        self._averages = [local(tensor).detach().clone() for tensor in self._weights]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._averages)

    def restart(self) -> None:
        """The weights as they are now."""
        for tensor, average in zip(self._weights, self._averages, strict=True):
            average.copy_(local(tensor).detach())

    def update(self, step: int) -> None:
        """After the optimizer's step (0-based). Waits for no device."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averages, [local(tensor).detach() for tensor in self._weights], None)

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, under the names of the network's state_dict."""
        place = {id(tensor): average for tensor, average in zip(self._weights, self._averages, strict=True)}
        return {name: like(place[id(tensor)], tensor) for name, tensor in self._names.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over whole copies of state()'s tensors, bit for bit; CheckpointInvalid where they are not of this
        network."""
        if state.keys() != self._names.keys():
            raise CheckpointInvalid("the averaged weights are not those of this network, or none were kept")
        tensors = {id(tensor): state[name] for name, tensor in self._names.items()}
        for tensor, average in zip(self._weights, self._averages, strict=True):
            average.copy_(local(share_of(tensors[id(tensor)], tensor)))
