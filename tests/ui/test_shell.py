"""What holds for every view: logging in, what is loaded, both themes, both widths, contrast; and the pure modules."""

from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from dbserve.client import Client
from dbserve.contracts.key import Scope
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job
from tests.ui.browser import Browser
from tests.ui.conftest import KEY

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

FIRST_PAINT_BYTES = 200_000
ENOUGH_CONTRAST = 4.5  # WCAG 2.2, AA
LARGE_ENOUGH_CONTRAST = 3.0  # of 24 px, or 18.66 px in bold

# The least contrast of every text against what lies behind it, as [ratio, needed, text].
CONTRASTS = """
const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
const context = canvas.getContext('2d', { willReadFrequently: true });
const read = (colour, under) => {
  context.fillStyle = under ? `rgb(${under.join()})` : '#fff';
  context.fillRect(0, 0, 1, 1);
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => rgb.map((part) => part / 255)
  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const ground = (node) => node && read(getComputedStyle(node).backgroundColor, ground(node.parentElement));
const found = [];
for (const node of document.querySelectorAll('body *')) {
  const text = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.data.trim()).join('');
  if (!text || !node.checkVisibility() || node.matches(':disabled, option, noscript')) continue;
  const style = getComputedStyle(node);
  const behind = ground(node.closest('svg') ? node.closest('svg').parentElement : node);
  const colour = node.closest('svg') ? style.fill : style.color;
  const [one, other] = [light(read(colour, behind)), light(behind)];
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), large, text.slice(0, 40)]);
}
return found;
"""


@pytest.fixture(scope="module")
def views(service: Service) -> Iterator[dict[str, str]]:
    """What is to be seen on each view (a selector) -> its route. The names are as long as they may be."""
    with Client(service.url, api_key=KEY) as client:
        name = "a-name-as-long-as-a-name-may-be-" + 31 * "x"
        labels = {"team": "vision", "an-owner-with-a-rather-long-label": "somebody-with-a-rather-long-name"}
        job = client.submit(digits_job(name=name, labels=labels))
        yield {"tbody .chip": "", "textarea": "#/new", "[data-task=block-1]": f"#/jobs/{job.id}"}
        client.cancel(job.id, force=True)


def test_a_key_is_asked_for_and_a_wrong_one_is_refused(stranger: Browser) -> None:
    stranger.open()
    field = stranger.find("input[type=password]")
    field.send_keys("a-key-that-is-wrong", Keys.ENTER)
    stranger.find(".complaint", "refused this key")
    assert stranger.script("return sessionStorage.length") == 0
    stranger.find("input[type=password]").send_keys(KEY, Keys.ENTER)
    stranger.find("h1", "Jobs")
    assert stranger.script("return sessionStorage.getItem('dbserve.key')") == KEY
    assert KEY not in stranger.script("return JSON.stringify({ ...localStorage }) + document.cookie + location.href")
    stranger.button("Log out").click()
    stranger.find("input[type=password]")
    assert stranger.script("return sessionStorage.length") == 0


def test_whoever_may_only_look_is_shown_no_way_to_submit(stranger: Browser, client: Client) -> None:
    reader = client.keys.create("a reader", [Scope.READ])
    stranger.open()
    stranger.find("input[type=password]").send_keys(reader.key, Keys.ENTER)
    stranger.find("h1", "Jobs")
    stranger.until(lambda: "New job" not in stranger.text, "no way to a new job")
    stranger.button("Log out").click()
    stranger.find("input[type=password]").send_keys(KEY, Keys.ENTER)
    stranger.find("nav a", "New job")
    client.keys.revoke(reader.id)


def test_a_key_that_is_refused_later_leads_to_the_login_and_back(browser: Browser, views: dict[str, str]) -> None:
    route = views["[data-task=block-1]"]
    browser.open(route)
    browser.sees("Block 1")
    browser.script("sessionStorage.setItem('dbserve.key', 'not-the-key-any-more')")
    browser.driver.refresh()
    browser.find("input[type=password]").send_keys(KEY, Keys.ENTER)
    browser.sees("Block 1")
    assert f"#{browser.route}" == route, "one is back where one was"


def test_the_first_paint_is_small_and_nothing_is_asked_of_another_host(browser: Browser, views: dict[str, str]) -> None:
    browser.requests()
    browser.open()
    browser.find("tbody .name")
    painted = browser.requests()
    loaded = [event["params"]["encodedDataLength"] for event in painted if event["method"] == "Network.loadingFinished"]
    assert len(loaded) > 8
    assert sum(loaded) <= FIRST_PAINT_BYTES, f"{sum(loaded)} bytes"
    for known, route in views.items():
        browser.open(route)
        browser.find(known)
    asked = [
        event["params"]["request"]["url"]
        for event in [*painted, *browser.requests()]
        if event["method"] == "Network.requestWillBeSent"
    ]
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("about:", "data:", "blob:"))}
    assert hosts == {urlsplit(browser.url).netloc}


def test_the_policy_stops_what_is_inline(stranger: Browser) -> None:
    stranger.open()
    stopped = stranger.run_module("""
        const stopped = [];
        document.addEventListener('securitypolicyviolation', (stop) => stopped.push(stop.effectiveDirective));
        try { document.body.insertAdjacentHTML('beforeend', '<b>markup</b>'); } catch {}
        document.body.append(Object.assign(document.createElement('style'), { textContent: 'body { color: red }' }));
        document.body.append(Object.assign(document.createElement('img'), { src: 'http://192.0.2.1/x.png' }));
        while (stopped.length < 3) await new Promise((resolve) => setTimeout(resolve, 10));
        return stopped.sort();
    """)
    assert stopped == ["img-src", "require-trusted-types-for", "style-src-elem"]
    assert stranger.complaints()


@pytest.mark.parametrize("width", [360, 1440])
def test_no_view_scrolls_sideways(browser: Browser, views: dict[str, str], width: int) -> None:
    browser.resize(width, 800)
    for known, route in views.items():
        browser.open(route)
        browser.find(known)
        if route == "#/new":
            browser.button("Plan").click()
            browser.sees("of the memory of end-to-end")
        widest = browser.script("return document.documentElement.scrollWidth")
        assert widest <= width, f"{route or 'the list'} is {widest} px wide"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Browser, views: dict[str, str], scheme: str) -> None:
    browser.prefer(scheme)
    for known, route in views.items():
        browser.open(route)
        browser.find(known)
        texts = cast("list[tuple[float, bool, str]]", browser.script(CONTRASTS))
        assert len(texts) > 10
        faint = [
            f"{ratio:.2f}: {text}"
            for ratio, large, text in texts
            if ratio < (LARGE_ENOUGH_CONTRAST if large else ENOUGH_CONTRAST)
        ]
        assert faint == [], route


def test_the_theme_is_the_system_s_until_another_is_chosen(browser: Browser) -> None:
    def ground() -> str:
        return browser.script("return getComputedStyle(document.body).backgroundColor")

    browser.open()
    light = ground()
    browser.prefer("dark")
    dark = ground()
    assert light != dark
    browser.button("Light theme").click()
    assert ground() == light
    browser.driver.refresh()
    browser.find("h1", "Jobs")
    assert ground() == light, "the choice outlives the page"
    browser.button("Dark theme").click()
    browser.prefer("light")
    assert ground() == light, "the system's theme was chosen again, so it is followed again"


def test_the_keyboard_finds_the_content_and_the_focus_is_seen(browser: Browser) -> None:
    browser.open()
    browser.find("h1", "Jobs")
    browser.press(Keys.TAB)
    assert browser.focused.text == "Skip to the content"
    browser.press(Keys.ENTER)
    assert browser.focused.get_attribute("id") == "main"
    browser.press(Keys.TAB)
    outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_an_unknown_address_is_said_in_words(browser: Browser) -> None:
    browser.open("#/jobs/j00")
    browser.find("[role=alert]", "not known")
    browser.open("#/nowhere")
    browser.sees("There is no such view")


def in_page(browser: Browser, module: str, expression: str) -> Any:
    """The value of an expression that may use what a module of the page exports."""
    browser.open()
    return browser.run_module(f"const m = await import('/assets/{module}.js'); return {expression};")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_read_alike_however_it_is_cut(stranger: Browser, size: int) -> None:
    text = ": heartbeat\n\nid: 1\nevent: job\ndata: a\ndata:  b\n\ndata: {}\r\n\r\nevent: dropped\n\n"
    text += "id: 2\nevent: end\ndata: x\n\n"
    stranger.open()
    got = stranger.run_module(
        "const { parser } = await import('/assets/stream.js'); const got = [];"
        "const feed = parser(({ event, id, data }) => got.push([event, id, data]));"
        f"const text = {text!r};"
        f"for (let at = 0; at < text.length; at += {size}) feed(text.slice(at, at + {size})); return got;"
    )
    assert got == [["job", "1", "a\n b"], ["message", "1", "{}"], ["end", "2", "x"]]


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("m.bytes(999)", "999 B"),
        ("m.bytes(999999)", "1 MB"),
        ("m.bytes(12_345_678_900)", "12.3 GB"),
        ("m.bytes(null)", "–"),
        ("m.duration(0)", "0 s"),
        ("m.duration(200)", "3 min 20 s"),
        ("m.duration(7200)", "2 h"),
        ("m.duration(100_000)", "1 d 3 h"),
        ("m.duration(undefined)", "–"),
        ("m.percent(0.329)", "33 %"),
        ("m.percent(0.011)", "1.1 %"),
        ("m.significant(0.5123)", "0.512"),
        ("m.significant(NaN)", "–"),
        ("m.count(1234567.4)", "1,234,567"),
        ("m.ago('2026-01-01T00:00:00Z', Date.UTC(2026, 0, 1, 2, 5))", "2 h ago"),
    ],
)
def test_figures_read_as_people_write_them(stranger: Browser, expression: str, shown: str) -> None:
    assert in_page(stranger, "format", expression) == shown


@pytest.mark.parametrize(
    ("expression", "ticks"),
    [
        ("m.linearTicks(0, 600, 4)", [0, 200, 400, 600]),
        ("m.linearTicks(-0.1, 1.1, 4)", [0, 0.5, 1]),
        ("m.logTicks(0.004, 30)", [0.01, 0.1, 1, 10]),
        ("m.logTicks(0.2, 3)", [0.2, 0.5, 1, 2]),
        ("m.scaleOf('zero', [5, 5], { top: 0, bottom: 100 }).ticks", [0, 2, 4]),
        ("m.scaleOf('log', [0, 5], { top: 0, bottom: 100 }).ticks", [0, 2, 4]),
    ],
)
def test_axes_are_marked_at_round_values(stranger: Browser, expression: str, ticks: list[float]) -> None:
    assert in_page(stranger, "scale", expression) == pytest.approx(ticks)
