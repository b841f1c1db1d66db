"""The page of an evaluation in a real browser: everything loads, nothing complains, nothing is too wide."""

import json
import os
import shutil
import subprocess
import time

import pytest
from made_up_evaluation import simpler_evaluation

from eval.evaluation_page.page import render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 390)
LOADED = """Promise.all([...document.querySelectorAll('img, video')].map(one => {
  const ready = () => one.tagName === 'IMG' ? one.complete : one.readyState >= 2 || one.error;
  return new Promise(done => { const look = () => ready() ? done() : setTimeout(look, 50); look(); });
})).then(() => JSON.stringify({
  images: [...document.images].map(one => one.naturalWidth),
  videos: [...document.querySelectorAll('video')].map(one => one.error ? 0 : one.videoWidth),
  page: document.documentElement.scrollWidth, window: innerWidth}))"""


class Browser:
    """A headless Chromium, spoken to in the protocol of its developer tools."""

    def __init__(self, path, folder):
        from websockets.sync.client import connect

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([path, *flags], start_new_session=True, **quiet)
        port, place = self._wait_for_port(folder / "DevToolsActivePort")
        self.socket = connect(f"ws://127.0.0.1:{port}{place}", max_size=None)
        self.session, self.calls, self.events = None, 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _wait_for_port(self, file, seconds=60):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if file.is_file() and len(lines := file.read_text().split()) == 2:
                return lines
            time.sleep(0.1)
        raise AssertionError(f"{self.process.args[0]} did not start")

    def call(self, method, **parameters):
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get("id") == self.calls:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def show(self, file, width):
        """What has been loaded of a page in a window so wide."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=file.resolve().as_uri())
        until = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < until, "the page did not load"
            self.call("Runtime.evaluate", expression="1")
        answer = self.call("Runtime.evaluate", expression=LOADED, awaitPromise=True, returnByValue=True)
        return json.loads(answer["result"]["value"])

    def complaints(self):
        """Errors and warnings of the console, and what was fetched from elsewhere."""
        wrong = [e for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Network.loadingFailed")]
        wrong += [e for e in self.events if e["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded")]
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [json.dumps(e)[:300] for e in wrong] + [url for url in sent if not url.startswith(("data:", "file:"))]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = next(filter(None, map(shutil.which, [os.environ.get("CHROME_PATH", ""), *BROWSERS])), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")
    opened = Browser(path, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simpler evaluation")
    file = folder / "evaluation.html"
    file.write_text(render(simpler_evaluation(folder), folder))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_the_whole_page_without_a_complaint(browser, page, width):
    seen = browser.show(page, width)
    assert browser.complaints() == []
    assert len(seen["videos"]) == 24
    assert len(seen["images"]) == 24
    assert all(size > 0 for size in seen["videos"] + seen["images"])
    assert seen["page"] <= seen["window"] == width


@pytest.mark.slow
def test_the_check_sees_what_is_broken(browser, tmp_path):
    file = tmp_path / "broken.html"
    wide = '<div style="width: 2000px">wide</div><img src="data:image/png;base64,AAAA"><img src="http://elsewhere.test/a.png">'
    file.write_text(f"<!DOCTYPE html>{wide}<script>console.error('no')</script>")
    seen = browser.show(file, 390)
    assert seen["page"] > seen["window"]
    assert seen["images"] == [0, 0]
    assert any("elsewhere" in complaint for complaint in browser.complaints())
    assert any("console" in complaint for complaint in browser.complaints())
