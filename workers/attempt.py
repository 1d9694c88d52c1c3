"""Training of one attempt: where it starts, its steps, and how it ends."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dbserve.artefacts import Artefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import CheckpointRef, LostCheckpoint, Restored, Task
from dbserve.contracts.work import CheckpointStage
from dbserve.errors import CheckpointInvalid, NonfiniteLoss, StaleRun
from dbserve.failpoints import failpoint
from dbserve.store import JobStore
from dbserve.tracing import Trace
from workers.account import Account
from workers.allocation import keep_freed_memory
from workers.checkpoint import TrainingState, answering_weights, load, verify
from workers.conversion import initial_weights
from workers.data import Dataset
from workers.parallel import Crew
from workers.pulse import Interrupted, Order, Pulse, patiently
from workers.saving import Saving
from workers.trainer import StepReport, train_block

log = logging.getLogger("dbserve.worker")


class TrainingAttempt:
    """The training of one attempt at a trunk, a block or a baseline."""

    def __init__(
        self,
        store: JobStore,
        artefacts: Artefacts,
        spec: JobSpec,
        plan: JobPlan,
        task: Task,
        *,
        trace: Trace | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._store = store
        self._artefacts = artefacts
        self._spec = spec
        self._plan = _in_smaller_parts(plan, task.split)
        self._task = task
        self._trace = trace or Trace()
        self._redact = redact

    def run(
        self,
        data: Dataset,
        pulse: Pulse,
        loop: asyncio.AbstractEventLoop,
        *,
        trunk: CheckpointRef | None,
        device: str,
        crew: Crew | None = None,
    ) -> None:
        """Trains to the end; blocks, so it wants a thread of its own. Writes to the store happen in `loop`.

        `crew` are the task's replicas, this one included; None: there is this one.

        Raises:
            Interrupted: it was ordered to save and stop, and has.
            StaleRun: the attempt was given up; it stops between two steps.
            StorageError: the artefact store cannot be read at the start, or the last checkpoint cannot be saved.
            WorkerLost: a replica died or did not come. Nothing is saved then: the others may stand within a step.
        """
        run = self._task.run
        state, kept = self._restored(loop, pulse.account)
        initial = self._first_weights(trunk) if state is None else None
        every, keep_last = self._spec.checkpoint.every_steps, self._spec.checkpoint.keep_last
        account = pulse.account
        saving = Saving(
            self._store,
            self._artefacts,
            run,
            self._plan,
            keep_last=keep_last,
            loop=loop,
            account=account,
            trace=self._trace,
            redact=self._redact,
        )
        steps = train_block(
            self._spec,
            self._plan,
            self._plan.task(run.task),
            data,
            state=state,
            initial_weights=initial,
            device=device,
            trial_done=account.trial_done,
            crew=crew,
        )
        resumed_at = None if state is None else state.step
        del state, initial  # the training has them, and lets go of them
        with contextlib.closing(steps):
            for report in _watched(steps, account):
                account.note(report)
                order = pulse.order()
                if order is Order.GIVEN_UP:
                    raise StaleRun(f"{run} was given up; it stops at step {report.step}")
                saving.check()
                if report.step == report.total:
                    saving.surely(report)
                elif order is Order.SAVE_AND_STOP:
                    saving.surely(report)
                    raise Interrupted(f"{run} stops at step {report.step}, which is saved")
                elif report.step % every == 0:
                    saving.begin(report)
        if resumed_at == self._task.steps:
            saving.remove_all_but(kept)  # the attempt that saved the last step ended before it came to that
        failpoint("finish.pointer")

    def _restored(
        self, loop: asyncio.AbstractEventLoop, account: Account
    ) -> tuple[TrainingState | None, tuple[CheckpointRef, ...]]:
        """The newest whole checkpoint, and those that the task has left; what is not whole is told and passed over."""
        if not self._task.checkpoints:
            return None, ()
        lost: list[LostCheckpoint] = []
        state = None
        for ref in reversed(self._task.checkpoints):
            try:
                with self._artefacts.fetch(ref.path) as directory:
                    state = load(directory, contract=self._plan.contract, expect_sha256=ref.sha256)
            except CheckpointInvalid as invalid:
                log.warning("checkpoint of step %d passed over: %s", ref.step, invalid)
                account.checkpoint_failed(CheckpointStage.RESTORE)
                lost.append(LostCheckpoint(step=ref.step, path=ref.path, message=self._redact(str(invalid))))
                continue
            log.info("resumed from the checkpoint of step %d (attempt %d)", ref.step, ref.attempt)
            break
        step = 0 if state is None else state.step
        event = Restored(run=self._task.run, step=step, lost=tuple(lost))
        telling = asyncio.run_coroutine_threadsafe(patiently(lambda: self._store.apply(event)), loop)
        return state, telling.result().checkpoints

    def _first_weights(self, trunk: CheckpointRef | None) -> dict[str, Tensor] | None:
        """The trunk's, or those of the job's source; None: they are drawn."""
        if trunk is not None:
            return self._trunk_weights(trunk)
        return initial_weights(self._spec, self._plan, self._plan.task(self._task.run.task))

    def _trunk_weights(self, trunk: CheckpointRef) -> dict[str, Tensor]:
        """What the trunk would answer with: the average where one is kept. A block's schedule starts anew, so the
        noise of the trunk's last steps, which the average is without, would only have to be unlearnt."""
        with self._artefacts.fetch(trunk.path) as directory:
            verify(directory, contract=self._plan.contract, expect_sha256=trunk.sha256)
            return answering_weights(directory)


def _watched(steps: Iterator[StepReport], account: Account) -> Iterator[StepReport]:
    """The reports; a step whose loss was not finite, which ends them, is counted."""
    try:
        yield from steps
    except NonfiniteLoss:
        account.nonfinite_step()
        raise


def _in_smaller_parts(plan: JobPlan, split: int) -> JobPlan:
    """The plan with every micro-batch taken in `split` parts: the same effective batch in less memory."""
    if split == 1:
        return plan
    accumulate = plan.training.accumulate * split
    log.info(
        "trains with %d micro-batches a step instead of %d, of the same %d rows together: it ran out of memory before",
        accumulate,
        plan.training.accumulate,
        plan.training.batch_size,
    )
    return plan.model_copy(update={"training": plan.training.model_copy(update={"accumulate": accumulate})})


def prepare_process(cpus: float) -> None:
    """Gives torch as many threads as the task holds CPUs; must be called in the thread that computes, before it has
    made tensors. Keeps freed memory as far as that can still be had (KEEPING_FREED_MEMORY)."""
    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()


def device_of(gpus: float) -> str:
    """Where a task that holds so many GPUs trains."""
    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
