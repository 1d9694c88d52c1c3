"""BlockActor: the one worker-side place that knows Ray. It gets a name (Run), fetches the rest, works, and says so."""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import ray

from dbserve.admission import parse_allowed
from dbserve.artefacts import model_directory, open_artefacts
from dbserve.cancellation import end
from dbserve.contracts.access import RedisAccess
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import TRAINED, JobPlan, TaskKind
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import CheckpointRef, Crashed, Finished, Reason, Run, Started, Task, TaskState
from dbserve.datasets.reach import limit_reach
from dbserve.errors import (
    CheckpointInvalid,
    IllegalTransition,
    JobNotFound,
    StaleRun,
    StorageError,
    StoreUnavailable,
    WorkerLost,
)
from dbserve.failpoints import failpoint
from dbserve.lifecycle import backoff_seconds
from dbserve.redaction import known_secrets
from dbserve.store import JobStore
from dbserve.tracing import NO_SPAN, UNTRACED, Span, Trace, Tracer, of_run, tracer_if_possible
from workers.account import Account
from workers.blame import one_line, reason_of
from workers.lease import Lease
from workers.logs import LogBuffer, speaking
from workers.presence import birth
from workers.pulse import Interrupted, Pulse, patiently
from workers.replicas import ReplicaCrew, cache_of_node, gpus_held
from workers.termination import Termination
from workers.watchdog import end_when_wedged, end_with_parent

log = logging.getLogger("dbserve.worker")

SPANS = {TaskKind.ASSEMBLY: "assemble", TaskKind.EVALUATION: "evaluate"}  # what is done; else it is trained


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of a cluster is told."""

    redis_url: str  # unless the worker's own environment says otherwise (RedisAccess.here)
    artifacts: str  # a directory that every node sees, or a URI
    cache_dir: Path  # unless the worker's own environment says otherwise (cache_of_node)
    lease_seconds: float = 15.0
    otlp_endpoint: str | None = None  # where spans go; None: nothing is traced
    data_allow: str | None = None  # what jobs may name as data; None: what this machine's user could open


class BlockWorker:
    """One attempt at one task, from Started to Finished or Crashed."""

    def __init__(self, run: Run, config: WorkerConfig, cpus: float, gpus: float, *, termination: Termination) -> None:
        config = replace(config, cache_dir=cache_of_node(os.environ, config.cache_dir))
        self._run = run
        self._config = config
        self._cpus = cpus
        self._gpus = gpus
        self._termination = termination
        access = RedisAccess.here(config.redis_url, os.environ)
        self._store = JobStore.at(access)
        self._artefacts = open_artefacts(config.artifacts)
        self._logs = LogBuffer(run, known_secrets(os.environ, access.url, config.artifacts))
        if config.data_allow is not None:  # asked again, where the data are opened
            limit_reach(parse_allowed(config.data_allow), own=config.cache_dir)
        self._tracer: Tracer = UNTRACED
        self._span: Span = NO_SPAN  # of the attempt

    async def work(self) -> None:
        """Everything, errors included. Returns when the attempt is over, for better or worse.

        Runs in the process's main thread, which is where a signal can be met. Ends the process, rather than return,
        where a thread is at work that cannot be interrupted.
        """
        with speaking(self._logs):
            shipping = asyncio.create_task(self._logs.keep_shipping(self._store, self._run))
            try:
                await self._work()
            finally:
                await end(shipping)
                await self._ship()
        await self._store.aclose()

    async def _work(self) -> None:
        spec: JobSpec | None = None
        self._tracer = tracer_if_possible(self._config.otlp_endpoint)
        try:
            spec = await patiently(lambda: self._store.spec(self._run.job_id))
            plan = await patiently(lambda: self._store.plan(self._run.job_id))
            await self._attempt(spec, plan)
        except (StaleRun, IllegalTransition, JobNotFound) as fenced:
            log.warning("stopped: %s", fenced)
            await self._end_span(fenced.code)
        except StoreUnavailable as away:
            log.error("stopped: %s", away)  # nobody can be told
            await self._end_span(away.code, failure=str(away))
        except Interrupted as interrupted:
            log.info("stopped: %s", interrupted)
            await self._end_span("stopped")
        except Exception as error:
            log.exception("%s failed", self._run.task)
            await self._confess(spec, error)

    async def _attempt(self, spec: JobSpec, plan: JobPlan) -> None:
        """From Started to Finished, under a pulse."""
        run, node = self._run, plan.task(self._run.task)
        lease = Lease(self._config.lease_seconds)
        account = Account(
            run,
            steps=node.steps,
            batch_size=spec.training.batch_size * node.workers,
            sequence_length=plan.data.sequence_length or 0,
            gpu=self._gpus > 0,
        )
        pulse = Pulse(self._store, run, account=account, lease=lease, logs=self._logs)
        self._termination.hand_over(pulse.preempt)
        end_when_wedged(lambda: pulse.beats, lease)
        gpus = await asyncio.to_thread(gpus_held) if self._gpus > 0 else None
        task = await patiently(lambda: self._store.apply(self._started(gpus)))
        failpoint("actor.started")
        about = {**of_run(run), "dbserve.node": task.node, "dbserve.gpu": task.gpu}
        self._span = Trace(self._tracer, task.trace).begin(SPANS.get(task.kind, "train"), about)
        log.info("attempt %d of %s begins", run.attempt, run.task)
        working = asyncio.create_task(self._work_at(task, spec, plan, pulse))
        cut_short = asyncio.create_task(pulse.cut_short())
        heart = asyncio.create_task(pulse.beat())
        try:
            await asyncio.wait({working, cut_short}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await self._end_at_once(pulse, task)
            await working
        except Interrupted:
            if pulse.preempted:
                await self._tell_preempted(f"{pulse.preempted_by}: a last checkpoint at step {account.step}")
            raise
        except (StorageError, WorkerLost) as unsaved:
            if not pulse.preempted:
                raise
            await self._tell_unsaved(pulse, unsaved)
        finally:
            await end(cut_short, heart)

    async def _work_at(self, task: Task, spec: JobSpec, plan: JobPlan, pulse: Pulse) -> None:
        match task.kind:
            case kind if kind in TRAINED:
                try:
                    await self._train(spec, plan, task, pulse)
                except Exception:
                    with contextlib.suppress(StoreUnavailable):
                        await pulse.tell()  # what was done until now counts all the same
                    raise
                await patiently(pulse.tell)
            case TaskKind.ASSEMBLY:
                await self._assemble(spec, plan)
            case _:
                await self._evaluate(spec, plan)
                failpoint("evaluation.report")
        log.info("%s has finished", self._run.task)
        await self._end_span("succeeded")
        await self._ship()  # now: whoever has finished may be stopped at any moment
        await patiently(lambda: self._store.apply(Finished(run=self._run)))

    def _started(self, gpus: str | None) -> Started:
        pid = os.getpid()
        return Started(
            run=self._run,
            node=socket.gethostname(),
            node_id=ray.get_runtime_context().get_node_id(),
            pid=pid,
            born=birth(pid),
            gpu=gpus,
        )

    async def _train(self, spec: JobSpec, plan: JobPlan, task: Task, pulse: Pulse) -> None:
        loop = asyncio.get_running_loop()
        trunk = await self._trunk(plan)

        def train() -> None:
            import torch  # here: it takes seconds to come

            from workers.attempt import TrainingAttempt, device_of, prepare_process
            from workers.data import open_dataset
            from workers.subprocesses import Subprocesses

            prepare_process(self._cpus)
            data = open_dataset(plan.data, spec.data, cache_dir=self._config.cache_dir)
            trace = Trace(self._tracer, self._span.traceparent)
            attempt = TrainingAttempt(
                self._store, self._artefacts, spec, plan, task, trace=trace, redact=self._logs.redact
            )
            device, workers = device_of(self._gpus), plan.task(task.run.task).workers
            crew = replicas
            if crew is None and workers > 1:
                crew = Subprocesses.of(workers, torch.device(device), stuck)
            attempt.run(data, pulse, loop, trunk=trunk, device=device, crew=crew)

        def stuck(lost: WorkerLost) -> None:
            telling = self._tell_unsaved(pulse, lost) if pulse.preempted else self._confess(spec, lost)
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(telling, loop).result()
            os._exit(1)  # the training is in a call that never returns

        replicas = self._replicas(task, pulse, loop, stuck)
        await asyncio.to_thread(train)

    def _replicas(
        self, task: Task, pulse: Pulse, loop: asyncio.AbstractEventLoop, stuck: Callable[[WorkerLost], None]
    ) -> ReplicaCrew | None:
        """The replicas that the attempt was granted; None: this worker is the only one."""
        if len(task.nodes) < 2:
            return None

        def wanted(rank: int) -> None:
            loop.call_soon_threadsafe(pulse.preempt, f"SIGTERM to worker {rank}")

        return ReplicaCrew(
            nodes=task.nodes,
            cpus=self._cpus,
            gpus=self._gpus,
            silence_seconds=self._config.lease_seconds,
            cache_dir=self._config.cache_dir,
            data_allow=self._config.data_allow,
            came=pulse.account.replica_came,
            wanted=wanted,
            stuck=stuck,
        )

    async def _trunk(self, plan: JobPlan) -> CheckpointRef | None:
        """The trunk's final checkpoint, if the task starts from its copy."""
        trunks = [need for need in plan.task(self._run.task).needs if plan.task(need).kind is TaskKind.TRUNK]
        if not trunks:
            return None
        return _final(await patiently(lambda: self._store.task(self._run.job_id, trunks[0])))

    async def _assemble(self, spec: JobSpec, plan: JobPlan) -> None:
        tasks = (await patiently(lambda: self._store.snapshot(self._run.job_id))).tasks
        finals = {task.index: _final(task) for task in tasks.values() if task.kind is TaskKind.BLOCK}
        model_id = self._run.job_id
        relative = model_directory(model_id)

        def assembled():
            from workers.assemble import assemble

            return assemble(plan, self._artefacts, finals, relative, job_id=self._run.job_id)

        manifest = await asyncio.to_thread(assembled)
        failpoint("assembly.files")
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
        tasks = (await patiently(lambda: self._store.snapshot(self._run.job_id))).tasks
        trained = [task for task in tasks.values() if task.kind in TRAINED]
        job_id = self._run.job_id

        def examine():
            from workers.attempt import device_of, prepare_process
            from workers.data import open_dataset
            from workers.evaluate import evaluate

            prepare_process(self._cpus)
            data = open_dataset(plan.data, spec.data, cache_dir=self._config.cache_dir)
            with contextlib.ExitStack() as fetched:
                model = fetched.enter_context(self._artefacts.fetch(model_directory(job_id)))
                finals = {
                    task.run.task: fetched.enter_context(self._artefacts.fetch(_final(task).path))
                    for task in trained
                    if task.state is TaskState.SUCCEEDED
                }
                device = device_of(self._gpus)
                return evaluate(spec, plan, data, model, finals, trained, job_id=job_id, model_id=job_id, device=device)

        report = await asyncio.to_thread(examine)
        await patiently(lambda: self._store.results.save_report(self._run, report))

    async def _end_at_once(self, pulse: Pulse, task: Task) -> NoReturn:
        """For a thread that cannot be interrupted, and that will ask for no orders before long."""
        if pulse.preempted:
            when = "before the first step" if task.kind in TRAINED else f"during the {task.kind}"
            await self._tell_preempted(f"{pulse.preempted_by}, {when}")
        log.info("stopped: %s ends at once", self._run)
        await self._end_span("stopped")
        await self._ship()
        os._exit(0)

    async def _tell_unsaved(self, pulse: Pulse, error: Exception) -> None:
        """Of one that was to save and stop anyway: its end is no crash of its own, which would be counted."""
        log.warning("stopped without a last checkpoint: %s", error)
        await self._tell_preempted(f"{pulse.preempted_by}: no last checkpoint ({self._why(error)})")

    async def _tell_preempted(self, message: str) -> None:
        await self._end_span(Reason.PREEMPTED, failure=message)
        await self._ship()
        crashed = Crashed(run=self._run, reason=Reason.PREEMPTED, message=message)
        await self._told(crashed)

    async def _confess(self, spec: JobSpec | None, error: Exception) -> None:
        """Tells the store why the attempt ended; whether there is another one is not for the worker to say."""
        await self._end_span(reason_of(error), failure=self._why(error))
        await self._ship()
        wait = 0.0
        with contextlib.suppress(JobNotFound, StoreUnavailable):
            if spec is not None:
                task = await patiently(lambda: self._store.task(self._run.job_id, self._run.task))
                wait = backoff_seconds(spec.retry, task.crashes + 1)
        crashed = Crashed(run=self._run, reason=reason_of(error), message=self._why(error), retry_after=wait)
        await self._told(crashed)

    def _why(self, error: Exception) -> str:
        """What went wrong, for who reads the job's events, is sent them, or sees its traces: as in logs, no secrets."""
        return self._logs.redact(one_line(error))

    async def _told(self, crashed: Crashed) -> None:
        """Where the attempt still counts, and a store can be told."""
        with contextlib.suppress(StaleRun, IllegalTransition, JobNotFound, StoreUnavailable):
            await patiently(lambda: self._store.apply(crashed))

    async def _end_span(self, outcome: str, *, failure: str | None = None) -> None:
        """Before the outcome is told: whoever has told it may be stopped at any moment. The first outcome counts."""
        if not self._span.traceparent:
            return
        self._span.note({"dbserve.outcome": outcome})
        if failure is not None:
            self._span.fail(outcome, failure)
        self._span.end()
        await asyncio.to_thread(self._tracer.flush)
        self._span = NO_SPAN

    async def _ship(self) -> None:
        """What is left of the log. It decides nothing: a line that cannot be shipped must not cost the attempt."""
        try:
            await self._logs.ship(self._store, self._run)
        except StoreUnavailable:
            pass
        except Exception:
            log.exception("the last lines could not be shipped")


@ray.remote(max_restarts=0, max_task_retries=0)  # the reconciler retries, and nobody else
class BlockActor:
    """A BlockWorker in a process of its own, which ends with it.

    Its method is a plain one: Ray runs those in the main thread, where alone SIGTERM can be met.
    """

    def __init__(self, run: str, config: WorkerConfig, cpus: float, gpus: float) -> None:
        self._arguments = (Run.model_validate_json(run), config, cpus, gpus)
        self._termination = Termination()

    def work(self) -> None:
        """Asked again, by a reconciler that cannot know whether the first asking arrived, it just goes on: the second
        call waits behind the first, at whose end the process is gone."""
        end_with_parent()
        try:
            asyncio.run(_work(*self._arguments, self._termination))
        finally:  # a worker that stayed would look as if it worked
            ray.actor.exit_actor()  # pyright: ignore[reportAttributeAccessIssue]


async def _work(run: Run, config: WorkerConfig, cpus: float, gpus: float, termination: Termination) -> None:
    await BlockWorker(run, config, cpus, gpus, termination=termination).work()


def _final(task: Task) -> CheckpointRef:
    """The checkpoint that a succeeded task left."""
    if not task.checkpoints:
        raise CheckpointInvalid(f"{task.run.task} succeeded without a checkpoint")
    return task.checkpoints[-1]
