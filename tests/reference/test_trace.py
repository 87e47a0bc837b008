"""The recorder: what a trace holds, what a redacted one leaves out, what survives a dead process."""

from __future__ import annotations

import json

import pytest

from quire import BeamSearchParams, SamplingParams, StructuredOutputsParams
from quire.reference import trace
from tests.reference.ghost import GhostRunner, ghost_engine, run
from tests.toys import byte_tokenizer


def recorder_at(folder, redact=False):
    lines = trace.TraceLines(block_size=4, num_blocks=65, redact=redact, about={"model": "ghost"})
    return trace.Recorder(folder, lines)


def recorded(folder, *, redact=False, ahead=False, close=True, **config):
    """Run a small workload under a recorder; the engine's own block tables are noted at each step, for comparison."""
    recorder = recorder_at(folder, redact=redact)
    engine = ghost_engine(GhostRunner(), recorder=recorder, async_scheduling=ahead, **config)
    for i in range(4):
        engine.add_request([9, 8, 7, 6, 5, i], SamplingParams(max_tokens=9, n=1 + i % 2, stop_token_ids=[99]))
    tables = []
    while engine.has_unfinished():
        update = engine.scheduler.update

        def noting(plan, result, update=update):
            rows = {s.row: s.table.blocks for s in engine.scheduler.sequences.values() if s.row >= 0}
            tables.append({row: list(blocks) for row, blocks in rows.items()})
            return update(plan, result)

        engine.scheduler.update = noting
        engine.step()
        engine.scheduler.update = update
    if close:
        engine.close()
    return recorder.path, tables


@pytest.mark.parametrize("config", [{}, {"num_blocks": 9}, {"max_num_batched_tokens": 5}])
def test_block_tables_are_those_of_the_scheduler(tmp_path, config):
    path, tables = recorded(tmp_path, **config)
    steps = trace.read_trace(path).steps
    assert len(steps) == len(tables) > 9
    for step, expected in zip(steps, tables):
        live = {seq["row"] for seq in step["plan"]["seqs"]}
        assert live and {row: step["tables"][row] for row in live} == {row: expected[row] for row in live}


class Follower:
    """A recorder that keeps block tables and prefix cache by the lines alone, as a viewer does."""

    def __init__(self, engine):
        self.lines = trace.TraceLines(block_size=4, num_blocks=65)
        self.engine = engine
        engine.attach(self)
        state = json.loads(json.dumps(self.lines.state(engine.snapshot()), default=trace._fields))
        self.tables, self.cache, self.preempted = dict(state["tables"]), dict(state["cache"]), 0

    def step(self, record):
        line = json.loads(json.dumps(self.lines.step(record), default=trace._fields))
        for kept, changes in ((self.tables, "tables"), (self.tables, "after"), (self.cache, "cache")):
            for key, value in line[changes].items():
                kept[key] = value
        self.preempted += len(line["preempted"])

    def request(self, request): ...

    def end(self, request_id, index, reason): ...

    def close(self): ...

    def held(self, kept):
        return {int(key): value for key, value in kept.items() if value is not None}

    def check(self):
        scheduler = self.engine.scheduler
        assert self.held(self.tables) == {seq.row: seq.table.blocks for seq in scheduler.running}
        names = {block: [self.lines._name(n) for n in entry] for block, entry in scheduler.kv.prefix.entries().items()}
        assert self.held(self.cache) == names


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("config", [{}, {"num_blocks": 12}, {"num_blocks": 12, "preemption_mode": "swap"}])
def test_a_trace_alone_tells_who_holds_which_block_and_what_is_cached(config, late, ahead):
    """Forks, copies on write, preemptions, beams and the prefix cache; also for one who comes in the middle."""
    engine = ghost_engine(GhostRunner(), async_scheduling=ahead, **config)
    for i in range(6):
        params = BeamSearchParams(beam_width=3, max_tokens=7) if i == 2 else SamplingParams(max_tokens=9, n=1 + i % 3)
        engine.add_request([9, 8, 7, 6, 5, i % 2], params)
    for _ in range(4 if late else 0):
        engine.step()
    follower = Follower(engine)
    while engine.has_unfinished():
        engine.step()
        if not ahead:  # else the scheduler is a plan further
            follower.check()
    follower.check()
    assert engine.scheduler.stats().num_copies and bool(config) == bool(engine.scheduler.stats().num_preemptions)
    assert late or follower.preempted == engine.scheduler.stats().num_preemptions
    engine.scheduler.reset_prefix_cache()
    engine.add_request([1], SamplingParams(max_tokens=1))
    run(engine)
    follower.check()
    engine.detach(follower)
    assert engine.scheduler.kv.prefix.touched is None


def test_a_trace_that_begins_in_the_middle_can_be_read(tmp_path):
    engine = ghost_engine(GhostRunner())
    engine.add_request([9, 8, 7, 6, 5], SamplingParams(max_tokens=9, n=2))
    engine.step()
    engine.step()
    recorder = recorder_at(tmp_path)
    recorder._write(recorder._lines.state(engine.snapshot()))
    engine.attach(recorder)
    run(engine)
    engine.close()
    read = trace.read_trace(recorder.path)
    assert [r["request_id"] for r in read.requests] == ["req-0"] and read.steps[0]["plan"]["step"] == 2
    assert read.sequences == {0: ("req-0", 0), 1: ("req-0", 1)} and set(read.steps[0]["tables"]) == {0, 1}


def test_steps_tell_plan_result_events_times_and_stats(tmp_path):
    path, _ = recorded(tmp_path, ahead=True)
    read = trace.read_trace(path)
    assert read.header["v"] == trace.SCHEMA_VERSION and read.header["model"] == "ghost"
    assert [r["request_id"] for r in read.requests] == ["req-0", "req-1", "req-2", "req-3"]
    assert read.requests[1]["params"]["n"] == 2 and read.requests[1]["token_ids"] == [9, 8, 7, 6, 5, 1]
    assert [s["plan"]["step"] for s in read.steps] == list(range(len(read.steps)))
    for step in read.steps:
        assert list(step["phases"]) == ["schedule", "forward", "sample", "wait", "update"]
        assert all(begin >= 0 and length >= 0 for begin, length in step["phases"].values())
        assert len(step["result"]["tokens"]) == len(step["plan"]["seqs"])
    assert sum(e["n"] for s in read.steps for e in s["events"]) == 6 * 9
    assert read.steps[0]["stats"]["blocks_used"] > 0


def test_redacted_traces_hold_counts_and_no_tokens(tmp_path):
    path, _ = recorded(tmp_path, redact=True)
    text = path.read_text()
    assert 'token_ids":[' not in text and "[9,8,7" not in text
    read = trace.read_trace(path)
    assert read.header["redacted"] is True
    assert read.requests[0]["prompt_len"] == 6 and read.requests[0]["params"]["stop_token_ids"] == 1
    assert read.steps[0]["plan"]["starts"][0]["token_ids"] == 6
    assert all(isinstance(n, int) for s in read.steps for n in s["result"]["tokens"])


@pytest.mark.parametrize("redact", [False, True])
def test_structured_outputs_leave_the_time_of_their_masks_and_their_end(tmp_path, redact):
    recorder = recorder_at(tmp_path, redact=redact)
    engine = ghost_engine(GhostRunner(384), recorder=recorder, tokenizer=byte_tokenizer())
    form = StructuredOutputsParams(regex="ab")
    engine.add_request([9, 8], SamplingParams(structured_outputs=form, ignore_eos=True))
    run(engine)
    engine.close()
    read = trace.read_trace(recorder.path)
    asked = read.requests[0]["params"]["structured_outputs"]
    assert asked == "regex" if redact else asked["regex"] == "ab"
    assert "mask" in read.steps[0]["phases"]
    assert [(end["request_id"], end["reason"]) for end in read.ends] == [("req-0", "error")]  # ghosts know no masks


def test_a_trace_whose_writer_died_is_readable(tmp_path):
    path, _ = recorded(tmp_path, close=False)  # nobody closes the file
    whole = trace.read_trace(path)
    path.write_bytes(path.read_bytes()[:-7])  # and the last line was cut
    assert trace.read_trace(path).steps == whole.steps[:-1]


def test_chrome_trace(tmp_path, capsys):
    path, _ = recorded(tmp_path)
    events = json.loads((tmp_path / "steps.trace.json").read_text())["traceEvents"]
    steps = trace.read_trace(path).steps
    spans = [e for e in events if e["ph"] == "X"]
    assert sum(e["name"] == "forward" for e in spans) == len(steps)
    assert {e["name"] for e in spans if e["pid"] == 3} == {"req-0", "req-1", "req-2", "req-3"}
    assert sum(e["name"] == "decode" for e in spans) > 30 and any(e["name"] == "prefill 6" for e in spans)
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert tracks == {"req-0.0", "req-1.0", "req-1.1", "req-2.0", "req-3.0", "req-3.1"}
    assert {e["name"] for e in events if e["ph"] == "C"} == {"KV blocks", "requests"}
    target = tmp_path / "other.json"
    assert trace.main([str(path), str(target)]) == 0
    assert target.read_text() == (tmp_path / "steps.trace.json").read_text()
    assert trace.main([]) == 2 and "usage" in capsys.readouterr().err


def test_other_files_and_versions_are_refused(tmp_path, capsys):
    file = tmp_path / "x.jsonl"
    for line, problem in (({"a": 1}, "no trace"), ({"type": "header", "v": 99}, "version 99")):
        file.write_text(json.dumps(line) + "\n")
        with pytest.raises(ValueError, match=problem):
            trace.read_trace(file)
        assert trace.main([str(file), str(tmp_path / "out")]) == 2 and problem in capsys.readouterr().err
    assert trace.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("quire: ")


def test_without_a_recorder_nothing_is_recorded():
    engine = ghost_engine()
    engine.add_request([1], SamplingParams(max_tokens=3))
    run(engine)
    assert not engine.recorders and engine.scheduler.kv.prefix.touched is None
    engine.close()


def test_ends_from_outside_are_recorded_and_end_the_requests_span(tmp_path):
    recorder = recorder_at(tmp_path)
    engine = ghost_engine(GhostRunner(), recorder=recorder)
    names = [engine.add_request([5, i], SamplingParams(max_tokens=n)) for i, n in enumerate((9, 9, 30))]
    engine.step()
    engine.abort_request(names[0])
    engine.finish(names[1], 0)
    run(engine)
    engine.close()
    assert [(e["request_id"], e["reason"]) for e in trace.read_trace(recorder.path).ends] == [
        (names[0], "abort"),
        (names[1], "stop"),
    ]
    events = json.loads((tmp_path / "steps.trace.json").read_text())["traceEvents"]
    spans = {e["name"]: e["dur"] for e in events if e["ph"] == "X" and e["pid"] == 3}
    assert spans[names[0]] < spans[names[2]] and spans[names[1]] < spans[names[2]]
