// What a trace says, line by line, and how everything stood after any of its steps.
//
// The lines are those of docs/trace.md (schema version 2). A state is a small set of maps that each line changes;
// a copy is kept every KEYFRAME steps, so that going back means: take the copy before, and apply the lines since.

export const VERSION = 2;
const KEYFRAME = 64;

/** How everything stands: who runs on which row, which blocks each row holds, what is cached. */
export class State {
  constructor() {
    this.time = 0;
    this.step = -1; // number of the last plan
    this.requests = new Map(); // request id -> {id, promptLen, beams, arrived, started}
    this.seqs = new Map(); // seq id -> {id, name, request, stream, row, status, promptLen, length, computed, cached}
    this.rows = new Map(); // row -> seq id
    this.tables = new Map(); // row -> block ids; the arrays are never changed
    this.cache = new Map(); // block -> [name, parent]
    this.stats = {};
  }

  clone() {
    const copy = new State();
    Object.assign(copy, { time: this.time, step: this.step, stats: this.stats });
    for (const [id, seq] of this.seqs) copy.seqs.set(id, { ...seq });
    for (const [id, request] of this.requests) copy.requests.set(id, { ...request });
    for (const name of ["rows", "tables", "cache"]) copy[name] = new Map(this[name]);
    return copy;
  }

  /** Who holds each block: counts, the first two holders (seq ids, or -1), and how many of its slots are in use. */
  occupancy(numBlocks, blockSize) {
    const refs = new Uint16Array(numBlocks);
    const first = new Int32Array(numBlocks).fill(-1);
    const second = new Int32Array(numBlocks).fill(-1);
    const slots = new Uint16Array(numBlocks);
    let held = 0;
    for (const [row, blocks] of this.tables) {
      const id = this.rows.get(row) ?? -1;
      const computed = this.seqs.get(id)?.computed ?? 0;
      for (let i = 0; i < blocks.length; i++) {
        const block = blocks[i];
        const used = Math.max(0, Math.min(blockSize, computed - i * blockSize));
        if (refs[block]++ === 0) { first[block] = id; held++; } else if (second[block] < 0) second[block] = id;
        if (used > slots[block]) slots[block] = used;
      }
    }
    let cachedFree = 0;
    for (const block of this.cache.keys()) if (!refs[block]) cachedFree++;
    return { refs, first, second, slots, held, cachedFree };
  }

  /** Sequences in the order of their arrival: those that run, then those that wait. */
  inOrder() {
    const all = [...this.seqs.values()];
    const place = (seq) => (seq.row >= 0 ? 0 : 1);
    return all.sort((a, b) => place(a) - place(b) || a.id - b.id);
  }

  /** Requests of which nothing runs yet. */
  waiting() {
    return [...this.requests.values()].filter((request) => !request.started);
  }

  apply(line, info) {
    if (line.type === "step") this.#step(line, info);
    else if (line.type === "request") this.#request(line, line.t);
    else if (line.type === "end") this.#finish(line.request_id, line.index, info);
    else if (line.type === "state") this.#state(line);
    if (line.t > this.time) this.time = line.t;
  }

  #request(line, t) {
    const beams = line.params?.beam_width !== undefined;
    this.requests.set(line.request_id, {
      id: line.request_id, promptLen: line.prompt_len, beams, arrived: t, started: false, text: line.text,
    });
  }

  #state(line) {
    for (const map of [this.requests, this.seqs, this.rows, this.tables, this.cache]) map.clear();
    for (const request of line.requests) this.#request(request, line.t);
    for (const s of line.sequences) {
      const seq = this.#enter(s.seq_id, s.request_id, s.stream, s.prompt_len);
      Object.assign(seq, { row: s.row, length: s.length, computed: s.computed });
      if (s.row >= 0) { this.rows.set(s.row, s.seq_id); seq.status = "running"; }
      else seq.status = s.host_blocks?.length ? "swapped" : s.length > s.prompt_len ? "preempted" : "waiting";
    }
    for (const [row, blocks] of Object.entries(line.tables)) this.tables.set(Number(row), blocks);
    for (const [block, entry] of Object.entries(line.cache)) this.cache.set(Number(block), entry);
    this.stats = line.stats ?? {};
    this.step = line.step - 1;
  }

  #enter(id, request, stream, promptLen) {
    const name = shortName(request) + (stream ? `.${stream}` : "");
    const seq = { id, name, request, stream, row: -1, status: "waiting", promptLen, length: promptLen, computed: 0, cached: 0 };
    this.seqs.set(id, seq);
    const known = this.requests.get(request);
    if (known) known.started = true;
    return seq;
  }

  #step(line, info) {
    const { plan } = line;
    const entering = new Set(plan.starts.map((start) => start.seq_id));
    const fresh = new Set(); // of these, sequences that start for the first time
    for (const row of plan.ends) this.rows.delete(row);
    for (const start of plan.starts) {
      const tokens = typeof start.token_ids === "number" ? start.token_ids : start.token_ids.length;
      let seq = this.seqs.get(start.seq_id);
      if (seq && seq.row < 0 && seq.status !== "waiting") info?.resumed.push(start.seq_id);
      else fresh.add(start.seq_id);
      seq ??= this.#enter(start.seq_id, line.owners[start.seq_id] ?? "?", start.stream, start.prompt_len);
      Object.assign(seq, { row: start.row, status: "running", length: tokens });
      this.rows.set(start.row, start.seq_id);
      info?.started.push(start.seq_id);
    }
    for (const fork of plan.forks) {
      if (fork.row === fork.parent_row) continue; // a beam that goes on: only its token was chosen
      const parent = this.seqs.get(this.rows.get(fork.parent_row));
      const request = line.owners[fork.seq_id] ?? parent?.request ?? "?";
      const seq = this.#enter(fork.seq_id, request, fork.stream, parent?.promptLen ?? fork.length);
      Object.assign(seq, { row: fork.row, status: "running", length: fork.length, computed: fork.length });
      this.rows.set(fork.row, fork.seq_id);
      info?.forked.push([fork.seq_id, parent?.id ?? -1]);
    }
    for (const row of line.preempted ?? []) {
      const seq = this.seqs.get(this.rows.get(row));
      this.rows.delete(row);
      if (!seq) continue;
      Object.assign(seq, { row: -1, status: plan.swap_out.length ? "swapped" : "preempted" });
      if (!plan.swap_out.length) seq.computed = 0;
      info?.preempted.push(seq.id);
    }
    this.#change(line.tables);
    plan.seqs.forEach((s, i) => {
      const seq = this.seqs.get(s.seq_id);
      if (!seq || seq.row !== s.row) return; // it has ended while this step was on its way
      const drafts = s.n_draft ?? 0;
      const accepted = drafts ? line.result.accepted?.[i] ?? 0 : 0;
      const tokens = line.result.tokens[i];
      seq.computed = s.start + s.n - (drafts - accepted);
      seq.length = Math.max(seq.length + (typeof tokens === "number" ? tokens : tokens.length), seq.computed);
      const hit = fresh.has(s.seq_id) && s.start > 0;
      if (hit) seq.cached = s.start;
      if (info) {
        if (hit) info.hits.push(s.seq_id);
        const gained = s.new_blocks ?? []; // of one that enters: its whole table, what was cached in front
        const found = !entering.has(s.seq_id) || plan.swap_in.length ? 0
          : s.write === false ? gained.length : Math.floor(s.start / info.blockSize);
        for (const block of gained.slice(0, found)) info.hitBlocks.add(block);
        const share = { id: s.seq_id, n: s.n, drafts, accepted, fresh: gained.slice(found), kind: "decode" };
        if (s.n - drafts > 1 || (!s.samples && !s.pools)) {
          share.kind = s.samples || s.pools ? "prompt" : "chunk";
        }
        info.shares.push(share);
      }
    });
    for (const event of line.events) if (event.finish_reason) this.#finish(event.request_id, event.index, info);
    const after = line.after ?? {};
    for (const [row, blocks] of Object.entries(after)) {
      const seq = blocks === null && this.seqs.get(this.rows.get(Number(row)));
      if (seq) this.#leave(seq, info);
    }
    this.#change(after);
    for (const [block, entry] of Object.entries(line.cache ?? {})) {
      const before = this.cache.get(Number(block));
      if (before && before[0] !== entry?.[0]) info?.evicted.push(Number(block));
      if (entry) this.cache.set(Number(block), entry);
      else this.cache.delete(Number(block));
    }
    this.stats = line.stats;
    this.step = plan.step;
    const end = Math.max(line.t, ...Object.values(line.phases).map(([begin, length]) => begin + length));
    if (end > this.time) this.time = end;
  }

  #change(tables) {
    for (const [key, blocks] of Object.entries(tables)) {
      const row = Number(key);
      if (blocks === null) this.tables.delete(row);
      else if (this.rows.has(row)) this.tables.set(row, blocks);
    }
  }

  #finish(request, index, info) {
    const known = this.requests.get(request);
    for (const seq of [...this.seqs.values()]) {
      if (seq.request === request && (known?.beams || seq.stream === index)) this.#leave(seq, info);
    }
    if (known && !known.started) this.requests.delete(request); // it has never run
  }

  #leave(seq, info) {
    this.seqs.delete(seq.id);
    info?.finished.push([seq.id, seq.name]);
    if (seq.row >= 0) { this.tables.delete(seq.row); this.rows.delete(seq.row); }
    for (const other of this.seqs.values()) if (other.request === seq.request) return;
    this.requests.delete(seq.request);
  }
}

/** A request's id without the part that only makes it unique. */
export function shortName(id) {
  const short = id.replace(/-[0-9a-f]{12}$/, "");
  return /^[0-9a-f]{32}$/.test(short) ? short.slice(0, 6) : short;
}

/** A trace: its header, its steps, and the state after any of them. Steps are numbered from 0, the oldest kept. */
export class Trace {
  constructor(limit = Infinity, shareLimit = Infinity) {
    this.limit = limit; // steps kept, for streams,
    this.shareLimit = shareLimit; // and shares of sequences in them; some more until both are looked at again
    this.clear();
  }

  clear() {
    this.header = null;
    this.steps = []; // {line, before: other lines that came before it, info}
    this.tail = []; // lines since the last step
    this.dropped = 0; // steps that are kept no more
    this.highest = 0; // number of the last block that anybody has held so far: a pool hands them out in order at first
    this.shares = 0; // of sequences, in all steps that are kept
    this.head = new State();
    this.lanes = new Map(); // seq id -> {id, name, request, arrived, begin, end, gaps}; step numbers, dropped ones too
    this.arrivals = new Map(); // request id -> number of the step before which it came
    this.numbers = new Map(); // request id -> its number in order of arrival, for colours
    this.names = new Map(); // seq id -> name, of all there ever were
    this.keyframes = [this.head.clone()];
    this.cursor = null; // {index, state}: where the last look back was
    this.tried = [];
    this.accepted = [];
  }

  get length() { return this.steps.length; }
  get blockSize() { return this.header?.block_size ?? 16; }
  get numBlocks() { return this.header?.num_blocks ?? 0; }

  /** Read a whole trace from JSON lines. Throws an Error that says what is wrong; then nothing has changed. */
  load(text) {
    const lines = [];
    const rows = text.split("\n");
    rows.forEach((row, i) => {
      if (!row.trim()) return;
      try { lines.push(JSON.parse(row)); } catch {
        if (i < rows.length - 1) throw new Error(`line ${i + 1} is not JSON: is this a trace (steps.jsonl)?`);
      } // the last line may have been cut off when its writer died
    });
    if (lines[0]?.type !== "header") throw new Error("the first line is no header: is this a trace (steps.jsonl)?");
    checkVersion(lines[0]);
    this.clear();
    for (const line of lines) this.add(line);
  }

  /** Take in one line. True if it was a step. */
  add(line) {
    if (line.type === "header") {
      checkVersion(line);
      if (this.header && this.header.id !== line.id) this.clear(); // of another engine: its numbers mean other things
      this.header = line;
      return false;
    }
    if (!["step", "request", "end", "state"].includes(line.type)) return false;
    if (!this.header) throw new Error("a trace begins with its header");
    if (line.type === "state" && this.steps.length) this.#closeLanes(line);
    if (line.type !== "step") {
      this.tail.push(line);
      this.head.apply(line);
      if (line.type === "state") this.#reach([...Object.values(line.tables), Object.keys(line.cache).map(Number)]);
      for (const request of line.type === "request" ? [line] : line.requests ?? []) this.#arrive(request.request_id);
      this.#followLanes(this.dropped + this.length, null);
      return false;
    }
    const info = newInfo(this.blockSize);
    const number = this.dropped + this.length;
    this.head.apply(line, info);
    this.#reach(Object.values(line.tables));
    for (const [id] of [...info.started.map((id) => [id]), ...info.forked]) {
      const seq = this.head.seqs.get(id);
      if (seq) this.names.set(id, seq.name);
    }
    this.#describe(line, info);
    this.steps.push({ line, before: this.tail, info });
    this.shares += info.shares.length;
    this.tail = [];
    this.#followLanes(number, info);
    if (this.steps.length % KEYFRAME === 0) this.keyframes.push(this.head.clone());
    const tooMany = this.steps.length > this.limit + KEYFRAME || this.shares > this.shareLimit;
    if (tooMany && this.steps.length > KEYFRAME) this.#forget();
    return true;
  }

  /** The state after step ``index``; -1: before the first. After the last step it has the lines since, too. */
  stateAt(index) {
    if (index >= this.length - 1) return this.head;
    let at = Math.floor((index + 1) / KEYFRAME);
    let from = at * KEYFRAME - 1;
    let state = null;
    if (this.cursor && this.cursor.index <= index && this.cursor.index >= from) {
      from = this.cursor.index;
      state = this.cursor.state;
    } else state = this.keyframes[at].clone();
    for (let i = from + 1; i <= index; i++) {
      for (const line of this.steps[i].before) state.apply(line);
      state.apply(this.steps[i].line);
    }
    this.cursor = { index, state };
    return state;
  }

  /** All lines, for a file; a state stands for the steps that are kept no more. */
  lines() {
    const first = this.dropped ? [stateLine(this.keyframes[0])] : [];
    return [this.header, ...first, ...this.steps.flatMap((step) => [...step.before, step.line]), ...this.tail].filter(Boolean);
  }

  #reach(tables) {
    for (const blocks of tables) for (const block of blocks ?? []) if (block > this.highest) this.highest = block;
  }

  #arrive(request) {
    this.arrivals.set(request, this.dropped + this.length);
    if (!this.numbers.has(request)) this.numbers.set(request, this.numbers.size);
  }

  /** What a step did, in figures that the pictures and the sentence need. */
  #describe(line, info) {
    const { stats } = line;
    info.copies = line.plan.copies.map(([src, dst]) => [src, dst]);
    info.swappedOut = line.plan.swap_out.length;
    info.swappedIn = line.plan.swap_in.length;
    const occupied = this.head.occupancy(this.numBlocks, this.blockSize);
    info.used = stats.blocks_used ?? 0;
    info.slots = stats.slots_used ?? 0;
    info.cachedFree = occupied.cachedFree;
    info.waiting = stats.num_waiting ?? 0;
    info.running = stats.num_running ?? 0;
    for (const share of info.shares) {
      for (let p = 0; p < share.drafts; p++) {
        this.tried[p] = (this.tried[p] ?? 0) + 1;
        this.accepted[p] = (this.accepted[p] ?? 0) + (p < share.accepted ? 1 : 0);
      }
    }
    info.tried = [...this.tried];
    info.accepted = [...this.accepted];
    info.happened = moments(info, this.length === 0);
  }

  /** Bring the lanes of the schedule up to date: who is there, who waits, who has gone. */
  #followLanes(number, info) {
    for (const seq of this.head.seqs.values()) {
      let lane = this.lanes.get(seq.id);
      if (!lane) {
        const arrived = seq.stream === 0 ? this.arrivals.get(seq.request) ?? number : number;
        if (!this.numbers.has(seq.request)) this.numbers.set(seq.request, this.numbers.size);
        lane = { id: seq.id, name: seq.name, request: seq.request, stream: seq.stream, arrived, begin: number, end: null, gaps: [] };
        this.lanes.set(seq.id, lane);
        this.names.set(seq.id, seq.name);
      }
      const gap = lane.gaps.at(-1);
      if (seq.row < 0 && (!gap || gap[1] !== null)) lane.gaps.push([number, null, seq.status]);
      if (seq.row >= 0 && gap && gap[1] === null) gap[1] = number;
    }
    for (const [id] of info?.finished ?? []) {
      const lane = this.lanes.get(id);
      if (lane) lane.end = number;
    }
    if (!info) {
      for (const lane of this.lanes.values()) if (lane.end === null && !this.head.seqs.has(lane.id)) lane.end = number;
    }
  }

  #closeLanes(line) {
    const alive = new Set(line.sequences.map((s) => s.seq_id));
    for (const lane of this.lanes.values()) if (lane.end === null && !alive.has(lane.id)) lane.end = this.dropped + this.length;
  }

  #forget() {
    for (const step of this.steps.splice(0, KEYFRAME)) this.shares -= step.info.shares.length;
    this.keyframes.shift();
    this.dropped += KEYFRAME;
    this.cursor = null;
    for (const [id, lane] of this.lanes) if (lane.end !== null && lane.end < this.dropped) this.lanes.delete(id);
  }
}

function newInfo(blockSize) {
  return {
    blockSize, started: [], resumed: [], forked: [], preempted: [], finished: [], evicted: [], shares: [], hits: [],
    hitBlocks: new Set(),
  };
}

function checkVersion(header) {
  if (header.v !== VERSION) {
    throw new Error(`this trace has schema version ${header.v}; this viewer reads ${VERSION}: record it again, or view it with the quire it came from`);
  }
}

/** What happens in a step, in the words of quire.ui.scenarios.MOMENTS. */
function moments(info, first) {
  const found = [];
  const say = (word, when) => when && found.push(word);
  say("start", first);
  say("share", info.hits.length);
  say("prompt", info.shares.some((s) => s.kind === "prompt" && !info.resumed.includes(s.id)));
  say("chunk", info.shares.some((s) => s.kind === "chunk"));
  say("fork", info.forked.length);
  say("copy", info.copies.length);
  say("preempt", info.preempted.length);
  say("resume", info.resumed.length);
  say("swap_out", info.swappedOut);
  say("swap_in", info.swappedIn);
  say("evict", info.evicted.length);
  say("decode", info.shares.some((s) => s.kind === "decode"));
  say("accept", info.shares.some((s) => s.accepted));
  say("reject", info.shares.some((s) => s.accepted < s.drafts));
  say("queue", info.waiting);
  say("finish", info.finished.length);
  say("idle", !info.running && !info.waiting);
  return found;
}

function stateLine(state) {
  return {
    type: "state", t: state.time, step: state.step + 1,
    requests: [...state.requests.values()].map((r) => ({ request_id: r.id, prompt_len: r.promptLen, params: r.beams ? { beam_width: 0 } : {} })),
    sequences: [...state.seqs.values()].map((s) => ({
      seq_id: s.id, row: s.row, request_id: s.request, stream: s.stream, prompt_len: s.promptLen, length: s.length,
      computed: s.computed, host_blocks: [],
    })),
    tables: Object.fromEntries(state.tables), cache: Object.fromEntries(state.cache), stats: state.stats,
  };
}
