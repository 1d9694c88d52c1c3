"""A headless Chromium as tests drive it: by what a user sees, with deadlines instead of sleeps."""

import base64
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # CI runs as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_SECONDS = 20.0
COLOURS_OF_A_PICTURE = 192

Found = TypeVar("Found")


class Browser:
    """One Chromium with a fresh profile, looking at one service."""

    def __init__(self, url: str, *, program: str, driver: str) -> None:
        self.url = url
        self._directory = tempfile.TemporaryDirectory(prefix="dbserve-chromium-", ignore_cleanup_errors=True)
        self.downloads = Path(self._directory.name) / "downloads"
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for argument in (*ARGUMENTS, f"--user-data-dir={self._directory.name}/profile"):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_script_timeout(PATIENCE_SECONDS)
        self._cdp("Emulation.setScrollbarsHidden", hidden=True)
        self.resize(1440, 900)

    def close(self) -> None:
        self.driver.quit()
        self._directory.cleanup()

    # --- where it looks, and how

    def open(self, route: str = "") -> None:
        """A view of the page, loaded anew."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/{route}")

    def resize(self, width: int, height: int) -> None:
        """The view port; below 500 px as a telephone has it."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def prefer(self, scheme: str) -> None:
        """What the system prefers: `dark` or `light`; and that nothing moves, so that pictures hold still."""
        features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", "reduce")]
        self._cdp("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features])

    def forget(self) -> None:
        """Back to a profile that has never been here."""
        self.driver.get(f"{self.url}/healthz")  # of the same origin, and no script of the page runs in it
        self.script("sessionStorage.clear(); localStorage.clear()")

    # --- what it sees

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def run_module(self, code: str) -> Any:
        """The value that an asynchronous function body returns; it may import the page's modules."""
        answer = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"(async () => {{ {code} }})()"
            ".then((value) => done({ value }), (error) => done({ error: `${error}` }));"
        )
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def find(self, selector: str, text: str = "") -> WebElement:
        """The first visible element of a CSS selector that has this text in it; waited for."""

        def look() -> WebElement | None:
            for element in self.driver.find_elements(By.CSS_SELECTOR, selector):
                if element.is_displayed() and text in element.text:
                    return element
            return None

        return self.until(look, f"{selector} with {text!r}")

    def button(self, text: str) -> WebElement:
        return self.find("button, .button, .chip", text)

    def sees(self, text: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until the text can be read somewhere on the page."""
        self.until(lambda: text in self.text, f"{text!r} on the page", seconds=seconds)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    @property
    def route(self) -> str:
        return self.driver.current_url.partition("#")[2]

    @property
    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def until(self, look: Callable[[], Found | None], what: str, *, seconds: float = PATIENCE_SECONDS) -> Found:
        """What `look` finds, as soon as it finds something. What was replaced meanwhile is looked for anew."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := look():
                    return found
            except (StaleElementReferenceException, NoSuchElementException, JavascriptException):
                pass
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; the page says:\n{self.text}"
            time.sleep(0.05)

    # --- what it does

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    # --- what happened underneath

    def requests(self) -> list[dict[str, Any]]:
        """The network's events since the last call."""
        return [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]

    def complaints(self) -> list[str]:
        """What the console was told since the last call, by scripts or by the security policy: no failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]

    def picture(self, path: Path) -> None:
        """What the view port shows, as a PNG of few colours."""
        taken = self._cdp("Page.captureScreenshot", format="png")
        image = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
        image.quantize(COLOURS_OF_A_PICTURE, dither=Image.Dither.NONE).save(path, optimize=True)

    def _cdp(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.driver.execute_cdp_cmd(command, arguments)
