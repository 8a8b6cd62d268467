"""A real browser, Chromium without a window, told what to do by its DevTools protocol."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 60  # seconds


class Chromium:
    """A page in the browser. Every message of the browser is kept in ``events``."""

    def __init__(self, folder):
        commands, self.writing = os.pipe()
        self.reading, answers = os.pipe()
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", PROGRAM, "--headless",
             "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
             f"--user-data-dir={folder}", "--window-size=1300,1400"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self.numbers, self.rest, self.events, self.session = itertools.count(1), b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """What the browser answers to a command of the protocol."""
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": number, "method": method, "params": parameters, **session}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], PATIENCE)
            part = os.read(self.reading, 1 << 20) if ready else b""
            assert part, "the browser says nothing any more"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState == 'complete'")

    def value(self, expression):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def mouse(self, kind, x, y, buttons=0, clicks=1):
        """Move the mouse there, or press or release its left button."""
        button = "none" if kind == "mouseMoved" and not buttons else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons,
                  clickCount=clicks)  # fmt: skip

    def click(self, x, y):
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, 1)
        self.mouse("mouseReleased", x, y)

    def drag(self, start, end):
        """Press the mouse at one place and release it at another."""
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, 1)
        for share in (0.3, 0.6, 1):
            between = [a + share * (b - a) for a, b in zip(start, end, strict=True)]
            self.mouse("mouseMoved", *between, 1)
        self.mouse("mouseReleased", *end)

    def requests(self):
        """The addresses of everything that the page has asked for."""
        return [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip

    def complaints(self):
        """What the page wrote to the console, such as a breach of its security policy."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def close(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        os.close(self.writing)
        os.close(self.reading)
