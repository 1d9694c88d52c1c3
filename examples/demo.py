"""`make demo`: the whole journey on one machine, through the same commands and the same REST API a user has."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

JOB = Path(__file__).parent / "digits.yaml"
OUTPUT = Path("demo-output")
START_SECONDS = 150.0
DBSERVE = (sys.executable, "-m", "dbserve")


def main() -> int:
    """Returns the exit code; 0 only when the job succeeded and everything it promises lies in demo-output/."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the service must be stopped then, too
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # a proxy is for other machines
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    with tempfile.TemporaryDirectory(prefix="dbserve-demo-") as data_dir, _service(Path(data_dir)) as url:
        _step("Submit a job over REST: three blocks and their baselines, each trained alone on a Ray worker")
        code = _run("submit", "-f", str(JOB), "--watch", url=url)
        if code != 0:
            return code
        job_id = httpx.get(f"{url}/v1/jobs").json()["data"][0]["id"]
        _step("What Prometheus would scrape, in part")
        _show_metrics(httpx.get(f"{url}/metrics").text)
        _step("Fetch the report and the assembled model")
        report: dict[str, Any] = httpx.get(f"{url}/v1/jobs/{job_id}/report").json()
        (OUTPUT / "report.json").write_text(json.dumps(report, indent=1))
        if (code := _run("report", job_id, "-o", str(OUTPUT / "report.html"), url=url)) != 0:
            return code
        _fetch_model(url, report["model_id"])
    _step("Verdict")
    _conclude(report)
    return 0


@contextmanager
def _service(data_dir: Path) -> Generator[str]:
    """`dbserve up` on a free port; stopped again, whatever happens."""
    port = _free_port()
    _step("Start Redis, Ray, the API and the reconciler with one command")
    print(f"$ dbserve up --data-dir {data_dir} --port {port}", flush=True)
    service = subprocess.Popen([*DBSERVE, "up", "--data-dir", str(data_dir), "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(url):
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit("dbserve up did not come up")
            time.sleep(0.2)
        yield url
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*arguments: str, url: str) -> int:
    print("$ dbserve " + " ".join(arguments), flush=True)
    return subprocess.run([*DBSERVE, *arguments, "--url", url], check=False).returncode


def _show_metrics(text: str) -> None:
    wanted = ("dbserve_blocks{", "dbserve_block_samples_total", "dbserve_job_memory_ratio")
    for line in text.splitlines():
        if line.startswith(wanted) or (line.startswith("dbserve_block_memory_bytes") and 'kind="peak"' in line):
            print(f"  {line}")


def _fetch_model(url: str, model_id: str) -> None:
    archive = OUTPUT / "model.tar"
    with httpx.stream("GET", f"{url}/v1/models/{model_id}/download") as answer, archive.open("wb") as file:
        for chunk in answer.iter_bytes():
            file.write(chunk)
    with tarfile.open(archive) as packed:
        packed.extractall(OUTPUT / "model", filter="data")
    archive.unlink()


def _conclude(report: dict[str, Any]) -> None:
    quality, memory = report["quality"], report["memory"]
    baselines = ("end_to_end", "shallow_ensemble", "shallow_single", "shallow_long", "data_parallel")
    for name in ("chain", "product_of_experts", "first_block", *baselines):
        if (score := quality.get(name)) is not None:
            accuracy, error = 100 * score["accuracy"], 100 * score["standard_error"]
            print(f"  {name:20} {accuracy:5.1f} % ± {error:.1f}   {score['layer_evaluations']:3d} layer evaluations")
    print(f"  memory of one block / end-to-end: {memory['ratio']:.3f} ({memory['ratio_kind']})")
    for finding in report["findings"]:
        print(f"  - {finding}")
    print(f"\n{OUTPUT}/report.html, {OUTPUT}/report.json and {OUTPUT}/model/ are yours to look at.")


def _step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
