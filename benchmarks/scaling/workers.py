"""A thousand workers in one process: python -m benchmarks.scaling.workers --redis-url ... --socket ...

Each has connections, a pulse, an account and a log buffer of its own: the very ones of a real worker, at its pace and
of its size. What it does not do is train: its steps are a clock's, and of a checkpoint it writes the pointer alone.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

import uvloop
from pydantic import TypeAdapter
from redis.exceptions import RedisError

from benchmarks.scaling.lines import answer
from benchmarks.scaling.pace import MOMENTS, Pace
from dbserve.artefacts import model_directory, new_checkpoint_directory
from dbserve.cancellation import end
from dbserve.contracts.plan import TRAINED, JobPlan, TaskKind
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import (
    Checkpointed,
    CheckpointRef,
    Crashed,
    Finished,
    MemoryBytes,
    Reason,
    Restored,
    Run,
    Started,
    Task,
)
from dbserve.contracts.work import BandLoss
from dbserve.errors import DbserveError, IllegalTransition, JobNotFound, StaleRun
from dbserve.lifecycle import backoff_seconds
from dbserve.store import JobStore
from workers.account import Account
from workers.lease import Lease
from workers.logs import LogBuffer
from workers.pulse import LOOK_SECONDS, Order, Pulse, patiently
from workers.trainer import StepReport

LEASE_SECONDS = 15.0
_SHA256 = "0" * 64
_BANDS = tuple(BandLoss(low=low, high=2 * low, loss=1.0123456) for low in (0.1, 0.2, 0.4))
_MEMORY = MemoryBytes(parameters=10**8, gradients=10**8, optimizer=2 * 10**8, activations=4 * 10**8, peak=8 * 10**8)


class Workers:
    """The processes that a cluster would run, and what they did in all."""

    def __init__(self, redis_url: str, pace: Pace) -> None:
        self.did = Counter[str]()
        self.pulses: set[Pulse] = set()
        self.pace = pace
        self._redis_url = redis_url
        self._working: dict[Run, asyncio.Task[None]] = {}
        self._cluster: asyncio.StreamWriter | None = None

    def counts(self) -> dict[str, int]:
        """What was done until now, and how many work."""
        beats = self.did["beats"] + sum(pulse.beats for pulse in self.pulses)
        return {**self.did, "beats": beats, "alive": len(self._working), "at work": len(self.pulses)}

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Launches and stops what the cluster says, and tells it who has ended."""
        self._cluster = writer
        while line := await reader.readline():
            said = json.loads(line)
            run = Run.model_validate(said["run"])
            if said["do"] == "launch":
                if run in self._working:
                    self.did["launched twice"] += 1
                    continue
                self.did["launches"] += 1
                work = asyncio.create_task(SimulatedWorker(self, run, said["node"]).live(self._redis_url))
                self._working[run] = work
                work.add_done_callback(lambda ended, run=run: self._ended(run, ended))
            elif (work := self._working.get(run)) is not None:
                work.cancel()

    def _ended(self, run: Run, work: asyncio.Task[None]) -> None:
        del self._working[run]
        if not work.cancelled() and (error := work.exception()) is not None:
            self.did["failures of the simulation"] += 1
            logging.error("a simulated worker failed", exc_info=error)
        if self._cluster is not None:
            self._cluster.write(run.model_dump_json().encode() + b"\n")


class SimulatedWorker:
    """One attempt at one task."""

    def __init__(self, workers: Workers, run: Run, node: str) -> None:
        self._workers = workers
        self._pace = workers.pace
        self._did = workers.did
        self._run = run
        self._node = node
        self._chance = random.Random(str(run))
        self._logs = LogBuffer(run)
        self._log = logging.Logger("dbserve.worker")
        self._log.addHandler(self._logs)

    async def live(self, redis_url: str) -> None:
        """From the first word to the last one; cancelled, it is a process that was killed."""
        await asyncio.sleep(self._chance.uniform(*self._pace.starting))
        store = JobStore.from_url(redis_url)
        shipping = asyncio.create_task(self._logs.keep_shipping(store, self._run))
        try:
            await self._attempt(store)
        except (StaleRun, IllegalTransition, JobNotFound):
            self._did["fenced"] += 1
        finally:
            await end(shipping)
            with contextlib.suppress(DbserveError, RedisError):
                await self._logs.ship(store, self._run)
                await store.aclose()

    async def _attempt(self, store: JobStore) -> None:
        run = self._run
        spec = await patiently(lambda: store.spec(run.job_id))
        plan = await patiently(lambda: store.plan(run.job_id))
        lease = Lease(LEASE_SECONDS)
        node = plan.task(run.task)
        account = Account(run, steps=node.steps, batch_size=spec.training.batch_size)
        pulse = Pulse(store, run, account=account, lease=lease, logs=self._logs)
        pid = self._chance.randrange(2, 4_000_000)
        started = Started(run=run, node=self._node, node_id=self._node, pid=pid, born=time.time())
        task = await patiently(lambda: store.apply(started))
        self._did["starts"] += 1
        self._log.info("attempt %d of %s begins", run.attempt, run.task)
        heart = asyncio.create_task(pulse.beat())
        self._workers.pulses.add(pulse)
        try:
            if task.kind not in TRAINED:
                await asyncio.sleep(self._chance.uniform(*self._pace.lasting))
                if task.kind is TaskKind.ASSEMBLY:
                    await patiently(lambda: store.results.save_model(run, _model(run, plan)))
            elif not await self._train(store, pulse, lease, account, task, spec.checkpoint.keep_last):
                return
            else:
                await patiently(pulse.tell)
            self._log.info("%s has finished", run.task)
            await self._logs.ship(store, run)
            await patiently(lambda: store.apply(Finished(run=run)))
            self._did["finishes"] += 1
        except _Failed:
            wait = backoff_seconds(spec.retry, task.crashes + 1)
            told = Crashed(run=run, reason=Reason.WORKER_ERROR, message="simulated", retry_after=wait)
            await patiently(lambda: store.apply(told))
            self._did["crashes"] += 1
        finally:
            self._workers.pulses.remove(pulse)
            self._did["beats"] += pulse.beats
            await end(heart)

    async def _train(
        self, store: JobStore, pulse: Pulse, lease: Lease, account: Account, task: Task, keep_last: int
    ) -> bool:
        """A report every few steps; False when it came to no end. Raises _Failed."""
        step = await self._where_to_begin(store, task)
        due = asyncio.get_running_loop().time()
        while step < task.steps:
            step += self._pace.stride
            account.note(_report(step, task.steps))
            while lease.over:  # noqa: ASYNC110  where a training thread would wait
                await asyncio.sleep(LOOK_SECONDS)
            if pulse.order() is not Order.GO:
                self._did["stopped"] += 1
                return False
            if step % self._pace.checkpoint_every == 0 or step == task.steps:
                await self._checkpoint(store, account, step, keep_last)
            if step % self._pace.log_every == 0:
                self._log.info("step %d of %d: the loss is %.6f, as far as anybody pretends", step, task.steps, 1.0)
            if self._chance.random() < self._pace.deaths_per_second * self._pace.stride:
                self._did["deaths"] += 1
                return False
            if self._chance.random() < self._pace.crashes_per_second * self._pace.stride:
                raise _Failed
            due += self._pace.stride
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        return True

    async def _where_to_begin(self, store: JobStore, task: Task) -> int:
        """At the last checkpoint; a first attempt somewhere in its training, the same for all blocks of its job."""
        if task.checkpoints:
            at = task.checkpoints[-1].step
            await patiently(lambda: store.apply(Restored(run=self._run, step=at)))
            return at
        luck = random.Random(self._run.job_id)
        left = (
            luck.uniform(*MOMENTS) if luck.random() < self._pace.nearly_done else luck.uniform(MOMENTS[1], task.steps)
        )
        stride = self._pace.stride
        return max(0, task.steps - stride * (int(left) // stride))

    async def _checkpoint(self, store: JobStore, account: Account, step: int, keep_last: int) -> None:
        began = time.monotonic()
        path = new_checkpoint_directory(self._run, step).as_posix()
        ref = CheckpointRef(step=step, path=path, sha256=_SHA256, attempt=self._run.attempt, at=time.time())
        await patiently(lambda: store.apply(Checkpointed(run=self._run, checkpoint=ref, keep_last=keep_last)))
        account.saved(time.monotonic() - began)
        self._did["checkpoints"] += 1


def _report(step: int, total: int) -> StepReport:
    """Figures as long as a real training's."""
    return StepReport(
        step=step,
        total=total,
        loss=1 + 1 / step,
        grad_norm=1.2345678,
        learning_rate=0.000987654,
        samples=32 * step,
        step_seconds=0.9876543,
        data_wait_seconds=0.0012345,
        memory=_MEMORY,
        capture=_nothing,
        read_bytes=65_536,
        eval_loss=_BANDS,
    )


def _nothing() -> NoReturn:
    raise AssertionError("a simulated training has no state")


class _Failed(Exception):
    """A worker meets an error, and tells it."""


def _model(run: Run, plan: JobPlan) -> ModelRecord:
    return ModelRecord(
        id=run.job_id,
        job_id=run.job_id,
        name="simulated",
        version=1,
        created_at=time.time(),
        contract_hash=plan.contract_hash,
        path=model_directory(run.job_id).as_posix(),
        manifest={"blocks": [{"path": f"block-{block.index}.safetensors", "sha256": _SHA256} for block in plan.blocks]},
    )


async def serve(redis_url: str, socket: Path, pace: Pace) -> None:
    """Until the standard input is closed."""
    workers = Workers(redis_url, pace)
    server = await asyncio.start_unix_server(workers.obey, socket)
    async with server:
        await answer({"counts": workers.counts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--pace", default="{}", help="JSON")
    chosen = parser.parse_args()
    pace = TypeAdapter(Pace).validate_json(chosen.pace)
    uvloop.run(serve(chosen.redis_url, chosen.socket, pace))


if __name__ == "__main__":
    main()
