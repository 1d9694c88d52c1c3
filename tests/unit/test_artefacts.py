"""The artefact store on a directory, scratch directories, and where things lie."""

import os
import signal
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from dbserve.api.archive import archive
from dbserve.artefacts import (
    Artefacts,
    LocalArtefacts,
    attempt_of,
    job_directory,
    model_directory,
    new_checkpoint_directory,
    open_artefacts,
)
from dbserve.artefacts.objects import ObjectArtefacts
from dbserve.artefacts.scratch import scratch_directory
from dbserve.contracts.status import Run
from dbserve.errors import ConfigInvalid, StorageError
from dbserve.failpoints import FAILPOINTS, VARIABLE

RUN = Run(job_id="j1", task="block-0", attempt=3)


@pytest.fixture
def artefacts(tmp_path: Path) -> LocalArtefacts:
    return LocalArtefacts(tmp_path / "root")


def put(artefacts: Artefacts, place: str, *names: str) -> None:
    with artefacts.whole(place, last=names[-1]) as staged:
        for name in names:
            (staged / name).write_text(name)


# --- where things lie


def test_a_checkpoint_lies_under_its_attempt_and_never_where_another_one_was() -> None:
    first, second = (new_checkpoint_directory(RUN, 200) for _ in range(2))
    assert str(first).startswith("jobs/j1/block-0/attempt-3/step-00000200-")
    assert first != second
    assert job_directory("j1") in first.parents
    assert str(model_directory("m1")) == "models/m1"


@pytest.mark.parametrize(
    ("name", "attempt"), [("attempt-12", 12), ("attempt-", None), ("attempt-x", None), ("step-1", None), ("12", None)]
)
def test_an_attempts_directory_is_known_by_its_name(name: str, attempt: int | None) -> None:
    assert attempt_of(name) == attempt


def test_a_location_is_a_directory_or_a_uri(tmp_path: Path) -> None:
    for location in (str(tmp_path), f"file://{tmp_path}"):
        opened = open_artefacts(location)
        assert isinstance(opened, LocalArtefacts)
        assert opened.location == str(tmp_path)
    remote = open_artefacts("s3://key:secret@bucket/a/b?region=eu-west-1")
    assert isinstance(remote, ObjectArtefacts)
    assert remote.location == "s3://bucket/a/b", "no credentials, no options"


@pytest.mark.parametrize("uri", ["zz://key:hush@bucket/x", "s3://key:hush@bucket/x?nonsense=1", "s3://key:hu sh@b/x"])
def test_a_location_that_cannot_be_opened_is_refused_without_its_credentials(uri: str) -> None:
    with pytest.raises(ConfigInvalid, match="artifacts") as refused:
        ObjectArtefacts(uri).check()
    assert "hu" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


# --- a directory


def test_a_directory_is_there_once_its_writing_is_over(artefacts: LocalArtefacts) -> None:
    with artefacts.whole("jobs/j1/a", last="manifest") as staged:
        (staged / "manifest").write_text("m")
        assert artefacts.names("jobs/j1") == (staged.name,), "under another name meanwhile"
    assert artefacts.names("jobs/j1") == ("a",)
    with artefacts.fetch("jobs/j1/a") as directory:
        assert (directory / "manifest").read_text() == "m"
    assert b"".join(artefacts.read("jobs/j1/a/manifest")) == b"m"


def test_what_a_cut_short_writing_left_is_gone_and_its_error_is_typed(artefacts: LocalArtefacts) -> None:
    with pytest.raises(StorageError, match="cannot write"), artefacts.whole("jobs/j1/a", last="m"):
        raise OSError("no space left")
    assert artefacts.names("jobs/j1") == ()


def test_a_directory_that_is_there_is_not_replaced(artefacts: LocalArtefacts) -> None:
    put(artefacts, "jobs/j1/a", "m")
    with pytest.raises(StorageError):
        put(artefacts, "jobs/j1/a", "x", "m")
    assert [file.name for file in artefacts.files("jobs/j1/a")] == ["m"]


def test_every_directory_that_is_made_on_the_way_is_synced(
    artefacts: LocalArtefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    put(artefacts, "jobs/j1/a", "m")
    assert set(synced[:3]) == {"root/jobs", "root", "."}, "each holds the name of the next"
    assert synced[-1] == "root/jobs/j1"


def test_a_missing_directory_of_a_job_that_is_there_is_empty_and_one_of_a_job_that_is_not_is_an_error(
    artefacts: LocalArtefacts,
) -> None:
    put(artefacts, "jobs/j1/a", "m")
    with artefacts.fetch("jobs/j1/b") as directory:
        assert not directory.exists()
    with pytest.raises(StorageError, match="not mounted"), artefacts.fetch("jobs/j2/b"):
        pass


def test_removing_takes_all_of_a_directory_and_may_be_repeated(artefacts: LocalArtefacts) -> None:
    put(artefacts, "jobs/j1/a", "m")
    put(artefacts, "jobs/j2/a", "m")
    for _ in range(2):
        artefacts.remove("jobs/j1")
    assert artefacts.names("jobs") == ("j2",)


@pytest.mark.parametrize("place", ["../x", "/etc", "", "jobs/../../x", "."])
def test_nothing_outside_the_root_is_touched(artefacts: LocalArtefacts, place: str) -> None:
    remote = ObjectArtefacts("s3://bucket/root?region=eu-west-1")
    for store in (artefacts, remote):
        for touch in (store.remove, store.names, store.files, lambda at, s=store: list(s.read(at))):
            with pytest.raises(StorageError, match="does not lie under the artefact root"):
                touch(place)


def test_a_store_says_whether_its_root_is_there(artefacts: LocalArtefacts) -> None:
    with pytest.raises(StorageError, match="not a directory"):
        artefacts.check()
    artefacts.prepare()
    artefacts.check()


def test_an_archive_holds_the_files_and_no_links(artefacts: LocalArtefacts, tmp_path: Path) -> None:
    put(artefacts, "models/m", "block-0.safetensors", "model.json")
    home = Path(artefacts.location) / "models/m"
    (tmp_path / "secret").write_text("secret")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "linked").symlink_to(tmp_path)
    packed = archive(artefacts, "models/m", "m", at=7.0)
    stream = b"".join(packed.chunks())
    assert len(stream) == packed.size
    with tarfile.open(fileobj=BytesIO(stream)) as tar:
        assert {(member.name, member.mtime) for member in tar} == {("m/block-0.safetensors", 7), ("m/model.json", 7)}
        found = tar.extractfile("m/model.json")
        assert found is not None
        assert found.read() == b"model.json"


def test_an_archive_of_a_file_that_shrank_breaks_and_of_one_that_grew_is_cut(artefacts: LocalArtefacts) -> None:
    put(artefacts, "models/m", "model.json")
    file = Path(artefacts.location) / "models/m/model.json"
    packed = archive(artefacts, "models/m", "m", at=7.0)
    file.write_text("model.json and more")
    assert len(b"".join(packed.chunks())) == packed.size
    file.write_text("m")
    with pytest.raises(StorageError, match="shorter"):
        b"".join(packed.chunks())


# --- scratch directories


def test_a_scratch_directory_lasts_as_long_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_directory() as first, scratch_directory() as second:
        (first / "f").write_text("x")
        assert first != second
        assert first.exists(), "the second left the first alone"
    assert not first.exists()
    assert not second.exists()


def test_the_scratch_of_a_killed_process_is_swept_and_that_of_a_live_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = (
        "import sys; from dbserve.artefacts.scratch import scratch_directory\n"
        "with scratch_directory() as d: print(d, flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", holding], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        held = Path(other.stdout.readline().strip())
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with scratch_directory():
            assert held.exists()
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        assert held.exists(), "it had no time to tidy up"
        with scratch_directory():
            assert not held.exists()


# --- failpoints


def reach(*names: str, armed: str) -> subprocess.CompletedProcess[str]:
    code = f"from dbserve.failpoints import failpoint\nfor name in {names!r}: failpoint(name)\nprint('went on')"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {VARIABLE: armed}, capture_output=True, text=True, check=False
    )


def test_an_armed_failpoint_kills_the_process_once(tmp_path: Path) -> None:
    armed = f"stop.killed={tmp_path / 'a'},launch.asked={tmp_path / 'b'}"
    assert reach("stop.killed", armed=armed).returncode == -signal.SIGKILL
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert reach("stop.killed", armed=armed).stdout == "went on\n", "each fires once"
    assert reach("stop.killed", "launch.asked", armed=armed).returncode == -signal.SIGKILL


def test_no_failpoint_does_anything_unless_it_is_armed() -> None:
    assert reach(*FAILPOINTS, armed="").stdout == "went on\n"


@pytest.mark.parametrize("armed", ["nonsense=/tmp/x", "stop.killed", "stop.killed=relative"])
def test_a_variable_that_cannot_be_meant_is_refused_at_the_first_point(armed: str) -> None:
    ended = reach("launch.asked", armed=armed)
    assert ended.returncode == 1
    assert "is not <failpoint>=</absolute/path>" in ended.stderr
