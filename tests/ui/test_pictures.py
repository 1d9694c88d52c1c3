"""The pictures in docs/monitoring.md, from a real run: `make screenshots`."""

import os
from pathlib import Path

import pytest

from dbserve.client import Client
from dbserve.contracts.status import TERMINAL_JOB, JobStatus, TaskState
from dbserve.jobfile import read_job
from tests.acceptance.jobs import digits_job
from tests.ui.browser import Browser
from tests.waiting import wait_for

DIRECTORY = os.environ.get("DBSERVE_SCREENSHOTS")
EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_BYTES = 150_000  # of one picture: they are kept in the repository

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(DIRECTORY is None, reason="DBSERVE_SCREENSHOTS says where pictures go; see make screenshots"),
]


def test_pictures_of_a_job_in_training(browser: Browser, client: Client) -> None:
    pictures = Path(DIRECTORY or "")
    pictures.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        path = pictures / f"{name}.png"
        browser.picture(path)
        assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size} bytes"

    small = client.submit(digits_job(name="digits-tiny", labels={"team": "vision", "run": "7"}))
    client.wait(small.id, timeout=300)
    given_up = client.submit(digits_job(name="digits-other-seed"))
    client.cancel(given_up.id, force=True)
    wait_for(lambda: client.job(given_up.id).status is JobStatus.CANCELLED, seconds=60, what="cancelled")
    text = (EXAMPLES / "digits.yaml").read_bytes()
    spec = read_job(text, form="yaml", directory=EXAMPLES).model_copy(update={"labels": {"team": "vision"}})
    job = client.submit(spec)
    client.submit(digits_job(name="digits-next", labels={"team": "vision"}, queue={"priority": -1}))

    browser.open("#/new")
    browser.button("Plan").click()
    browser.sees("of the memory of end-to-end")
    browser.resize(1440, 660)
    take("new-job")

    def half_done() -> bool:
        blocks = {task.index: task for task in client.job(job.id).blocks}
        return blocks[0].status is TaskState.SUCCEEDED and blocks[2].step > blocks[2].total / 3

    wait_for(half_done, seconds=900, what="a block that has finished, and another in training")
    browser.open()
    browser.sees("digits-next")
    browser.resize(1440, 460)
    take("jobs")
    browser.resize(1440, 1400)
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.open(f"#/jobs/{job.id}")
        browser.find(".chart path.line")
        browser.find(".lines li")
        browser.until(lambda: browser.find("[data-task=block-2] .speed").text != "–", "a speed")
        take(f"job-{scheme}")
    browser.prefer("light")
    browser.resize(360, 780)
    browser.open(f"#/jobs/{job.id}")
    browser.find(".chart path.line")
    take("job-narrow")
    for found in client.jobs():
        if found.status not in TERMINAL_JOB:
            client.cancel(found.id, force=True)
