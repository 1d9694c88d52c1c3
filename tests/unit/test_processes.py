"""What `dbserve up` makes of its children, its directory and its ports. No service is started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from redis.connection import parse_url

from dbserve import embedded, processes
from dbserve.errors import StartupRefused
from dbserve.processes import Child
from tests.waiting import wait_for

PATIENCE_SECONDS = 30.0


def a_child(log: Path, code: str, **changes: object) -> Child:
    return Child("child", [sys.executable, "-c", code], os.environ, log, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 1.0), (3, 8.0), (5, 30.0), (5000, 30.0)])
def test_a_child_may_die_all_night(restarts: int, seconds: float) -> None:
    assert processes._restart_wait(restarts) == seconds  # pyright: ignore[reportPrivateUsage]


def test_a_child_is_not_ready_because_an_earlier_one_was(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("reconciling on an earlier cluster\n")
    child = a_child(log, "print('refused')")
    child.start()
    assert child.process is not None
    child.process.wait(20)
    assert child.said() == "refused\n"
    assert child.last_lines() == "refused"


def test_a_second_service_on_the_same_data_is_refused_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    ours, theirs = (embedded._only_one(tmp_path) for _ in range(2))  # pyright: ignore[reportPrivateUsage]
    with ours, pytest.raises(StartupRefused, match="another dbserve"), theirs:
        pass
    assert time.monotonic() - began < processes.STOP_SECONDS


def test_a_service_waits_for_the_redis_of_one_that_was_killed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(20)
    with embedded._only_one(tmp_path) as lock:  # pyright: ignore[reportPrivateUsage]
        redis = a_child(tmp_path / "redis.log", "import time; time.sleep(0.5)", keeps_open=[lock])
        redis.start()
        (tmp_path / "lock").write_text(str(gone.pid))
    with embedded._only_one(tmp_path):  # pyright: ignore[reportPrivateUsage]
        assert redis.process is not None
        redis.process.wait(1)  # the lock came free with its end
    assert redis.process.returncode == 0


def test_what_a_child_started_ends_with_it_even_in_a_process_group_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, subprocess; subprocess.Popen(['sleep', '600'], preexec_fn=os.setpgrp); print('ready', flush=True)"
    )
    child = a_child(tmp_path / "child.log", code)
    child.start()
    wait_for(
        lambda: "ready" in child.said() and child.process is not None and child.process.poll() is not None,
        seconds=PATIENCE_SECONDS,
        what="it said so, and is gone",
    )
    assert len(child.session()) == 1, "the grandchild outlives its parent"
    assert child.ended() == 0
    assert not child.session()


def test_a_child_that_lived_long_starts_again_at_once_and_one_that_did_not_waits(tmp_path: Path) -> None:
    child = a_child(tmp_path / "child.log", "", restarts=4)
    child.start()
    assert child.process is not None
    child.process.wait(20)
    said: list[str] = []
    processes.revive(child, said.append)
    assert (said, child.restarts) == ([], 4)
    child.started_at -= processes.LONG_LIFE
    child.ended_at = None
    processes.revive(child, said.append)
    assert (said, child.restarts) == (["child ended with 0; starting it again"], 0)
    child.kill()


def test_a_child_ends_with_the_one_it_leans_on_and_starts_when_that_one_answers(tmp_path: Path) -> None:
    answers: list[bool] = []
    ground = a_child(tmp_path / "ground.log", "import time; time.sleep(600)", answers=lambda: bool(answers))
    child = a_child(tmp_path / "child.log", "import time; time.sleep(600)", leans_on=ground)
    for one in (ground, child):
        one.start()
        one.started_at -= processes.LONG_LIFE
    assert child.process is not None
    assert ground.process is not None
    first = child.process
    ground.process.kill()
    ground.process.wait(20)
    said: list[str] = []
    try:
        processes.revive(ground, said.append)  # back before anybody looked at the one that leans on it
        processes.revive(child, said.append)
        assert child.ended() == -signal.SIGKILL
        processes.revive(child, said.append)
        assert child.process is first, "it waits for an answer"
        answers.append(True)
        processes.revive(child, said.append)
        assert child.ended() is None
        assert [line.split()[0] for line in said] == ["child", "child"]
    finally:
        ground.kill()
        child.kill()


def test_the_workers_of_our_ray_get_a_sigterm_and_time_for_a_last_checkpoint(tmp_path: Path) -> None:
    worker = """import signal, sys, time
signal.signal(15, lambda *_: (time.sleep(0.3), print('saved', flush=True), sys.exit()))
print('ready', flush=True)
time.sleep(600)"""
    code = f"""import subprocess, sys, time
subprocess.Popen(['ray::BlockActor.work', '-c', {worker!r}], executable=sys.executable)
time.sleep(600)"""
    ray = a_child(tmp_path / "ray.log", code)
    ray.start()
    try:
        wait_for(lambda: "ready" in ray.said(), seconds=PATIENCE_SECONDS, what="ray is ready")
        embedded._let_workers_save(ray, threading.Event())  # pyright: ignore[reportPrivateUsage]
        assert "saved" in ray.said()
        assert ray.ended() is None, "Ray itself is stopped later"
    finally:
        ray.kill()


def test_a_second_ctrl_c_waits_for_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WORKER", sys.executable.encode())
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    worker = a_child(tmp_path / "ray.log", code)
    hurried = threading.Event()
    hurried.set()
    worker.start()
    try:
        wait_for(lambda: "ready" in worker.said(), seconds=PATIENCE_SECONDS, what="the worker is ready")
        embedded._let_workers_save(worker, hurried)  # pyright: ignore[reportPrivateUsage]
        assert embedded._workers_of(worker), "it was not waited for"  # pyright: ignore[reportPrivateUsage]
    finally:
        worker.kill()


def test_a_data_directory_may_have_any_name(tmp_path: Path) -> None:
    home = tmp_path / "a b#c%41?d"
    home.mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(embedded, "LONGEST_SOCKET_PATH", 1000)
        url, command = embedded._redis_command(home, stack)  # pyright: ignore[reportPrivateUsage]
    path = str(parse_url(url)["path"])  # pyright: ignore[reportUnknownArgumentType]
    assert path == str(home / "redis" / "redis.sock")
    assert path in command


def test_the_sockets_of_ray_are_short_enough_wherever_temporary_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("long" * 25)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))
    with contextlib.ExitStack() as stack:
        made = embedded._temporary_directory(stack, embedded.RAY_PREFIX, len(embedded.RAY_SOCKET))  # pyright: ignore[reportPrivateUsage]
        assert len(f"{made}{embedded.RAY_SOCKET}") <= embedded.LONGEST_SOCKET_PATH
    assert not made.exists()


def test_ray_gets_no_port_that_another_ray_has(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        _, command = embedded._ray_command(tmp_path, stack, None)  # pyright: ignore[reportPrivateUsage]
        ports = [int(word.split("=")[1]) for word in command if "port=" in word]
        assert len(set(ports)) == 3
        for port in ports:
            with socket.create_server(("127.0.0.1", port)):
                pass


def test_what_a_killed_service_left_of_its_ray_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / f"{embedded.RAY_PREFIX}killed"
    (left / "session").mkdir(parents=True)
    (tmp_path / "ray-directory").write_text(str(left))
    with contextlib.ExitStack() as stack:
        embedded._ray_command(tmp_path, stack, None)  # pyright: ignore[reportPrivateUsage]
        assert not left.exists()
