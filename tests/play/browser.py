"""A page in headless Chromium, driven through its debugging pipe by the DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAUNCH = """
import os, sys
read, write = (os.dup(int(word)) for word in sys.argv[1:3])
for _ in range(8):  # to above 4, where neither is overwritten before it is copied
    read, write = os.dup(read), os.dup(write)
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts Chromium, which reads commands from file 3 and writes answers to file 4."""
PATIENCE = 60  # seconds
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")


class Browser:
    """One page, what it asked for, and what went wrong on it; a context manager."""

    def __init__(self, profile: Path):
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        words = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(read), str(write), *words],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._rest, self._count, self._session = b"", 0, {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.getTargets")["targetInfos"][0]["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what a command of the protocol answers."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._read], [], [], PATIENCE)
                part = os.read(self._read, 1 << 20) if ready else b""
                assert part, f"Chromium does not answer {method}"
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        name, params = event.get("method"), event.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"]["description"])
        elif name == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        elif name == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(params["entry"]))

    def run(self, code: str) -> Any:
        """Return the value of an expression on the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 2 * PATIENCE) -> None:
        """Wait until an expression on the page is true."""
        end = monotonic() + seconds
        while not self.run(condition):
            assert monotonic() < end, f"{condition}: {self.run('document.body.innerText')}"
            sleep(0.02)

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Load a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith('{url}')")

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, where it is on the page."""
        place = (
            f"(() => {{ const e = document.querySelector(`{selector}`);"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        x, y = self.run(place)
        for kind in ("mousePressed", "mouseReleased"):
            button = {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
