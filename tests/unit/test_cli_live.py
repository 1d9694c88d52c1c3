"""Following a job in the terminal: a bar for each task, a line for each change, and how it ended."""

from rich.console import Console

from dbserve.api.views import job_view
from dbserve.cli_live import Teller, epilogue, picture
from dbserve.contracts.status import Reason, TaskState
from tests.snapshots import every_task, memory, running, snapshot


def test_the_picture_of_a_job_has_a_bar_for_each_task_that_trains() -> None:
    job = snapshot(block__0=running(10, 64.0, loss=1.5, memory=memory(3 << 20)), block__1={"attempt": 2})
    out = Console(width=140, record=True, force_terminal=False)
    out.print(picture(job_view(job), "the server is away"))
    text = out.export_text()
    (block,) = [line for line in text.splitlines() if line.startswith("block-0")]
    for figure in ("running", "━", "10/20", "1.5000", "64", "3.00 MiB", "5 s"):
        assert figure in block
    (lost,) = [line for line in text.splitlines() if line.startswith("block-1")]
    assert lost.split()[2] == "2", "its second attempt"
    assert "the server is away" in text


def test_lines_tell_every_change_once_and_progress_now_and_then() -> None:
    teller = Teller()
    pending, started = job_view(snapshot()), job_view(snapshot(block__0=running(1)))
    further = job_view(snapshot(block__0=running(2)))
    assert len(list(teller.news(pending, "", 0.0))) == len(pending.tasks) + 1
    assert list(teller.news(pending, "", 1.0)) == []
    first, *_ = teller.news(started, "", 2.0)
    assert first == "block-0 running on n1"
    assert list(teller.news(further, "", 3.0)) == []
    assert len(list(teller.news(further, "", 60.0))) == 1


def test_a_failure_is_told_with_its_reason() -> None:
    lost = {"state": TaskState.FAILED, "reason": Reason.NONFINITE_LOSS, "message": "loss is NaN at step 7"}
    job = job_view(snapshot(**{**every_task(state=TaskState.CANCELLED), "block__0": lost}))
    assert epilogue(job) == "small (j1) failed: block-0: loss is NaN at step 7; see: dbserve logs j1"
