"""What a user does with jobs on the page: submits, watches, pauses, resumes, cancels. Real training, real browser."""

import contextlib
import json
import time
from collections.abc import Iterator

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from dbserve.client import Client
from dbserve.contracts.status import JobStatus, Run
from dbserve.contracts.views import JobView
from dbserve.store import JobStore
from dbserve.store.history import Said
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job, long_job
from tests.ui.browser import Browser
from tests.ui.conftest import KEY
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

START_SECONDS = 120.0  # until a worker trains
JOB = """
name: from-the-page
architecture: {kind: vit, options: {depth: 2, width: 32, heads: 2, patch: 2}}
data: {uri: "builtin:digits"}
blocks: {count: 2}
training: {steps: 60, batch_size: 64, lr: 3.0e-3}
checkpoint: {every_steps: 20}
evaluation: {baselines: []}
"""


def status_of(browser: Browser) -> str:
    return browser.find(".names .pill").text


def step_of(browser: Browser, task: str) -> int:
    return int(browser.find(f"[data-task={task}] .done .steps").text.split("/")[0].replace(",", ""))


@pytest.fixture(scope="module")
def training(service: Service) -> Iterator[JobView]:
    """A job that trains whenever a test looks."""
    with Client(service.url, api_key=KEY) as client:
        job = client.submit(long_job(name="all-night", labels={"team": "vision"}))
        wait_for(lambda: client.job(job.id).progress.step > 0, seconds=START_SECONDS, what="training")
        yield client.job(job.id)
        client.cancel(job.id, force=True)


def test_a_job_is_planned_submitted_and_watched_to_its_end(browser: Browser, client: Client) -> None:
    browser.open("#/new")
    browser.button("Plan").click()
    browser.sees("of the memory of end-to-end training")  # of the example, as it stands there
    text = browser.find("textarea")
    text.clear()
    text.send_keys(JOB)
    browser.button("Plan").click()
    browser.sees("2 blocks")
    browser.button("Submit").click()
    browser.sees("from-the-page")
    browser.until(lambda: browser.route.startswith("/jobs/"), "the job's own view")
    job_id = browser.route.removeprefix("/jobs/")
    wait_for(lambda: client.job(job_id).status is JobStatus.SUCCEEDED, seconds=START_SECONDS, what="success")
    browser.until(lambda: status_of(browser) == "succeeded", "succeeded")  # not loaded anew
    browser.until(lambda: browser.find("#link").text.startswith("Final"), "that nothing more is expected")
    assert step_of(browser, "block-1") == 60
    browser.find(".events", "succeeded")
    browser.button("Report").click()  # with a key, a link would be refused: it is fetched
    report = browser.until(lambda: next(iter(browser.downloads.glob("*.html")), None), "a report")
    assert report.name == f"report-{job_id}.html"
    browser.until(lambda: "from-the-page" in report.read_text(), "the report's content")


def test_a_job_in_training_moves_without_being_asked(browser: Browser, training: JobView) -> None:
    browser.open(f"#/jobs/{training.id}")
    browser.sees("Block 0")
    before = step_of(browser, "block-0")
    browser.until(lambda: step_of(browser, "block-0") > before, "another step")
    browser.sees("% of end-to-end")
    browser.until(lambda: browser.find(".chart path.line"), "a curve")
    browser.find(".events", "started on")
    browser.find(".lines li")


def test_a_curve_is_read_by_arrow_keys_and_as_a_table(browser: Browser, training: JobView) -> None:
    browser.open(f"#/jobs/{training.id}")
    browser.until(lambda: browser.find(".chart path.line"), "a curve")
    browser.script("document.querySelector('.plot').focus()")
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    spoken = browser.until(
        lambda: browser.script("return document.querySelector('.chart [aria-live]').textContent"), "a reading"
    )
    assert spoken.startswith("Step ")
    assert "Block 0" in spoken
    browser.find(".chart summary").click()
    browser.find(".as-table td")


def test_a_job_is_paused_and_resumed(browser: Browser, client: Client, training: JobView) -> None:
    browser.open(f"#/jobs/{training.id}")
    browser.button("Pause").click()
    browser.find("dialog", "save a last checkpoint")
    browser.find("dialog button", "Pause").click()
    browser.until(lambda: status_of(browser) == "paused", "paused", seconds=START_SECONDS)
    assert client.job(training.id).status is JobStatus.PAUSED
    saved = step_of(browser, "block-0")
    assert saved > 0
    browser.button("Resume").click()
    browser.until(lambda: status_of(browser) == "running", "running", seconds=START_SECONDS)
    browser.until(lambda: step_of(browser, "block-0") > saved, "another step", seconds=START_SECONDS)


def test_a_job_is_cancelled_by_keyboard_alone_and_only_after_confirmation(browser: Browser, client: Client) -> None:
    job = client.submit(digits_job(name="not-wanted"))
    browser.open(f"#/jobs/{job.id}")
    browser.button("Cancel")

    def tab_to(text: str) -> None:
        for _ in range(30):
            if browser.focused.text == text:
                return
            browser.press(Keys.TAB)
        raise AssertionError(f"no way to {text!r} by Tab")

    tab_to("Cancel…")
    browser.press(Keys.ENTER)
    browser.find("dialog[open]", "No model is made")
    assert browser.focused.text == "Keep the job", "the safe answer has the focus"
    for _ in range(8):  # the focus stays in the dialog, or goes to the browser's own controls
        browser.press(Keys.TAB)
        assert browser.script(
            "const at = document.activeElement; return at === document.body || !!at.closest('dialog')"
        )
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.script("return !!document.querySelector('dialog')"), "a closed dialog")
    assert browser.focused.text == "Cancel…", "the focus is back where it was"
    assert client.job(job.id).links.cancel is not None, "nothing was asked for"
    browser.press(Keys.ENTER)
    browser.find("dialog[open]")
    tab_to("Cancel the job")
    browser.press(Keys.ENTER)
    browser.until(lambda: status_of(browser) == "cancelled", "cancelled", seconds=START_SECONDS)
    assert client.job(job.id).status is JobStatus.CANCELLED


def test_what_cannot_be_done_is_said_beside_the_button(browser: Browser, client: Client) -> None:
    job = client.submit(digits_job(name="gone-meanwhile"))
    browser.open(f"#/jobs/{job.id}")
    browser.button("Cancel").click()
    browser.find("dialog[open]")
    client.cancel(job.id, force=True)
    wait_for(lambda: client.job(job.id).status is JobStatus.CANCELLED, seconds=60, what="cancelled")
    client.delete(job.id)
    browser.find("dialog button", "Cancel the job").click()
    browser.find(".top .complaint", "not known")


def test_the_page_reconnects_when_the_server_is_back_and_shows_meanwhile_that_it_is_stale(
    browser: Browser, service: Service, training: JobView
) -> None:
    browser.open(f"#/jobs/{training.id}")
    browser.until(lambda: browser.find("#link").text.startswith("Live"), "live")
    browser.sees("Block 0")
    api = service.child("api")
    api.suspend()  # connections stay open, and nothing comes: only the page itself can notice
    try:
        browser.find("#lost", "No news from the server")
        assert browser.find("#link").text.startswith("Reconnecting")
        assert browser.script("return document.documentElement.hasAttribute('data-stale')")
    finally:
        api.kill()
    wait_for(lambda: _answers(service.url), seconds=60, what="the API again")
    browser.until(lambda: browser.find("#link").text.startswith("Live"), "live again", seconds=60)
    assert not browser.script("return document.documentElement.hasAttribute('data-stale')")
    before = step_of(browser, "block-0")
    browser.until(lambda: step_of(browser, "block-0") > before, "another step", seconds=START_SECONDS)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz").status_code == 200
    return False


def test_the_list_is_filtered_and_grows_by_pages(browser: Browser, client: Client, training: JobView) -> None:
    for number in range(27):
        job = client.submit(digits_job(name=f"many-{number:02}"))
        client.cancel(job.id, force=True)
    browser.open()
    browser.sees("many-26")
    assert "many-00" not in browser.text
    browser.button("Show older jobs").click()
    browser.sees("many-00")
    browser.find("#status").send_keys("running")
    browser.until(lambda: "many-26" not in browser.text and "all-night" in browser.text, "running jobs alone")
    assert browser.route == "/?status=running", "the filter is part of the address"
    browser.button("team=vision").click()
    browser.until(lambda: "label=team" in browser.route, "the label's filter")
    browser.find("a", "all-night").click()
    browser.find("h1", "all-night")


async def test_hostile_text_stays_text(browser: Browser, service: Service, training: JobView) -> None:
    attack = "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>"
    store = JobStore.from_url(f"unix://{service.data_dir}/redis/redis.sock")
    run = Run(job_id=training.id, task="block-0", attempt=1)
    await store.history.append_logs(run, [Said(time.time(), "error", attack)])
    await store.aclose()
    browser.open(f"#/jobs/{training.id}")
    browser.find(".lines", attack)
    browser.open("#/new")
    text = browser.find("textarea")
    text.clear()
    text.send_keys(json.dumps({"name": "x", attack: 1}))
    browser.button("Submit").click()
    browser.find(".complaint", "onerror")
    browser.open(f"#/jobs/{training.id}?logs={attack}")
    browser.sees("all-night")
    assert "broken into" not in browser.script("return document.title")
    assert browser.script("return document.querySelectorAll('main img, main script').length") == 0
