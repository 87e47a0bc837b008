"""The inspector: what recording costs the engine, and how fast the component draws a large engine in a browser.

    python -m benchmarks.inspector [--sequences 200] [--blocks 4000] [--steps 240] [--json PATH]

The trace is the scheduler's own, of sequences that arrive, share prefixes, grow and are preempted in a pool that is too
small for them; a runner that computes nothing answers its plans. Recording is timed as the lines are made and encoded.
Then a page in Chromium (headless, drawing in software) shows the trace, all views at 1280 px, a step per frame: the
time from frame to frame is that of state, drawing and painting together.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import threading
import time
from statistics import median, quantiles

import msgspec

from benchmarks.control import answer
from quire.reference.control.config import SchedulerConfig
from quire.reference.control.inspection import Watch
from quire.reference.control.params import SamplingParams
from quire.reference.control.request import Request
from quire.reference.control.scheduler import Scheduler
from quire.reference.trace import StepRecord, TraceLines
from quire.report import Row, show, write
from quire.ui import static

PAGE = """<!doctype html><meta charset="utf-8"><title>trace</title>
<quire-trace></quire-trace><script type="module" src="/quire-trace.js"></script>"""
MEASURE = """async (text) => {
    await customElements.whenDefined("quire-trace");
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const t = document.querySelector("quire-trace");
    let begin = performance.now();
    t.load(text);
    const load = performance.now() - begin;
    t.seek(0);
    await frame(); await frame();
    const times = [];
    begin = performance.now();
    for (let i = 1; i < t.length; i++) {
        t.seek(i);
        await frame();
        const now = performance.now();
        times.push(now - begin);
        begin = now;
    }
    const back = [];
    for (let i = 0; i < 40; i++) {
        begin = performance.now();
        t.seek((i * 89) % t.length);
        await frame();
        back.push(performance.now() - begin);
    }
    return { load, times, back };
}"""


def record(num_sequences: int, num_blocks: int, num_steps: int) -> tuple[list[bytes], list[float]]:
    """The lines of a trace, and for each step of it the seconds that recording took."""
    config = SchedulerConfig(
        num_blocks=num_blocks, max_model_len=1024, max_num_seqs=num_sequences, max_num_batched_tokens=2048
    )
    scheduler = Scheduler(config)
    lines = TraceLines(block_size=config.block_size, num_blocks=num_blocks, redact=True)
    encode = msgspec.json.Encoder().encode
    watch = Watch(scheduler)
    written, seconds = [encode(lines.header)], []
    arrived = 0
    while len(seconds) < num_steps:
        while len(scheduler.groups) < num_sequences + 4:
            length = 150 + arrived * 37 % 200
            prompt = [(arrived % 5) * 31 + j * 17 if j < 96 else arrived * 7 + j for j in range(length)]
            request = Request(
                f"req-{arrived}", prompt, SamplingParams(max_tokens=60 + arrived * 53 % 120), seed=arrived
            )
            scheduler.add(request)
            written.append(encode(lines.request(request)))
            arrived += 1
        begin = time.perf_counter()
        plan = scheduler.schedule()
        assert plan is not None
        planning = time.perf_counter()
        planned = watch.planned(plan)
        spent = time.perf_counter() - planning
        result = answer(plan)
        events = scheduler.update(plan, result)
        recording = time.perf_counter()
        phases = {"schedule": (begin, planning), "update": (planning, recording)}
        step = StepRecord(plan, result, events, phases, scheduler.stats(), planned, watch.landed(plan))
        written.append(encode(lines.step(step)))
        seconds.append(spent + time.perf_counter() - recording)
    return written, seconds


def draw(text: str) -> dict[str, list[float]]:
    """Milliseconds: of loading the trace, of each frame while it plays, and of frames at places far apart."""
    from playwright.sync_api import sync_playwright

    class Files(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            if self.path != "/":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(PAGE.encode())

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    handler = functools.partial(Files, directory=str(static()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        found: dict[str, list[float]] = page.evaluate(MEASURE, text)
        browser.close()
        server.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--json")
    args = parser.parse_args()
    lines, seconds = record(args.sequences, args.blocks, args.steps)
    frames = draw("\n".join(line.decode() for line in lines) + "\n")
    usual, slow = median(frames["times"]), quantiles(frames["times"], n=20)[-1]
    rows = [
        Row("record-us-per-step", median(seconds) * 1e6, "µs"),
        Row("bytes-per-step", sum(map(len, lines)) / args.steps, "B"),
        Row("load", float(frames["load"]) / args.steps, "ms per step"),  # type: ignore[arg-type]
        Row("frame", usual, "ms", {"limit-100ms": 100 / usual}),
        Row("frame-95%", slow, "ms", {"limit-100ms": 100 / slow}),
        Row("frame-far-away", median(frames["back"]), "ms"),
    ]
    show(rows, f"Inspector, {args.sequences} sequences, {args.blocks} blocks")
    if args.json:
        write(args.json, rows, "python -m benchmarks.inspector")


if __name__ == "__main__":
    main()
