"""What a job's blocks come to where nothing happens: python -m tests.chaos.undisturbed CACHE_DIR < spec.json

Prints the digests of the final weights by block, as JSON: trained by the bare loop, without service or checkpoints.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import TaskKind
from dbserve.datasets import inspect
from dbserve.planner import load_card, plan_job
from workers.attempt import prepare_process
from workers.data import open_dataset
from workers.trainer import train_block


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in hex."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def final_weights(spec: JobSpec, cache_dir: Path) -> dict[str, Mapping[str, Tensor]]:
    """Task name -> the weights that answer in the end."""
    facts = inspect(spec.data, modality="images", cache_dir=cache_dir)
    plan = plan_job(spec, load_card(spec.architecture.kind), facts)
    data = open_dataset(facts, spec.data, cache_dir=cache_dir)
    found: dict[str, Mapping[str, Tensor]] = {}
    for task in plan.tasks:
        if task.kind is TaskKind.BLOCK:
            last = None
            for report in train_block(spec, plan, task, data):
                last = report.capture() if report.step == report.total else None
            assert last is not None
            found[task.name] = last.average or last.weights
    return found


if __name__ == "__main__":
    job = JobSpec.model_validate_json(sys.stdin.buffer.read())
    prepare_process(job.resources.cpus_per_block)
    print(json.dumps({name: digest_of(weights) for name, weights in final_weights(job, Path(sys.argv[1])).items()}))
