"""What a reconciler has seen of the workers, by its own clock: whose heartbeat it has missed, and since when."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import OCCUPYING, Run

BLIND_SECONDS = 5.0  # whoever has not looked for so long has no ground to call anybody silent


@dataclass(frozen=True)
class Silence:
    """Seconds since a worker last told of itself, and since it last told of a further step."""

    heartbeat: float
    step: float


@dataclass
class _Heard:
    heartbeat: float | None  # what it told: a worker's own clock, compared with nothing but itself
    step: int | None
    heartbeat_at: float  # monotonic seconds of ours
    step_at: float


class Sight:
    """Two clocks a worker, which start when it is first seen and again whenever it tells something new.

    No clock of another machine is read. After a blind spell (the store or we ourselves were away) all start anew: what
    was not looked at cannot be called silent.
    """

    def __init__(self) -> None:
        self._heard: dict[Run, _Heard] = {}
        self._looked_at: float | None = None

    def look(self, jobs: Iterable[JobOutline], now: float) -> Mapping[Run, Silence]:
        """Takes in what the jobs tell at `now` (monotonic seconds)."""
        if self._looked_at is None or now - self._looked_at > BLIND_SECONDS:
            self.forget()
        self._looked_at = now
        heard: dict[Run, _Heard] = {}
        for job in jobs:
            for name, task in job.tasks.items():
                if task.state not in OCCUPYING:
                    continue
                told = job.progress.get(name)
                # A worker that has begun is another sight than one that was asked for.
                beat = told.heartbeat_at if told else task.started_at if task.pid else None
                step = told.step + told.trials if told else None
                before = self._heard.get(task.run)
                same_beat, same_step = before and before.heartbeat == beat, before and before.step == step
                heard[task.run] = _Heard(
                    beat,
                    step,
                    before.heartbeat_at if before and same_beat else now,
                    before.step_at if before and same_step else now,
                )
        self._heard = heard
        return {run: Silence(now - one.heartbeat_at, now - one.step_at) for run, one in heard.items()}

    def silent_for(self, run: Run, now: float) -> float:
        """Seconds at `now` (monotonic) since the worker last told of itself; 0 for one that was never seen."""
        return now - self._heard[run].heartbeat_at if run in self._heard else 0.0

    def forget(self) -> None:
        """Whatever happens next is seen for the first time."""
        self._heard = {}
