"""From a vote's key to the next picture decoded and painted, in Chromium on a slow line.

    python benchmarks/rating_page.py [--latency-ms 40] [--votes 200] [--size-px 512]

Real keys in the real page, once at a brisk pace (a vote a second) and once as fast as the page
takes them; every request is delayed by `--latency-ms`. Pictures are noise, the largest PNGs of
their size. Exits with 1 at a median of 100 ms or more, or a 95th percentile of 200 ms or more.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from made_up import finish, make_study, milliseconds, served
from playwright.sync_api import Page, sync_playwright

BRISK_MS, GUARD_MS = 1000, 130  # the page ignores keys for 120 ms after a new picture
WATCH = """() => {
  const stage = document.querySelector('#stage');
  window.waits = [];
  let pressed = 0;
  addEventListener('keydown', (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => window.waits.push(performance.now() - pressed))
    .observe(stage, {attributes: true, attributeFilter: ['data-shown']});
}"""

REQUEST = """async () => {
  const before = performance.now();
  await fetch('/healthz');
  return (performance.now() - before) / 1000;
}"""


def vote(page: Page, votes: int, pace_ms: float) -> list[float]:
    """Seconds from each key to the moment the next picture stands painted on the screen."""
    page.evaluate("() => { window.waits = []; }")
    for i in range(votes):
        page.keyboard.press("j" if i % 2 else "f")
        page.wait_for_function("n => window.waits.length > n", arg=i, polling=20)
        page.wait_for_timeout(pace_ms)
    waits: list[float] = page.evaluate("window.waits")
    assert len(waits) == votes, "a vote showed no new picture, or more than one"
    return [wait / 1000 for wait in waits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=40)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--size-px", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        study = make_study(Path(folder) / "study", options.votes + 20, options.size_px)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        with served(study.path) as (address, _, _):
            page = browser.new_page()
            line = page.context.new_cdp_session(page)
            line.send("Network.enable")
            line.send("Network.emulateNetworkConditions", {
                "offline": False, "latency": options.latency_ms, "downloadThroughput": -1,
                "uploadThroughput": -1,
            })  # fmt: skip
            page.goto(address)
            page.wait_for_function("() => document.querySelector('#stage')?.dataset.shown")
            page.wait_for_timeout(2000)
            request_s = page.evaluate(REQUEST)
            page.evaluate(WATCH)
            brisk = vote(page, options.votes // 2, BRISK_MS)
            fast = vote(page, options.votes // 2, GUARD_MS)
            page.wait_for_selector('#saved[data-state="saved"]')
        browser.close()
        stored = len(study.feedback.ratings())
    figures = {
        "latency_ms": options.latency_ms, "one_request_ms": round(request_s * 1000, 1),
        "size_px": options.size_px, "brisk": milliseconds(brisk),
        "as_fast_as_taken": milliseconds(fast), "lost": options.votes - stored,
    }  # fmt: skip
    limits = {"brisk/median_ms": 100.0, "brisk/p95_ms": 200.0, "lost": 0}
    finish("rating page", figures, limits)


if __name__ == "__main__":
    main()
