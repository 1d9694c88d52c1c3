"""Training of one attempt: where it starts, its steps, and its checkpoints, whose writing overlaps the next steps."""

import asyncio
import contextlib
import logging
import shutil
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from dbserve.artefacts import checkpoint_directory, task_directory
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import Checkpointed, CheckpointRef, Task
from dbserve.errors import CheckpointInvalid, StaleRun
from dbserve.store import JobStore
from workers.allocation import keep_freed_memory
from workers.checkpoint import TrainingState, answering_weights, load, save, verify
from workers.conversion import initial_weights
from workers.data import Dataset
from workers.pulse import Pulse, patiently
from workers.trainer import train_block

log = logging.getLogger("dbserve.worker")


class TrainingAttempt:
    """The training of one attempt at a trunk, a block or a baseline."""

    def __init__(self, store: JobStore, artifacts: Path, spec: JobSpec, plan: JobPlan, task: Task) -> None:
        self._store = store
        self._artifacts = artifacts
        self._spec = spec
        self._plan = plan
        self._task = task

    def run(
        self,
        data: Dataset,
        pulse: Pulse,
        loop: asyncio.AbstractEventLoop,
        *,
        trunk: CheckpointRef | None,
        device: str,
    ) -> None:
        """Trains to the end; blocks, so it wants a thread of its own. Writes to the store happen in `loop`.

        Raises:
            StaleRun: the attempt was given up; it stops between two steps.
        """
        run = self._task.run
        state = self._newest_whole_checkpoint()
        initial = self._first_weights(trunk) if state is None else None
        saving: Future[None] | None = None
        steps = train_block(
            self._spec,
            self._plan,
            self._plan.task(run.task),
            data,
            state=state,
            initial_weights=initial,
            device=device,
        )
        with contextlib.closing(steps):
            for report in steps:
                pulse.note(report)
                if pulse.given_up.is_set():
                    raise StaleRun(f"{run} was given up; it stops at step {report.step}")
                if report.step % self._spec.checkpoint.every_steps == 0 or report.step == report.total:
                    captured = report.capture()
                    if saving is not None:
                        saving.result()  # at most one save in flight
                    saving = asyncio.run_coroutine_threadsafe(self._save(captured), loop)
        if saving is not None:
            saving.result()

    def _newest_whole_checkpoint(self) -> TrainingState | None:
        """What is not whole is said and passed over."""
        for ref in reversed(self._task.checkpoints):
            try:
                state = load(self._artifacts / ref.path, contract=self._plan.contract, expect_sha256=ref.sha256)
            except CheckpointInvalid as invalid:
                log.warning("checkpoint of step %d passed over: %s", ref.step, invalid)
                continue
            log.info("resumed from the checkpoint of step %d (attempt %d)", ref.step, ref.attempt)
            return state
        return None

    def _first_weights(self, trunk: CheckpointRef | None) -> dict[str, Tensor] | None:
        """The trunk's, or those of the job's source; None: they are drawn."""
        if trunk is not None:
            return self._trunk_weights(trunk)
        return initial_weights(self._spec, self._plan, self._plan.task(self._task.run.task))

    def _trunk_weights(self, trunk: CheckpointRef) -> dict[str, Tensor]:
        """What the trunk would answer with: the average where one is kept. A block's schedule starts anew, so the
        noise of the trunk's last steps, which the average is without, would only have to be unlearnt."""
        path = self._artifacts / trunk.path
        verify(path, contract=self._plan.contract, expect_sha256=trunk.sha256)
        return answering_weights(path)

    async def _save(self, state: TrainingState) -> None:
        """Bytes first, then the pointer, which the store refuses to a stale attempt; then the old ones go."""
        run = self._task.run
        relative = checkpoint_directory(run, state.step)
        saved = await asyncio.to_thread(
            save,
            self._artifacts / relative,
            state,
            contract=self._plan.contract,
            contract_hash=self._plan.contract_hash,
            run_label=str(run),
        )
        ref = CheckpointRef(
            step=state.step,
            path=relative.as_posix(),
            sha256=saved.manifest_sha256,
            attempt=run.attempt,
            at=time.time(),
        )
        keep = self._spec.checkpoint.keep_last
        event = Checkpointed(run=run, at=ref.at, checkpoint=ref, keep_last=keep)
        after = await patiently(lambda: self._store.apply(event))
        await asyncio.to_thread(self._remove_all_but, after.checkpoints)

    def _remove_all_but(self, kept: tuple[CheckpointRef, ...]) -> None:
        """Of this attempt and those before it; a later attempt's are not ours to touch."""
        run = self._task.run
        wanted = {self._artifacts / ref.path for ref in kept}
        for attempt in range(1, run.attempt + 1):
            home = self._artifacts / task_directory(run.job_id, run.task) / f"attempt-{attempt}"
            for directory in home.glob("step-*"):
                if directory not in wanted:
                    shutil.rmtree(directory, ignore_errors=True)
            if attempt < run.attempt:  # what it was writing when it died
                for directory in home.glob(".step-*.partial"):
                    shutil.rmtree(directory, ignore_errors=True)


def prepare_process(cpus: float) -> None:
    """Gives torch as many threads as the task holds CPUs; must be called in the thread that computes, before it has
    made tensors. Keeps freed memory as far as that can still be had (KEEPING_FREED_MEMORY)."""
    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
