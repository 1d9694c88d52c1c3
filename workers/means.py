"""A mean over steps, out of the means of reports."""


class MeanSince:
    """Since it was last taken."""

    def __init__(self) -> None:
        self.steps = 0
        self._sum = 0.0

    def add(self, mean: float, steps: int) -> None:
        self.steps += steps
        self._sum += mean * steps

    def take(self) -> float:
        """The mean, which begins anew. There must be a step."""
        mean = self._sum / self.steps
        self.steps, self._sum = 0, 0.0
        return mean
