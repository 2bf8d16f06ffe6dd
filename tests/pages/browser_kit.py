"""A real Chromium over its debugging pipe: no port, no driver, and it looks at layout as a reader does."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions")


class Browser:
    """One tab. complaints: console messages, exceptions, blocked or failed loads since the last page."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, os.fdopen(back, "rb")
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        found = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        self.complaints, self.requests = [], []
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=page.as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page itself may run no script."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        os.close(self._to)  # Chromium ends when its pipe does
        self._back.close()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == number)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                more = self._back.read1(1 << 16)
                assert more, "Chromium ended"
                self._buffer += more
            line, self._buffer = self._buffer.split(b"\0", 1)
            message = json.loads(line)
            self._note(message)
            if wanted(message):
                return message

    def _note(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Chromium with a profile of its own; ended with the block."""
    assert CHROMIUM is not None
    child_in, to = os.pipe()
    back, child_out = os.pipe()

    def connect() -> None:  # in the child: its pipe is the descriptors 3 and 4
        first, second = os.dup(child_in), os.dup(child_out)
        os.dup2(first, 3)
        os.dup2(second, 4)
        os.closerange(5, 64)

    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "--remote-debugging-pipe"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=connect,
        start_new_session=True,
    )
    os.close(child_in)
    os.close(child_out)
    found = Browser(to, back)
    try:
        yield found
    finally:
        found.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


# of every drawing: its texts that are cut, lie on one another or are smaller than a reader can read
LAYOUT = """(() => {
  const bad = [];
  for (const svg of document.querySelectorAll('svg.drawing')) {
    const frame = svg.getBoundingClientRect();
    const name = svg.closest('figure').id;
    const texts = [...svg.querySelectorAll('text')].map(
      t => [t.textContent, t.getBoundingClientRect(), getComputedStyle(t).fontSize]);
    for (const [i, [text, box, style]] of texts.entries()) {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) bad.push(`${name}: cut: ${text}`);
      if (parseFloat(style) * frame.width / svg.viewBox.baseVal.width < 7.5)
        bad.push(`${name}: small: ${text}`);
      for (const [other, b] of texts.slice(i + 1)) {
        const wide = Math.min(box.right, b.right) - Math.max(box.left, b.left);
        const high = Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top);
        if (wide > 2 && high > 5) bad.push(`${name}: ${text} on ${other}`);
      }
    }
  }
  return bad;
})()"""
# wider than the screen, though only tables may be, inside their own scroller
TOO_WIDE = "document.documentElement.scrollWidth - window.innerWidth"
