"""Since when a worker is silent, by the looker's own clock."""

from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import Progress, Run, TaskState
from dbserve.sight import BLIND_SECONDS, Sight, Silence
from tests.unit.test_scheduling import a_job

RUN = Run(job_id="j1", task="block-0", attempt=1)


def told(heartbeat_at: float, step: int = 0, trials: int = 0) -> JobOutline:
    job = a_job(block_0={"state": TaskState.RUNNING, "pid": 7, "started_at": 1.0})
    progress = Progress(run=RUN, step=step, total=20, trials=trials, heartbeat_at=heartbeat_at)
    return job.model_copy(update={"progress": {"block-0": progress}})


def looks(*seen: tuple[float, JobOutline]) -> Silence:
    sight = Sight()
    found = [sight.look([job], now) for now, job in seen]
    return found[-1][RUN]


def test_a_worker_is_first_seen_in_the_act_however_old_its_last_word_is() -> None:
    assert looks((100.0, told(1.0))) == Silence(0.0, 0.0)


def test_what_tells_nothing_new_grows_silent() -> None:
    assert looks((100.0, told(1.0)), (104.0, told(1.0)), (108.0, told(1.0))) == Silence(8.0, 8.0)


def test_heartbeats_without_steps_are_life_without_progress() -> None:
    assert looks((100.0, told(1.0, 5)), (104.0, told(2.0, 5)), (108.0, told(3.0, 5))) == Silence(0.0, 8.0)


def test_a_trial_of_a_rate_is_progress() -> None:
    assert looks((100.0, told(1.0)), (104.0, told(2.0, trials=1))) == Silence(0.0, 0.0)


def test_a_clock_that_runs_backwards_elsewhere_changes_nothing() -> None:
    assert looks((100.0, told(5000.0)), (104.0, told(17.0))) == Silence(0.0, 4.0)


def test_after_a_blind_spell_every_clock_starts_anew() -> None:
    blind = BLIND_SECONDS + 1.0
    assert looks((100.0, told(1.0)), (104.0, told(1.0)), (104.0 + blind, told(1.0))) == Silence(0.0, 0.0)


def test_a_worker_that_begins_is_another_sight_than_one_that_was_asked_for() -> None:
    asked = a_job(block_0={"state": TaskState.LAUNCHED})
    begun = a_job(block_0={"state": TaskState.RUNNING, "pid": 7, "started_at": 1.0})
    assert looks((100.0, asked), (104.0, asked), (108.0, begun)).heartbeat == 0.0


def test_who_is_held_no_more_is_forgotten() -> None:
    sight = Sight()
    sight.look([told(1.0)], 100.0)
    assert sight.look([a_job()], 101.0) == {}
    assert sight.silent_for(RUN, 200.0) == 0.0
