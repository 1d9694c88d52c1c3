"""The checkpoints of one attempt: at most one being written, beside the training; the pointer after the bytes; the old
ones last.

The training thread calls; what waits for the store runs in the event loop, what waits for a disk in threads of its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import PurePosixPath
from typing import Any, TypeVar

from dbserve.artefacts import Artefacts, attempt_of, new_checkpoint_directory, task_directory
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import Checkpointed, CheckpointFailed, CheckpointRef, Run
from dbserve.contracts.work import CheckpointStage
from dbserve.errors import StorageError
from dbserve.failpoints import failpoint
from dbserve.store import JobStore
from dbserve.tracing import Trace, of_run
from workers.account import Account
from workers.checkpoint import TrainingState, save
from workers.pulse import patiently
from workers.trainer import StepReport

T = TypeVar("T")

LAST_PAUSES = (
    1.0,
    2.0,
    4.0,
    8.0,
    15.0,
)  # seconds between the tries at a checkpoint that the attempt cannot end without

log = logging.getLogger("dbserve.worker")


class Saving:
    """Called by the training thread alone, between two steps."""

    def __init__(
        self,
        store: JobStore,
        artefacts: Artefacts,
        run: Run,
        plan: JobPlan,
        *,
        keep_last: int,
        loop: asyncio.AbstractEventLoop,
        account: Account,
        trace: Trace,
        redact: Callable[[str], str] = str,
    ) -> None:
        """`redact` is what an error's text goes through before it becomes an event."""
        self._store = store
        self._artefacts = artefacts
        self._run = run
        self._plan = plan
        self._keep_last = keep_last
        self._loop = loop
        self._account = account
        self._trace = trace
        self._redact = redact
        self._writing: tuple[int, Future[None]] | None = None  # the step that is, or was last, being written

    def check(self) -> None:
        """Raises what the last save met, when it is over: StaleRun, when the store has refused its pointer."""
        if self._writing is not None and self._writing[1].done():
            self._writing[1].result()

    def begin(self, report: StepReport) -> None:
        """Saves this step beside the training; leaves it out where an earlier one is still being written.

        A save that fails is told to the store, and changes nothing else.
        """
        if self._writing is not None and not self._writing[1].done():
            log.warning(
                "no checkpoint of step %d: that of step %d is still being written", report.step, self._writing[0]
            )
            self._account.checkpoint_failed(CheckpointStage.OVERRUN)
            return
        self.check()
        self._writing = report.step, self._submit(self._try(report.capture()))

    def surely(self, report: StepReport) -> None:
        """Saves this step before it returns, and tries again where that fails: the attempt is to end with it.

        Raises:
            StorageError: the last try failed too.
            StaleRun: the attempt was given up.
        """
        if self._writing is not None:
            self._writing[1].result()
        state = report.capture()
        for pause in LAST_PAUSES:
            try:
                return self._submit(self._write(state)).result()
            except StorageError as error:
                self._submit(self._tell_failed(state.step, error)).result()
            time.sleep(pause)
        return self._submit(self._write(state)).result()

    def remove_all_but(self, kept: tuple[CheckpointRef, ...]) -> None:
        """Of this attempt and those before it, what they left half done included; a later attempt's are not ours.

        What cannot be removed is left for the next time.
        """
        wanted = {PurePosixPath(ref.path) for ref in kept}
        home = task_directory(self._run.job_id, self._run.task)
        try:
            for name in self._artefacts.names(home):
                attempt, directory = attempt_of(name), home / name
                if attempt is None or attempt > self._run.attempt:
                    continue
                if attempt < self._run.attempt and not any(directory in path.parents for path in wanted):
                    self._artefacts.remove(directory)
                    continue
                for child in self._artefacts.names(directory):
                    if directory / child not in wanted:
                        self._artefacts.remove(directory / child)
        except StorageError as error:
            log.warning("checkpoints that are no longer needed were not removed: %s", error)

    async def _try(self, state: TrainingState) -> None:
        try:
            await self._write(state)
        except StorageError as error:
            await self._tell_failed(state.step, error)

    async def _write(self, state: TrainingState) -> None:
        try:
            with self._trace.span("save checkpoint", {**of_run(self._run), "dbserve.step": state.step}):
                await self._commit(state)
        except StorageError:
            self._account.checkpoint_failed(CheckpointStage.SAVE)
            raise

    async def _commit(self, state: TrainingState) -> None:
        """Bytes first, then the pointer, which the store refuses to a stale attempt; then the old ones go."""
        began = time.monotonic()
        saved = await asyncio.to_thread(
            save,
            self._artefacts,
            new_checkpoint_directory(self._run, state.step),
            state,
            contract=self._plan.contract,
            contract_hash=self._plan.contract_hash,
            run_label=str(self._run),
        )
        failpoint("checkpoint.manifest")
        ref = CheckpointRef(
            step=state.step,
            path=saved.path,
            sha256=saved.manifest_sha256,
            attempt=self._run.attempt,
            at=time.time(),
        )
        event = Checkpointed(run=self._run, checkpoint=ref, keep_last=self._keep_last)
        after = await patiently(lambda: self._store.apply(event))
        self._account.saved(time.monotonic() - began)
        failpoint("checkpoint.pointer")
        await asyncio.to_thread(self.remove_all_but, after.checkpoints)

    async def _tell_failed(self, step: int, error: StorageError) -> None:
        log.warning("the checkpoint of step %d could not be saved: %s", step, error)
        event = CheckpointFailed(run=self._run, step=step, message=self._redact(str(error)))
        await patiently(lambda: self._store.apply(event))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
