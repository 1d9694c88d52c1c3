"""What the page makes of answers that are late, old or many: its modules in a real browser, against a server made up.

A real server is never late when a test would have it so. What it would answer is built from the contracts.
"""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import JobStatus, TaskState
from dbserve.contracts.views import EventView, JobLinks, JobView, ProgressView, TaskView
from tests.acceptance.jobs import digits_job
from tests.ui.browser import Browser

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

MORE_EVENTS_THAN_ARE_KEPT = 1500

# A server in the page: a test may replace `answers`; `asked` is what was asked for, by the last part of its path.
SERVER = """
const asked = [];
let views = null; // the stream of views that was asked for last
const times = (name) => asked.filter((one) => one === name).length;
const turn = () => new Promise((resolve) => setTimeout(resolve, 10));
const until = async (look) => {
  for (const start = Date.now(); !look(); await turn()) {
    if (Date.now() - start > 15_000) throw new Error(`never: ${look}; shown: ${shown}; asked: ${asked}`);
  }
};
const event = (view) => `id: ${view.newest_event}\\nevent: job\\ndata: ${JSON.stringify(view)}\\n\\n`;
const END = 'event: end\\ndata: {}\\n\\n';
const tell = (text) => views.tell(text);
const plain = (body) => new Response(JSON.stringify(body));
const stream = (signal, text) => {
  const pieces = text ? [text] : [];
  let wake = () => {};
  signal.addEventListener('abort', () => wake());
  const read = async () => {
    while (!pieces.length) {
      signal.throwIfAborted();
      await new Promise((resolve) => { wake = resolve; });
    }
    return { done: false, value: pieces.shift() };
  };
  const body = { pipeThrough: () => ({ getReader: () => ({ read }) }) };
  return { ok: true, status: 200, headers: new Headers(), body, tell: (more) => { pieces.push(more); wake(); } };
};
const answers = {
  metrics: () => plain({ tasks: [] }),
  events: () => plain({ data: [], has_more: false, next: '1' }),
  logs: ({ signal, search }) => (search.has('follow') ? stream(signal) : plain({ data: [] })),
  blocks: () => plain({ data: [{ name: 'block-0', layers: [0, 1], sigma_min: 1, sigma_max: 2, restarts: {} }] }),
};
window.fetch = async (path, { headers, signal }) => {
  const [place, search] = path.split('?');
  const name = place.split('/')[4] ?? 'job';
  asked.push(name);
  const seen = headers['Last-Event-ID'] ?? null;
  const answer = await answers[name]({ signal, seen, search: new URLSearchParams(search) });
  if (name === 'live') views = answer;
  return answer;
};
const node = document.createElement('div');
document.getElementById('main').replaceChildren(node);
const click = (name) => node.querySelector(`[data-action=${name}]`).click();
const open = async () => {
  const { open } = await import('/assets/job.js');
  const query = new URLSearchParams();
  await open({ node, path: ['j1'], query, signal: new AbortController().signal, title: () => {} });
};
const shown = []; // every status that the job's head has had, in turn
new MutationObserver(() => {
  const text = node.querySelector('.names .pill')?.textContent;
  if (text && text !== shown.at(-1)) shown.push(text);
}).observe(node, { childList: true, characterData: true, subtree: true });
"""


def view(status: JobStatus, task: TaskState, *, at: int) -> dict[str, Any]:
    """A job of one block as its stream tells it; `at` numbers its events."""
    brief = TaskView(
        name="block-0",
        kind=TaskKind.BLOCK,
        index=0,
        status=task,
        attempt=1,
        max_attempts=3,
        step=0,
        total=10,
        percent=0,
    )
    here = "/v1/jobs/j1"
    links = JobLinks(
        self=here,
        blocks=f"{here}/blocks",
        events=f"{here}/events",
        logs=f"{here}/logs",
        metrics=f"{here}/metrics",
        live=f"{here}/live",
        checkpoints=f"{here}/checkpoints",
        cancel=f"{here}/cancel",
        retry=f"{here}/retry",
    )
    job = JobView(
        id="j1",
        name="made-up",
        labels={},
        architecture="vit",
        status=status,
        created_at=datetime.now(UTC),
        progress=ProgressView(step=0, total=10, percent=0),
        blocks=(brief,),
        tasks=(brief,),
        memory_ratio=0.5,
        contract_hash="c0",
        warnings=(),
        spec=digits_job(),
        links=links,
    )
    return job.model_dump(mode="json") | {"newest_event": str(at)}


QUEUED = view(JobStatus.QUEUED, TaskState.LAUNCHED, at=1)
RUNNING = view(JobStatus.RUNNING, TaskState.RUNNING, at=2)
PAUSED = view(JobStatus.PAUSED, TaskState.PAUSED, at=3)
CANCELLING = view(JobStatus.CANCELLING, TaskState.CANCELLING, at=3)
CANCELLED = view(JobStatus.CANCELLED, TaskState.CANCELLED, at=4)


def against(browser: Browser, script: str, **values: Any) -> Any:
    """What a script returns that runs against the server made up; `values` are its constants."""
    browser.open("#/nowhere")  # a view that asks for nothing
    browser.sees("no such view")
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    return browser.run_module(f"{SERVER}{constants}{script}")


def test_answers_about_blocks_that_are_late_bring_no_older_view_back(stranger: Browser) -> None:
    got = against(
        stranger,
        """
        const held = []; // answers about blocks that wait
        const blocks = await answers.blocks().json();
        const late = { ok: true, headers: new Headers(), json: async () => blocks };
        answers.blocks = () => new Promise((resolve) => held.push(() => resolve(late)));
        answers.job = () => plain(queued);
        answers.live = ({ signal }) => stream(signal, event(queued));
        await open();
        for (const view of [running, paused]) {
          tell(event(view));
          await until(() => shown.at(-1) === view.status);
        }
        const together = held.length;
        for (let answered = 0; held.length && answered < 20; answered += 1) {
          held.shift()();
          await turn();
        }
        return { shown, together, blocks: times('blocks'), metrics: times('metrics'),
          task: node.querySelector('[data-task=block-0]').textContent };
        """,
        queued=QUEUED,
        running=RUNNING,
        paused=PAUSED,
    )
    assert got["shown"] == ["queued", "running", "paused"]
    assert got["together"] == 1, "one request at a time"
    assert got["blocks"] == 2, "once more, because the state had changed meanwhile"
    assert got["metrics"] == 2, "at first, and once more"
    assert "paused" in got["task"]
    assert "layer 0" in got["task"], "what the answer said is there"


def test_what_was_seen_before_an_action_is_not_shown_after_its_answer(stranger: Browser) -> None:
    shown = against(
        stranger,
        """
        let last = running; // as the stream knows it: up to a second old
        answers.job = () => plain(last);
        answers.live = ({ signal, seen }) => stream(signal, seen === last.newest_event ? '' : event(last));
        answers.cancel = () => plain(cancelling);
        await open();
        await until(() => times('live') === 1);
        click('cancel');
        document.querySelector('dialog [type=submit]').click();
        await until(() => times('live') === 2);
        await turn();
        last = cancelled;
        tell(event(last) + END);
        await until(() => document.getElementById('link').textContent.startsWith('Final'));
        return shown;
        """,
        running=RUNNING,
        cancelling=CANCELLING,
        cancelled=CANCELLED,
    )
    assert shown == ["running", "cancelling", "cancelled"]


def test_a_view_from_before_another_try_is_not_taken_for_the_end(stranger: Browser) -> None:
    shown = against(
        stranger,
        """
        let now = cancelled;
        answers.job = () => plain(now);
        answers.live = ({ signal }) => stream(signal, event(cancelled) + END);
        answers.retry = () => plain(now = queued);
        await open();
        await until(() => document.getElementById('link').textContent.startsWith('Final'));
        click('retry');
        await until(() => times('live') === 2);
        answers.live = ({ signal }) => stream(signal, event(running));
        await until(() => shown.at(-1) === 'running');
        return shown;
        """,
        cancelled=CANCELLED,
        queued=QUEUED,
        running=RUNNING,
    )
    assert shown[-1] == "running"
    assert stranger.find("#link").text.startswith("Live")


def test_logs_are_followed_again_when_a_job_that_ended_is_tried_again(stranger: Browser) -> None:
    line = {"id": "1", "at": CANCELLED["created_at"], "task": "block-0", "attempt": 2, "level": "info"}
    against(
        stranger,
        """
        answers.job = () => plain(cancelled);
        answers.live = ({ signal }) => stream(signal, event(cancelled) + END);
        answers.retry = () => {
          answers.live = ({ signal }) => stream(signal, event(running));
          answers.logs = ({ signal }) => stream(signal, `id: 1\\ndata: ${JSON.stringify(line)}\\n\\n`);
          return plain(queued);
        };
        await open();
        await until(() => document.getElementById('link').textContent.startsWith('Final'));
        click('retry');
        """,
        cancelled=CANCELLED,
        queued=QUEUED,
        running=RUNNING,
        line={**line, "message": "the second attempt begins", "fields": {}},
    )
    stranger.find(".lines li", "the second attempt begins")
    stranger.find(".panel [role=status]", "Following")
    assert stranger.script("return document.getElementById('follow').checked")


def test_of_many_events_the_newest_thousand_are_kept(stranger: Browser) -> None:
    event = EventView(id="1", at=datetime.now(UTC), kind="checkpointed", job_status=JobStatus.RUNNING, data={})
    got = against(
        stranger,
        """
        let told = 0;
        answers.events = ({ search }) => {
          const data = Array.from({ length: Number(search.get('limit')) }, () => ({ ...one, data: { step: told++ } }));
          return plain({ data, has_more: told < many, next: String(told) });
        };
        const { events } = await import('/assets/events.js');
        const happened = events({ here: '/v1/jobs/j1', signal: new AbortController().signal });
        node.append(happened.node);
        happened.update({ newest_event: String(many) });
        await until(() => node.querySelector('.more').textContent);
        const lines = [...node.querySelectorAll('.what')].map((line) => line.textContent);
        return { told, count: lines.length, newest: lines[0], oldest: lines.at(-1),
          button: node.querySelector('.more').textContent };
        """,
        one=event.model_dump(mode="json"),
        many=MORE_EVENTS_THAN_ARE_KEPT,
    )
    assert got == {
        "told": 1500,
        "count": 1000,
        "newest": "checkpoint saved at step 1499",
        "oldest": "checkpoint saved at step 500",
        "button": "Show the last 1000 events",
    }


def test_a_browser_without_a_key_is_led_to_the_login_also_when_there_were_too_many(stranger: Browser) -> None:
    stranger.open("#/nowhere")
    told = stranger.run_module("""
const { key, onRefused, read } = await import('/assets/session.js');
const told = [];
onRefused((held) => told.push(held));
window.fetch = async () => new Response('{}', { status: 429 });
key.forget();
await read('/v1/jobs').catch(() => {});
key.set('one that asks too often');
await read('/v1/jobs').catch(() => {});
key.forget();
return told;
""")
    assert told == [False]
