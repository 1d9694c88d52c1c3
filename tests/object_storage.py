"""A server that speaks S3, on a free port of this machine: moto's, in a process of its own."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from tests.ports import free_port

BUCKET = "artefacts"


@dataclass
class ObjectStorage:
    """`files` is pyarrow's own view of it, to look and to do damage with. Its content is gone when it is stopped."""

    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def location(self, prefix: str) -> str:
        query = f"scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"
        return f"s3://key:secret@{BUCKET}/{prefix}?{query}"

    @property
    def files(self) -> Any:
        return pyarrow.fs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def start(self) -> None:
        """Starts it with an empty bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            assert self.process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        self.files.create_dir(BUCKET)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def read(self, key: str) -> bytes:
        with self.files.open_input_stream(f"{BUCKET}/{key}") as stream:
            return stream.read()

    def write(self, key: str, data: bytes) -> None:
        with self.files.open_output_stream(f"{BUCKET}/{key}") as stream:
            stream.write(data)

    def keys(self, prefix: str) -> set[str]:
        """Of all objects under it, without what stands for a directory."""
        selector = pyarrow.fs.FileSelector(f"{BUCKET}/{prefix}", recursive=True, allow_not_found=True)
        found = self.files.get_file_info(selector)
        return {str(Path(info.path).relative_to(BUCKET)) for info in found if info.type == pyarrow.fs.FileType.File}


@contextlib.contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    """A running one; the test is skipped where moto's server is not installed."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto[server] is not installed: no S3-speaking server to test against")
    server = ObjectStorage(free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
