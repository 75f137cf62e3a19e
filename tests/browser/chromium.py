"""A headless Chromium, driven over its own protocol: the websockets client we have anyway is all it takes.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, cast

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
START_S = 30.0
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


def find_chromium() -> str | None:
    """Where Chromium is, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class PageError(AssertionError):
    """The page did not do what was waited for; says what it showed instead."""


class Chromium:
    """One browser process with a profile of its own, ended by :meth:`close`."""

    def __init__(self, binary: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = profile / "DevToolsActivePort"
        try:
            wait_until(
                lambda: port_file.exists() and port_file.read_text().count("\n") >= 1,
                START_S,
                "a port to drive it",
            )
            port, path = port_file.read_text().split("\n")[:2]
            address = f"ws://127.0.0.1:{port}{path}"
            self._open = ExitStack()
            self._socket = self._open.enter_context(
                connect(address, max_size=None, compression=None, proxy=None)
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._ids = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def page(self) -> Page:
        """A new page in a profile of its own: nothing stored, nothing shared."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._ids += 1
        message: dict[str, Any] = {"id": self._ids, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv(timeout=30))
            if reply.get("id") == self._ids:
                if "error" in reply:
                    raise PageError(f"{method}: {reply['error']['message']}")
                return cast("dict[str, Any]", reply["result"])
            self._events.append(reply)

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        return [
            e["params"] for e in self._events if e.get("sessionId") == session and e.get("method") == method
        ]


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.size(1100, 800)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def goto(self, url: str) -> None:
        failed = self._call("Page.navigate", url=url).get("errorText")
        if failed:
            raise PageError(f"{url}: {failed}")
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.run("window.stale = true")
        self._call("Page.reload")
        self.until("document.readyState === 'complete' && !window.stale")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        reply = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise PageError(
                f"{expression}: {reply['exceptionDetails'].get('exception', {}).get('description')}"
            )
        return reply["result"].get("value")

    def until(self, expression: str, within_s: float = 15.0) -> None:
        """Wait until a JavaScript expression is true."""

        def holds() -> bool:
            try:
                return bool(self.run(expression))
            except PageError as error:
                if "context" in str(error):  # the page is just being replaced
                    return False
                raise

        try:
            wait_until(holds, within_s, expression)
        except AssertionError as error:
            raise PageError(f"{error}; the page shows: {self.text()!r}; errors: {self.errors()}") from error

    def text(self, selector: str = "body") -> str:
        """What a reader sees of an element."""
        return cast("str", self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def is_visible(self, selector: str) -> bool:
        return bool(self.run(f"document.querySelector({json.dumps(selector)})?.checkVisibility() ?? false"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        box = self.run(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **common)

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def prefer(self, scheme: str) -> None:
        """``dark`` or ``light``."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def offline(self, *, is_offline: bool) -> None:
        self._call(
            "Network.emulateNetworkConditions",
            offline=is_offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def errors(self) -> list[str]:
        """Exceptions of the page's own scripts so far."""
        self.run("0")  # collects what has arrived meanwhile
        thrown = self._browser.events(self._session, "Runtime.exceptionThrown")
        return [str(e["exceptionDetails"].get("exception", {}).get("description")) for e in thrown]


def wait_until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not become true in time.
    """
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {within_s} s for: {what}")
        time.sleep(0.05)
