"""``quire serve`` as a whole: its processes, how they start, end, fail and come back. Real processes, real signals.

What they say over HTTP is tested elsewhere, with the engine in a thread.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from quire import LLM, SamplingParams
from tests.server.conftest import PATIENCE, eventually
from tests.toys import tiny_checkpoint

SMALL = ("--num-blocks", "200", "--max-num-seqs", "8")
LONG = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}
ENDLESS = LONG | {"max_tokens": 1900}  # seconds on any machine: what shall happen in the middle of it does


@dataclass
class Served:
    """A running ``quire serve``; ``log`` is all that it has written so far."""

    process: subprocess.Popen[bytes]
    log_file: Path
    url: str = ""

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)

    def children(self, role: str) -> list[int]:
        """Process ids of the living children of a role; "" for all."""
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text, command = status.read_text(), (status.parent / "cmdline").read_text()
            except OSError:  # it has just ended
                continue
            if f"PPid:\t{self.process.pid}\n" in text and "State:\tZ" not in text and f"\0{role}" in command:
                found.append(int(status.parent.name))
        return found

    def health(self) -> int:
        with self.http() as http:
            return http.get("/health").status_code


@contextmanager
def quire_serve(tmp_path: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """``quire serve`` on a free port, ready. Whatever is left of it at the end is killed."""
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "quire.server", "--port", "0", *SMALL, *arguments],
            stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": tempfile.mkdtemp(dir=tmp_path.parent)} | (env or {}),
        )
    served = Served(process, log)
    try:
        eventually(lambda: "listening on" in served.log or process.poll() is not None)
        found = re.search(r"listening on (http://\S+)", served.log)
        assert found, served.log
        served.url = found[1]
        yield served
    finally:
        process.kill()
        process.wait()


class Stream(threading.Thread):
    """A client that reads one completion; ``events`` grows while it does. It waits for the first event."""

    def __init__(self, served: Served, body: dict) -> None:
        super().__init__(daemon=True)
        self.served, self.body = served, body
        self.events: list[dict] = []
        self.done = False
        self.start()
        eventually(lambda: self.events)

    def run(self) -> None:
        with (
            suppress(httpx.HTTPError),
            self.served.http() as http,
            http.stream("POST", "/v1/completions", json=self.body) as response,
        ):
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self.events.append(json.loads(line.removeprefix("data: ")))

    def end(self) -> None:
        self.join(PATIENCE)
        assert not self.is_alive(), "the stream does not end"

    def text(self) -> str:
        return "".join(event["choices"][0]["text"] for event in self.events if event.get("choices"))


@contextmanager
def paused(process: int) -> Iterator[None]:
    """It does nothing meanwhile. An API process accepts no connections, so that another one gets them."""
    os.kill(process, signal.SIGSTOP)
    try:
        eventually(lambda: "State:\tT" in Path(f"/proc/{process}/status").read_text())
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_two_api_processes_serve_one_engine_and_end_gracefully(tmp_path):
    """The same text as from the library; on SIGTERM what runs is finished, what comes is refused, and the exit is 0."""
    with LLM(num_blocks=200, max_num_seqs=8, batch_invariant=True) as llm:
        offline = llm.generate(["Once"], SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))[0]
    arguments = ("--api-server-count", "2", "--served-model-name", "one", "two", "--batch-invariant")
    with quire_serve(tmp_path, *arguments, "--shutdown-timeout", "1000") as served:
        assert len(served.children("api-")) == 2 and len(served.children("engine")) == 1
        streams = [Stream(served, LONG) for _ in range(6)]
        with paused(served.children("engine")[0]), served.http() as http:  # so what runs does not end before we looked
            served.process.send_signal(signal.SIGTERM)
            eventually(lambda: http.get("/health").status_code == 503)
            refused = http.post("/v1/completions", json=LONG)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        for stream in streams:
            stream.end()
            assert stream.done and stream.text() == offline.outputs[0].text
            assert stream.events[0]["model"] == "one"
        assert served.process.wait(PATIENCE) == 0
        assert served.children("") == []


def test_at_the_deadline_streams_end_with_an_error(tmp_path):
    with quire_serve(tmp_path, "--shutdown-timeout", "0", "--max-num-batched-tokens", "16") as served:
        stream = Stream(served, ENDLESS)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(PATIENCE) == 0
        stream.end()
        assert stream.events[-1]["error"]["message"].startswith("the server is shutting down") and not stream.done


def test_the_second_signal_stops_at_once(tmp_path):
    with quire_serve(tmp_path, "--shutdown-timeout", "1000") as served:
        children, stream = served.children(""), Stream(served, ENDLESS)
        os.kill(served.children("engine")[0], signal.SIGSTOP)  # so nothing that runs can ever finish
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: "finishing what runs" in served.log)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 128 + signal.SIGTERM
        stream.end()
        assert not stream.done
        eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_a_killed_engine_is_told_to_every_stream_and_comes_back(tmp_path):
    """kill -9: errors at once, /health is 503, the port stays open, and a new engine serves the same text.

    At once: within a thousand requests to the same process, some two seconds, or more where the machine is busy.
    """
    with quire_serve(tmp_path, "--restart-engine", "--batch-invariant") as served:
        streams = [Stream(served, ENDLESS) for _ in range(4)]
        first = served.children("engine")
        with paused(served.process.pid), served.http() as http:  # nobody starts another one before we have looked
            os.kill(first[0], signal.SIGKILL)
            for _ in range(1000):
                if not any(stream.is_alive() for stream in streams):
                    break
                http.get("/version")
            else:
                pytest.fail("nobody told the streams")
            for stream in streams:
                assert "engine's process has ended" in stream.events[-1]["error"]["message"] and not stream.done
            assert http.get("/health").status_code == 503
            refused = http.post("/v1/completions", json=ENDLESS)
            assert refused.status_code == 503 and refused.json()["error"]["type"] == "service_unavailable"
        eventually(lambda: served.health() == 200)  # each call connects anew: the port is open all the time
        assert served.children("engine") != first
        again = Stream(served, LONG)
        again.end()
        length = min(len(stream.text()) for stream in (again, *streams))
        assert again.done and all(stream.text()[:length] == again.text()[:length] for stream in streams)


def test_without_restart_engine_the_server_ends_with_it(tmp_path):
    with quire_serve(tmp_path) as served:
        os.kill(served.children("engine")[0], signal.SIGKILL)
        assert served.process.wait(PATIENCE) == 1
        assert "engine ended with SIGKILL" in served.log and "--restart-engine" in served.log


def test_a_killed_api_process_is_replaced_and_its_requests_are_forgotten(tmp_path):
    with quire_serve(tmp_path) as served:
        with served.http() as http, http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            next(response.iter_lines())
            (victim,) = served.children("api-")
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: victim not in served.children("api-"))
        with served.http() as http:
            eventually(lambda: http.get("/health").status_code == 200)
            eventually(lambda: re.search(r"^quire:num_requests_running\S* 0\.0$", http.get("/metrics").text, re.M))
            assert http.post("/v1/completions", json=LONG | {"stream": False}).status_code == 200


def test_metrics_are_the_sum_over_api_processes_whichever_is_asked(tmp_path):
    inherited = {"PROMETHEUS_MULTIPROC_DIR": "/nowhere"}  # a server of its own has a folder of its own
    with quire_serve(tmp_path, "--api-server-count", "2", env=inherited) as served:
        first, second = served.children("api-")
        expected = [0.0, 2.0]
        for process in (first, second, first):
            with paused(process), served.http() as http:
                before = http.get("/metrics").text
                body = ENDLESS | {"stream": False, "max_tokens": 2}
                assert http.post("/v1/completions", json=body).status_code == 200
                after = http.get("/metrics").text
            tokens = [re.findall(r"^quire:generation_tokens_total\S* (\S+)$", text, re.M) for text in (before, after)]
            assert [float(value) for (value,) in tokens] == expected
            expected = [expected[1], expected[1] + 2]


def test_no_child_outlives_a_killed_supervisor(tmp_path):
    with quire_serve(tmp_path) as served:
        children = served.children("")
        assert len(children) == 2
        served.process.kill()
        served.process.wait()
        eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_settings_come_from_the_environment_the_file_and_the_command_line(tmp_path):
    """In this order of precedence, the last one wins; the file is YAML, with the names of the flags."""
    config = tmp_path / "quire.yaml"
    config.write_text("served-model-name: [from-file]\nmax_num_seqs: 3\nhost: nowhere.invalid\nmodel: pocket-draft\n")
    arguments = ("--config", str(config), "--host", "127.0.0.1", "--disable-log-requests")
    with quire_serve(tmp_path, *arguments, env={"QUIRE_API_KEY": "one, two", "QUIRE_LOGGING_LEVEL": "info"}) as served:
        with served.http() as http:
            assert http.post("/v1/completions", json=ENDLESS).status_code == 401
        body = ENDLESS | {"model": "from-file", "stream": False, "max_tokens": 2}
        with served.http(headers={"Authorization": "Bearer two"}) as http:
            assert http.post("/v1/completions", json=body).status_code == 200
        assert "model pocket-draft" in served.log and "/v1/completions" not in served.log
        assert "one" not in served.log.replace("one request", "")


MISTAKES = {
    "no such model": (["nothing/like/this"], "model='nothing/like/this'"),
    "a bad engine argument": (["--block-size", "0"], "block_size"),
    "no port number": (["--port", "70000"], "port"),
    "a template that is not there": (["--chat-template", "no-such-file"], "chat_template"),
    "a template that is none": (["--chat-template", "{{ messages"], "chat_template"),
    "an unknown parser": (["--tool-call-parser", "nobody"], "tool_call_parser"),
    "two models": (["pocket", "--model", "pocket-draft"], "MODEL"),
    "no such file": (["--config", "no-such.yaml"], "--config"),
    "no time at all": (["--request-timeout", "0"], "request_timeout"),
}


@pytest.mark.parametrize(("arguments", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_settings_is_one_line_and_status_2(arguments, named):
    command = [sys.executable, "-m", "quire.server", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("quire: ")]
    assert done.returncode == 2 and len(complaints) == 1 and named in complaints[0], done.stderr
    assert "Traceback" not in done.stderr and "killed" not in done.stderr


def test_a_model_without_a_tokenizer_is_not_served(tmp_path):
    model = str(tiny_checkpoint(tmp_path / "bare", tokenizer=False))
    done = subprocess.run([sys.executable, "-m", "quire.server", "--port", "0", model], capture_output=True, text=True)
    assert done.returncode == 2 and "tokenizer=" in done.stderr and "no tokenizer there" in done.stderr


def test_a_port_in_use_is_said_before_anything_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, "-m", "quire.server", "--port", port], capture_output=True, text=True)
    assert done.returncode == 2 and f"port={port}: cannot listen" in done.stderr and "Give another" in done.stderr


def test_unknown_keys_in_the_file_are_refused_by_name(tmp_path):
    config = tmp_path / "quire.yaml"
    config.write_text("max-num-sequences: 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "quire.server", "--config", str(config)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "max_num_sequences" in done.stderr
