// A trace in Chrome's trace event format, for https://ui.perfetto.dev: what quire.reference.trace_chrome writes.

import { State } from "./model.js";

const SEQ_DEFAULTS = { n_draft: 0, new_blocks: [], write: true, pools: false, propose: 0 };

/** The events of a trace's lines (the header among them), as an object to be written as JSON. */
export function chromeTrace(lines) {
  const out = [];
  const state = new State();
  const owners = new Map(); // seq id -> [request id, stream]
  const arrived = new Map();
  const ended = new Map();
  const steps = [];
  for (const [pid, name] of [[1, "engine"], [2, "sequences"], [3, "requests"]]) {
    out.push({ ph: "M", pid, tid: 0, name: "process_name", args: { name } });
  }
  for (const line of lines) {
    if (line.type === "request") arrived.set(line.request_id, line.t);
    for (const request of line.type === "state" ? line.requests : []) arrived.set(request.request_id, line.t);
    for (const seq of line.type === "state" ? line.sequences : []) owners.set(seq.seq_id, [seq.request_id, seq.stream]);
    for (const made of line.type === "step" ? [...line.plan.starts, ...line.plan.forks] : []) {
      const owner = line.owners[made.seq_id];
      if (owner !== undefined) owners.set(made.seq_id, [owner, made.stream]);
    }
  }
  for (const [id, [request, stream]] of owners) {
    out.push({ ph: "M", pid: 2, tid: id, name: "thread_name", args: { name: `${request}.${stream}` } });
  }
  const micro = (seconds) => Math.round(seconds * 1e7) / 10;
  const span = (pid, tid, name, begin, length, args) => {
    out.push({ ph: "X", pid, tid, name, args, ts: micro(begin), dur: micro(length) });
  };
  for (const line of lines) {
    if (line.type !== "step") { state.apply(line); continue; }
    const { plan, phases, stats } = line;
    const seqs = plan.seqs.map((seq) => ({ ...SEQ_DEFAULTS, ...seq }));
    const before = { ...Object.fromEntries(state.tables), ...line.tables };
    const tokens = seqs.reduce((n, seq) => n + seq.n, 0);
    for (const [name, [begin, length]] of Object.entries(phases)) {
      span(1, 1, name, begin, length, { step: plan.step, sequences: seqs.length, tokens });
    }
    const begin = phases.forward ? phases.forward[0] : line.t;
    const end = Math.max(...Object.values(phases).map(([b, d]) => b + d));
    for (const seq of seqs) {
      const name = seq.n_draft ? `decode, ${seq.n_draft} drafts` : seq.n === 1 ? "decode" : `prefill ${seq.n}`;
      span(2, seq.seq_id, name, begin, end - begin, { step: plan.step, ...seq, block_table: before[seq.row] ?? [] });
    }
    for (const event of line.events) if (event.finish_reason) ended.set(event.request_id, end);
    for (const [name, args] of [
      ["KV blocks", { used: stats.blocks_used ?? 0 }],
      ["requests", { running: stats.num_running ?? 0, waiting: stats.num_waiting ?? 0 }],
    ]) out.push({ ph: "C", pid: 1, tid: 0, name, ts: micro(end), args });
    steps.push(end);
    state.apply(line);
  }
  for (const line of lines) {
    if (line.type === "end") ended.set(line.request_id, Math.max(line.t, ended.get(line.request_id) ?? 0));
  }
  const last = Math.max(0, ...steps);
  [...arrived].forEach(([request, begin], track) => {
    span(3, track, request, begin, Math.max((ended.get(request) ?? last) - begin, 0), {});
  });
  return { traceEvents: out, displayTimeUnit: "ms" };
}
