"""BlockActor: the one worker-side place that knows Ray. It gets a name (Run), fetches the rest, works, and says so."""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic

import asyncio
import contextlib
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from dbserve.artefacts import model_directory
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import TRAINED, JobPlan, TaskKind
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import CheckpointRef, Crashed, Finished, Reason, Run, Started, Task, TaskState
from dbserve.errors import (
    CheckpointInvalid,
    ConfigInvalid,
    ContractMismatch,
    DataInvalid,
    IllegalTransition,
    JobNotFound,
    NonfiniteLoss,
    StaleRun,
    StorageError,
    StoreUnavailable,
    WorkerLost,
)
from dbserve.lifecycle import backoff_seconds
from dbserve.store import JobStore

if TYPE_CHECKING:
    from workers.pulse import LogBuffer

log = logging.getLogger("dbserve.worker")


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of a cluster is told."""

    redis_url: str
    artifacts: Path
    cache_dir: Path


class BlockWorker:
    """One attempt at one task, from Started to Finished or Crashed."""

    def __init__(self, run: Run, config: WorkerConfig, cpus: float, gpus: float) -> None:
        self._run = run
        self._config = config
        self._cpus = cpus
        self._gpus = gpus
        self._store = JobStore.from_url(config.redis_url)

    async def work(self) -> None:
        """Everything, errors included. Returns when the attempt is over, for better or worse."""
        from workers.pulse import LogBuffer, Pulse, patiently  # late: torch comes with it

        run, store = self._run, self._store
        logs = LogBuffer()
        logging.getLogger().addHandler(logs)
        logging.getLogger().setLevel(logging.INFO)
        heart: asyncio.Task[None] | None = None
        spec: JobSpec | None = None
        try:
            spec = await patiently(lambda: store.spec(run.job_id))
            plan = await patiently(lambda: store.plan(run.job_id))
            started = Started(
                run=run, at=time.time(), node=socket.gethostname(), pid=os.getpid(), gpu=_gpu_ids(self._gpus)
            )
            task = await patiently(lambda: store.apply(started))
            log.info("attempt %d of %s begins", run.attempt, run.task)
            node = plan.task(run.task)
            pulse = Pulse(store, run, node, spec.training.batch_size * node.workers, logs)
            heart = asyncio.create_task(pulse.beat())
            match task.kind:
                case kind if kind in TRAINED:
                    await self._train(spec, plan, task, pulse)
                    await patiently(pulse.tell)
                case TaskKind.ASSEMBLY:
                    await self._assemble(spec, plan)
                case _:
                    await self._evaluate(spec, plan)
            log.info("%s has finished", run.task)
            await self._ship(logs)  # now: whoever has finished may be stopped at any moment
            await patiently(lambda: store.apply(Finished(run=run, at=time.time())))
        except (StaleRun, IllegalTransition, JobNotFound) as fenced:
            log.warning("stopped: %s", fenced)
        except Exception as error:
            log.exception("%s failed", run.task)
            await self._ship(logs)
            await self._confess(spec, error)
        finally:
            if heart is not None:
                heart.cancel()
                await asyncio.gather(heart, return_exceptions=True)
            await self._ship(logs)
            logging.getLogger().removeHandler(logs)
            await store.aclose()

    async def _train(self, spec: JobSpec, plan: JobPlan, task: Task, pulse) -> None:
        from workers.attempt import TrainingAttempt, prepare_process
        from workers.data import open_dataset

        loop = asyncio.get_running_loop()
        trunk = await self._trunk(plan)
        attempt = TrainingAttempt(self._store, self._config.artifacts, spec, plan, task)

        def train() -> None:
            prepare_process(self._cpus)
            data = open_dataset(plan.data, spec.data, cache_dir=self._config.cache_dir)
            attempt.run(data, pulse, loop, trunk=trunk, device=_device(self._gpus))

        await asyncio.to_thread(train)

    async def _trunk(self, plan: JobPlan) -> CheckpointRef | None:
        """The trunk's final checkpoint, if the task starts from its copy."""
        for need in plan.task(self._run.task).needs:
            if plan.task(need).kind is TaskKind.TRUNK:
                return _final(await self._store.task(self._run.job_id, need))
        return None

    async def _assemble(self, spec: JobSpec, plan: JobPlan) -> None:
        from workers.assemble import assemble
        from workers.pulse import patiently

        tasks = (await self._store.snapshot(self._run.job_id)).tasks
        finals = {task.index: _final(task) for task in tasks.values() if task.kind is TaskKind.BLOCK}
        model_id = self._run.job_id
        relative = model_directory(model_id)
        manifest = await asyncio.to_thread(
            assemble,
            plan,
            {index: self._config.artifacts / ref.path for index, ref in finals.items()},
            self._config.artifacts / relative,
            job_id=self._run.job_id,
            lineage=finals,
        )
        model = ModelRecord(
            id=model_id,
            job_id=self._run.job_id,
            name=spec.name,
            version=1,
            created_at=time.time(),
            contract_hash=plan.contract_hash,
            path=relative.as_posix(),
            manifest=manifest.model_dump(mode="json"),
        )
        await patiently(lambda: self._store.results.save_model(self._run, model))

    async def _evaluate(self, spec: JobSpec, plan: JobPlan) -> None:
        from workers.attempt import prepare_process
        from workers.data import open_dataset
        from workers.evaluate import evaluate
        from workers.pulse import patiently

        tasks = (await self._store.snapshot(self._run.job_id)).tasks
        trained = [task for task in tasks.values() if task.kind in TRAINED]
        succeeded = [task for task in trained if task.state is TaskState.SUCCEEDED]

        def examine():
            prepare_process(self._cpus)
            return evaluate(
                spec,
                plan,
                open_dataset(plan.data, spec.data, cache_dir=self._config.cache_dir),
                self._config.artifacts / model_directory(self._run.job_id),
                {task.run.task: self._config.artifacts / _final(task).path for task in succeeded},
                trained,
                job_id=self._run.job_id,
                model_id=self._run.job_id,
                device=_device(self._gpus),
            )

        report = await asyncio.to_thread(examine)
        await patiently(lambda: self._store.results.save_report(self._run, report))

    async def _ship(self, logs: "LogBuffer") -> None:
        with contextlib.suppress(StoreUnavailable):
            await logs.ship(self._store, self._run)

    async def _confess(self, spec: JobSpec | None, error: Exception) -> None:
        """Tells the store why the attempt ended; whether there is another one is not for the worker to say."""
        retry_at = time.time()
        with contextlib.suppress(StaleRun, IllegalTransition, JobNotFound, StoreUnavailable):
            if spec is not None:
                task = await self._store.task(self._run.job_id, self._run.task)
                retry_at += backoff_seconds(spec.retry, sum(task.restarts.values()) + 1)
            await self._store.apply(
                Crashed(
                    run=self._run, at=time.time(), reason=_reason(error), message=_one_line(error), retry_at=retry_at
                )
            )


@ray.remote(max_restarts=0, max_task_retries=0)  # the reconciler retries, and nobody else
class BlockActor:
    """A BlockWorker in a process of its own, which ends with it."""

    def __init__(self, run: str, config: WorkerConfig, cpus: float, gpus: float) -> None:
        self._arguments = (Run.model_validate_json(run), config, cpus, gpus)
        self._asked = False

    async def work(self) -> None:
        """Asked again, by a reconciler that cannot know whether the first asking arrived, it just goes on."""
        if self._asked:
            return
        self._asked = True
        try:
            await BlockWorker(*self._arguments).work()
        finally:  # a worker that stayed would look as if it worked
            ray.actor.exit_actor()  # pyright: ignore[reportAttributeAccessIssue]


def _final(task: Task) -> CheckpointRef:
    """The checkpoint that a succeeded task left."""
    if not task.checkpoints:
        raise CheckpointInvalid(f"{task.run.task} succeeded without a checkpoint")
    return task.checkpoints[-1]


def _reason(error: Exception) -> Reason:
    kinds: tuple[tuple[type[Exception], Reason], ...] = (
        (DataInvalid, Reason.DATA_ERROR),
        (ConfigInvalid, Reason.CONFIG_INVALID),
        (NonfiniteLoss, Reason.NONFINITE_LOSS),
        (ContractMismatch, Reason.VERSION_MISMATCH),
        (CheckpointInvalid, Reason.CHECKPOINT_INVALID),
        (StorageError, Reason.STORAGE_ERROR),
        (StoreUnavailable, Reason.WORKER_LOST),
        (WorkerLost, Reason.WORKER_LOST),
        (MemoryError, Reason.HOST_OOM),
    )
    for kind, reason in kinds:
        if isinstance(error, kind):
            return reason
    return Reason.GPU_OOM if type(error).__name__ == "OutOfMemoryError" else Reason.WORKER_ERROR


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _gpu_ids(gpus: float) -> str | None:
    return ",".join(str(gpu) for gpu in ray.get_gpu_ids()) or None if gpus > 0 else None


def _device(gpus: float) -> str:
    import torch

    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
