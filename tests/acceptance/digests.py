"""What a job came to, bit for bit."""

import hashlib
from pathlib import Path

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus


def digests(artifacts: Path, job_id: str) -> dict[str, str]:
    """sha256 of each block's tensors in the assembled model; what says who made them, and when, is left out."""
    from safetensors.numpy import load_file

    found: dict[str, str] = {}
    for path in sorted((artifacts / "models" / job_id).glob("block-*.safetensors")):
        sha256 = hashlib.sha256()
        for name, array in sorted(load_file(path).items()):
            sha256.update(name.encode() + str(array.shape).encode() + array.tobytes())
        found[path.name] = sha256.hexdigest()
    return found


def undisturbed(client: Client, artifacts: Path, spec: JobSpec, *, timeout: float = 400.0) -> dict[str, str]:
    """The digests of the job when nothing happens to it."""
    job = client.submit(spec)
    ended = client.wait(job.id, timeout=timeout)
    assert ended.status is JobStatus.SUCCEEDED, ended
    return digests(artifacts, job.id)
