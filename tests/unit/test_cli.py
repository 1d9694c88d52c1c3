"""The command line: what it prints, where its errors point, which code it exits with. No server runs."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from dbserve.api.views import job_view
from dbserve.cli import cli
from dbserve.cli_print import print_plan, readable
from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, Vocabulary
from dbserve.contracts.report import Report
from dbserve.contracts.status import TaskState
from dbserve.contracts.views import JobView, Page, Problem
from dbserve.report.verdict import verdict
from tests.jobs import small_plan, small_spec
from tests.reports import every_family, generation, masked_text
from tests.snapshots import every_task, snapshot

JOB_FILE = """\
name: digits
architecture: {kind: vit, options: {depth: 2, width: 16, heads: 2, patch: 4}}
data: {uri: "builtin:digits"}
blocks: {count: 2}
training: {steps: 20, batch_size: 32}
"""


@pytest.fixture(autouse=True)
def own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DBSERVE_URL", "DBSERVE_API_KEY", "DBSERVE_HOST", "DBSERVE_PORT", "DBSERVE_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=given)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_FILE)
    return path


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Response]:
    """A server that gives these answers, one after the other."""
    answers: list[httpx.Response] = []

    def made(url: str, api_key: str | None) -> Client:
        return Client(url, api_key, transport=httpx.MockTransport(lambda _: answers.pop(0)))

    monkeypatch.setattr("dbserve.client.Client.__enter__", lambda self: made(self.base_url, None))
    return answers


def answer(model: JobView | Page[object] | Problem, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=model.model_dump_json())


def refusal(status: int, code: str, *errors: dict[str, str]) -> httpx.Response:
    problem = {"type": "t", "title": "T", "status": status, "detail": f"it is {code}", "instance": "/", "code": code}
    return httpx.Response(status, json={**problem, "request_id": "r", "errors": list(errors)})


# --- plan


def test_the_options_of_a_network_are_said_without_any_server() -> None:
    assert "heads" in run("architectures", "vit").output
    card = json.loads(run("architectures", "vit", "--json").output)
    assert card["options_schema"]["properties"]["depth"]["default"] == 12
    unknown = run("architectures", "resnet")
    assert unknown.exit_code == 2
    assert re.search(r"known: .*\bvit\b", unknown.output)


def test_a_plan_is_made_here_without_any_server(job_file: Path) -> None:
    result = run("plan", "-f", str(job_file), "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [block["index"] for block in plan["blocks"]] == [0, 1]
    assert plan["blocks"][0]["layers"] == [0, 1]
    assert plan["blocks"][0]["sigma_max"] == plan["contract"]["sigma_max"], "block 0 owns sigma_max"
    assert plan["end_to_end"]["memory"]["total"] > plan["blocks"][0]["memory"]["total"]


def test_a_plan_for_people_names_every_block_and_the_ratio(job_file: Path) -> None:
    result = run("plan", "-f", str(job_file))
    assert result.exit_code == 0, result.output
    for text in ("block 0", "block 1", "end-to-end", "activations", "memory ratio"):
        assert text in result.stdout


def printed(plan: JobPlan, spec: JobSpec, capsys: pytest.CaptureFixture[str]) -> str:
    print_plan(spec, plan)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out
    return out


def test_a_plan_of_text_says_tokens_and_levels_of_masking(capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan()
    words = Vocabulary(kind="characters", size=65, symbols=("a",), sha256="0" * 64)
    text = {"image_shape": None, "class_names": (), "vocabulary": words, "sequence_length": 128}
    facts = plan.data.model_copy(update={**text, "encoding": "text"})
    contract = plan.contract.model_copy(update={**text, "p_mean": None, "p_std": None})
    out = printed(plan.model_copy(update={"data": facts, "contract": contract}), small_spec(), capsys)
    assert "windows of 128 tokens: 1000 to train on" in out
    assert "vocabulary: 65 characters" in out
    assert "mask t" in out
    assert "sigma" not in out
    assert "classes" not in out


def test_a_plan_of_latents_says_that_they_are_not_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan()
    facts = plan.data.model_copy(update={"image_shape": (32, 32, 4), "encoding": "float32", "class_names": ()})
    assert "32x32x4 float32, as they are; no classes" in printed(
        plan.model_copy(update={"data": facts}), small_spec(), capsys
    )


def test_a_plan_says_what_a_worker_of_every_baseline_needs(capsys: pytest.CaptureFixture[str]) -> None:
    baselines = ["end_to_end", "shallow_ensemble", "shallow_long", "data_parallel"]
    spec = small_spec(evaluation={"baselines": baselines})
    out = printed(small_plan(spec), spec, capsys)
    sizes, memory = out.split("bytes per worker")
    rows = {line[:13].strip(): line[13:].split() for line in sizes.splitlines()}
    assert rows["shallow x2"][-2:] == ["20", "1"]
    assert rows["shallow, long"][-2:] == ["40", "1"]
    assert rows["data-parallel"][-2:] == ["10", "2"]
    held = {line[:13].strip(): line[13:].strip() for line in memory.splitlines()}
    assert held["data-parallel"] == held["end-to-end"]
    assert held["shallow, long"] == held["shallow x2"] != held["end-to-end"]


def test_a_plan_without_baselines_still_shows_what_its_blocks_are_measured_against(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(small_plan(), small_spec(), capsys)
    (row,) = re.findall(r"end-to-end +0\.\.1 .*", out)
    assert row.split()[-2:] == ["-", "-"]
    assert "shallow" not in out


def test_a_plan_of_a_large_network_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    vit = {"kind": "vit", "options": {"depth": 64, "width": 1024, "heads": 16, "patch": 2}}
    baselines = ["end_to_end", "shallow_ensemble", "shallow_long", "data_parallel"]
    spec = small_spec(
        architecture=vit,
        blocks={"count": 64, "partition": "uniform_log"},
        training={"steps": 100_000_000, "batch_size": 15},
        evaluation={"baselines": baselines},
    )
    out = printed(small_plan(spec), spec, capsys)
    assert "64 blocks, uniform log" in out


def test_a_plan_can_come_from_stdin_in_either_language(job_file: Path) -> None:
    from_file = run("plan", "-f", str(job_file), "--json").stdout
    assert run("plan", "-f", "-", "--json", given=JOB_FILE).stdout == from_file
    as_json = small_spec(name="digits").model_dump_json()
    assert json.loads(run("plan", "-f", "-", "--json", given=as_json).stdout)["blocks"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("steps: 20", "stepz: 20", "/training/stepz: unknown key; did you mean 'steps'?"),
        ("steps: 20", "steps: .nan", "/training/steps: must be a finite number"),
        ("heads: 2", "heads: 3", "/architecture/options/heads: "),
        ("kind: vit", "kind: mlp", "/architecture/kind: "),
        ("depth: 2", "depth: 1000000000", "/architecture/options/depth: "),
        ("count: 2", "count: 7", "/blocks/count: "),
        ("builtin:digits", "./none/*.parquet", "/data/uri: "),
        ("name: digits", "name: [", "not YAML"),
    ],
)
def test_bad_input_is_one_line_with_file_and_pointer(job_file: Path, old: str, new: str, complaint: str) -> None:
    assert old in JOB_FILE
    job_file.write_text(JOB_FILE.replace(old, new))
    result = run("plan", "-f", str(job_file))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"dbserve: {job_file}: ") for line in lines), result.stderr
    assert any(complaint in line for line in lines), result.stderr


def test_a_file_that_is_not_there_is_named() -> None:
    result = run("submit", "-f", "nowhere.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        "dbserve: nowhere.yaml: cannot be read: No such file or directory\n",
    )


# --- exit codes


@pytest.mark.parametrize(
    "command",
    [
        "jobs",
        "show j1",
        "watch j1",
        "logs j1",
        "cancel j1",
        "delete j1",
        "report j1",
        "models list",
        "models show m1",
        "models download m1",
    ],
)
def test_a_server_that_does_not_answer_is_code_3_and_one_line(nobody: str, command: str) -> None:
    result = run(*command.split(), "--url", nobody)
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith(f"dbserve: no dbserve API answers at {nobody}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (refusal(404, "job_not_found"), 4),
        (refusal(409, "job_terminal"), 4),
        (refusal(503, "store_unavailable"), 3),
        (refusal(401, "unauthorized"), 2),
        (refusal(500, "internal_error"), 1),
    ],
)
def test_what_the_server_refuses_has_a_documented_code(
    server: list[httpx.Response], refused: httpx.Response, code: int
) -> None:
    server.append(refused)
    result = run("cancel", "j1")
    assert result.exit_code == code
    assert result.stderr.startswith("dbserve: it is ")


def test_a_fault_that_the_server_found_names_the_file(server: list[httpx.Response], job_file: Path) -> None:
    fault = {"pointer": "/data/uri", "code": "data_invalid", "message": "no such shard"}
    server.append(refusal(422, "data_invalid", fault))
    result = run("submit", "-f", str(job_file))
    assert (result.exit_code, result.stderr) == (2, f"dbserve: {job_file}: /data/uri: no such shard\n")


def test_wrong_usage_is_code_2() -> None:
    for command in (["submit"], ["jobs", "--status", "odd"], ["jobs", "--label", "team"], ["fly"]):
        assert run(*command).exit_code == 2, command


def test_a_public_address_without_a_key_is_refused() -> None:
    result = run("api", "--host", "0.0.0.0")
    assert result.exit_code == 5
    assert "DBSERVE_API_KEY" in result.stderr


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("api", "--port", str(port))
    assert (result.exit_code, result.stderr) == (
        5, f"dbserve: cannot listen on 127.0.0.1 port {port}: Address already in use\n",
    )  # fmt: skip


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbserve.cli_jobs.connected", interrupted)
    assert run("jobs").exit_code == 130


# --- output


def test_submit_prints_the_id_alone_so_that_a_script_can_keep_it(server: list[httpx.Response], job_file: Path) -> None:
    server.append(answer(job_view(snapshot()), 202))
    result = run("submit", "-f", str(job_file))
    assert (result.exit_code, result.stdout) == (0, "j1\n")


@pytest.mark.parametrize(("state", "code"), [(TaskState.SUCCEEDED, 0), (TaskState.FAILED, 1), (TaskState.CANCELLED, 1)])
def test_watching_ends_with_the_fate_of_the_job(
    server: list[httpx.Response], monkeypatch: pytest.MonkeyPatch, state: TaskState, code: int
) -> None:
    monkeypatch.setattr("dbserve.cli_live.POLL_SECONDS", 0.0)
    server += [answer(job_view(snapshot())), refusal(503, "store_unavailable")]
    server += [answer(job_view(snapshot(**every_task(state=state, message="why"))))]
    result = run("watch", "j1")
    assert result.exit_code == code, result.output
    assert "does not answer" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("small (j1) ")


def test_watching_with_json_prints_the_ended_job_and_nothing_else(server: list[httpx.Response]) -> None:
    server.append(answer(job_view(snapshot(**every_task(state=TaskState.SUCCEEDED)))))
    result = run("watch", "j1", "--json")
    assert JobView.model_validate_json(result.stdout).status == "succeeded"


def test_json_of_a_list_is_a_page(server: list[httpx.Response]) -> None:
    server.append(httpx.Response(200, json={"data": [], "has_more": False, "next": None}))
    assert json.loads(run("jobs", "--json").stdout) == {"data": [], "has_more": False, "next": None}


def test_the_report_is_written_where_it_is_asked_for(server: list[httpx.Response], tmp_path: Path) -> None:
    server += [httpx.Response(200, text="<html>report</html>")] * 2
    assert run("report", "j1").stdout == "j1-report.html\n"
    assert run("report", "j1", "-o", "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_text() == (tmp_path / "j1-report.html").read_text() == "<html>report</html>"


@pytest.mark.parametrize("found", every_family(), ids=lambda found: found.quality.family)
def test_a_report_in_brief_has_its_verdict_and_fits_into_80_columns(
    server: list[httpx.Response], found: Report, tmp_path: Path
) -> None:
    server.append(httpx.Response(200, content=found.model_dump_json()))
    result = run("report", "j1", "--summary")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80, result.stdout
    told = " ".join(result.stdout.split())
    for sentence in (*verdict(found).sentences, *found.findings, *found.warnings):
        assert " ".join(readable(sentence).split()) in told
    assert list(tmp_path.iterdir()) == [], "no page is written"


def test_a_report_in_brief_names_every_contestant_with_all_its_values(server: list[httpx.Response]) -> None:
    server.append(httpx.Response(200, content=generation().model_dump_json()))
    out = run("report", "j1", "--summary").stdout
    assert re.search(r"One shallow network, longer +15\.5 ± 0\.5 +6\.6 worse +100", out)
    assert re.search(r"End-to-end +0\.2051 ± 0\.0008 +17\.3 +8\.58 MiB", out)
    assert re.search(r"Data-parallel +n/a +n/a +n/a", out)


def test_a_brief_report_as_json_is_the_report_as_json(server: list[httpx.Response]) -> None:
    server += [httpx.Response(200, content=masked_text().model_dump_json())] * 2
    whole = run("report", "j1", "--json").stdout
    assert Report.model_validate_json(whole) == masked_text()
    assert run("report", "j1", "--json", "--summary").stdout == whole


def test_text_of_others_is_not_taken_for_markup(server: list[httpx.Response]) -> None:
    server.append(answer(job_view(snapshot(block__0={"state": TaskState.FAILED, "message": "[bold]tensor[0] [/x]"}))))
    result = run("show", "j1")
    assert result.exit_code == 0, result.output
    assert "[bold]tensor[0] [/x]" in result.stdout


def test_help_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, dbserve.cli\n"
        "print([n for n in ('pydantic', 'httpx', 'fastapi', 'redis', 'ray', 'torch', 'numpy') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
