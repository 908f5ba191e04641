"""A real Chromium, driven by its DevTools protocol: nothing between a test and the page."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30  # Seconds; only keeps a page that hangs from blocking the suite
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38}


class Page:
    """A tab, with what its console has said."""

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        self.loads = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method, and take in what happens meanwhile."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            self._hear(told)

    def _hear(self, told: dict[str, Any]) -> None:
        method, about = told.get("method"), told.get("params", {})
        if method == "Page.loadEventFired":
            self.loads += 1
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"])[:600])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(json.dumps(about["args"])[:600])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str, patience: float = PATIENCE) -> Any:
        """What an expression says once it says something true."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # while one page goes and another comes
                if found := self.ask(expression):
                    return found
            time.sleep(0.03)
        raise AssertionError(f"never true: {expression}\n{self.ask('document.body.innerText')[:2000]}\n{self.errors}")

    def open(self, address: str) -> None:
        """Go somewhere, and wait until it is there."""
        self.ask("window.isOld = true")
        self.send("Page.navigate", url=address)
        self.wait("!window.isOld && document.readyState === 'complete'")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {}
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **code)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def resize(self, width: int, height: int) -> None:
        """Give the window a size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def move(self, expression: str) -> None:
        """Bring the pointer over an element."""
        place = self.ask(
            f"(({expression}).scrollIntoView({{block: 'center'}}), ({expression}).getBoundingClientRect().toJSON())"
        )
        middle = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **middle)

    def picture(self, path: Path) -> None:
        """Keep what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator[Callable[[], Page]]:
    """A browser without a window; what is yielded opens a tab."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory(prefix="n2p-chromium-", ignore_cleanup_errors=True) as folder:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], **quiet)
        try:
            known, end = Path(folder) / "DevToolsActivePort", time.monotonic() + PATIENCE
            while not known.exists() or len(known.read_text().split()) < 2:
                assert process.poll() is None and time.monotonic() < end, "chromium did not start"
                time.sleep(0.05)
            base = f"http://127.0.0.1:{known.read_text().split()[0]}"

            def tab() -> Page:
                page = Page(httpx.put(f"{base}/json/new?about:blank").json()["webSocketDebuggerUrl"])
                page.resize(width, height)
                return page

            yield tab
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
