// The schedule: a lane for each sequence, a column for each step; and what each step's budget of tokens went to.

import { FONT, el, fit } from "./colors.js";
import { clip } from "./tables.js";

const WIDEST = 40;
const NARROWEST = 3;
const TALLEST = 250;
const BARS = 46; // the tokens per step, below the lanes
const AXIS = 18;
const MOST = 220; // lanes

/** Which steps are in sight, and how wide each is: the same for the schedule and for the figures over time below it. */
export function timeline(scene, width) {
  const gutter = width < 520 ? 62 : 96;
  const room = Math.max(40, width - gutter - 6);
  const { length } = scene.trace;
  const column = Math.max(NARROWEST, Math.min(WIDEST, room / Math.max(length, 1), length > room / NARROWEST ? 6 : WIDEST));
  const count = Math.max(1, Math.floor(room / column + 1e-6));
  let from = 0;
  if (length > count) from = Math.max(0, Math.min(length - count, Math.round(scene.index - count * (scene.following ? 0.97 : 0.6))));
  return { gutter, column, from, to: Math.min(length, from + count), x: (index) => gutter + (index - from) * column, count };
}

/** Let a canvas with a timeline set the position: by clicking and dragging. */
export function scrubbing(canvas, view, events) {
  let down = false;
  const seek = (event) => {
    const { gutter, column, from, to } = view.time ?? {};
    if (column && event.offsetX >= gutter - 4) events.seek(Math.max(from, Math.min(to - 1, from + Math.floor((event.offsetX - gutter) / column))));
  };
  canvas.addEventListener("pointerdown", (event) => { down = true; canvas.setPointerCapture(event.pointerId); seek(event); });
  canvas.addEventListener("pointermove", (event) => { if (down) seek(event); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { down = false; });
}

/** The column of the step that is shown, and marks of steps along the bottom. */
export function timeAxis(context, scene, time, top, bottom, marks) {
  const { colors } = scene;
  if (scene.index >= time.from && scene.index < time.to) {
    context.fillStyle = colors.accent;
    context.globalAlpha = colors.dark ? 0.22 : 0.13;
    context.fillRect(time.x(scene.index) - 0.5, top, Math.max(time.column, 3), bottom - top);
    context.globalAlpha = 1;
  }
  if (!marks) return;
  context.font = `10px ${FONT}`;
  context.fillStyle = colors.muted;
  context.textAlign = "center";
  context.textBaseline = "top";
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * time.column >= 44) ?? 1000;
  for (let i = time.from; i < time.to; i++) {
    const number = scene.trace.steps[i].line.plan.step;
    if (number % every === 0) context.fillText(number, time.x(i) + time.column / 2, bottom + 4);
  }
}

export class Schedule {
  constructor(events) {
    this.title = "Schedule";
    this.figure = "";
    this.canvas = el("canvas", { role: "img" });
    this.element = this.canvas;
    scrubbing(this.canvas, this, events);
  }

  draw(scene, width) {
    const { trace, colors } = scene;
    const time = (this.time = timeline(scene, width));
    const base = trace.dropped;
    const lanes = this.#lanes(scene, time, base);
    const lane = Math.max(2, Math.min(20, TALLEST / Math.max(lanes.length, 1)));
    const bottom = Math.max(40, lanes.length * lane) + 4;
    const context = fit(this.canvas, width, bottom + BARS + AXIS + 6);
    const rows = new Map();
    context.textBaseline = "middle";
    lanes.forEach((one, i) => {
      const y = i * lane + 2;
      rows.set(one.id, y);
      if (lane >= 11) {
        context.font = `${one.id === scene.selected ? 600 : 400} 11px ${FONT}`;
        context.fillStyle = one.id === scene.active ? colors.ink : colors.muted;
        context.textAlign = "right";
        context.fillText(clip(context, one.name, time.gutter - 12), time.gutter - 8, y + lane / 2);
      }
      this.#absences(context, scene, one, y, lane, time, base);
    });
    timeAxis(context, scene, time, 0, bottom + BARS + 2, false);
    this.#shares(context, scene, rows, lane, time);
    lanes.forEach((one) => this.#marks(context, scene, one, rows.get(one.id), lane, time, base));
    this.#bars(context, scene, time, bottom + 2, width);
    timeAxis(context, scene, time, bottom + BARS + 2, bottom + BARS + 2, true);
    const info = scene.step?.info;
    this.figure = info ? `${info.running} running, ${info.waiting} waiting` : "";
    this.canvas.setAttribute("aria-label", `Schedule of ${lanes.length} sequences over steps ${time.from} to ${time.to - 1}. ${this.figure}.`);
  }

  /** The lanes that have anything in sight, first come first; if these are too many, those that are there now. */
  #lanes(scene, time, base) {
    const found = [];
    for (const lane of scene.trace.lanes.values()) {
      if (lane.arrived - base < time.to && (lane.end ?? Infinity) - base >= time.from) found.push(lane);
    }
    for (const request of scene.state.waiting()) {
      const arrived = scene.trace.arrivals.get(request.id) ?? base;
      const known = found.some((lane) => lane.request === request.id);
      if (!known) found.push({ id: `waiting:${request.id}`, name: scene.requestName(request.id), request: request.id, arrived, begin: Infinity, end: null, gaps: [] });
    }
    const now = base + Math.max(0, scene.index);
    const here = (lane) => lane.arrived <= now && (lane.end ?? Infinity) >= now;
    const shown = found.length > MOST ? found.filter(here) : found;
    return shown.slice(0, MOST).sort((a, b) => a.arrived - b.arrived || (a.id > b.id ? 1 : -1));
  }

  /** Dotted while it waits, dashed in warning colour while it is preempted. */
  #absences(context, scene, one, y, lane, time, base) {
    const until = (number) => time.x(Math.min(Math.max(number - base, time.from), time.to));
    const line = (from, to, color, dash) => {
      if (to <= from) return;
      context.strokeStyle = color;
      context.lineWidth = lane >= 6 ? 1.5 : 1;
      context.setLineDash(dash);
      context.beginPath();
      context.moveTo(from, y + lane / 2);
      context.lineTo(to, y + lane / 2);
      context.stroke();
      context.setLineDash([]);
    };
    const now = base + scene.trace.length;
    line(until(one.arrived), until(Math.min(one.begin, now)), scene.colors.cachedInk, [1.5, 3]);
    for (const [from, to] of one.gaps) line(until(from), until(to ?? now), scene.colors.warn, [4, 3]);
  }

  #marks(context, scene, one, y, lane, time, base) {
    if (lane < 5) return;
    for (const [from, , status] of one.gaps) {
      const i = from - base;
      if (status === "waiting" || i < time.from || i >= time.to) continue;
      const x = time.x(i) + time.column / 2;
      const r = Math.min(5, lane / 2 - 0.5);
      context.fillStyle = scene.colors.warn;
      context.beginPath();
      context.moveTo(x - r, y + lane / 2 - r * 0.8);
      context.lineTo(x + r, y + lane / 2 - r * 0.8);
      context.lineTo(x, y + lane / 2 + r);
      context.fill();
    }
  }

  /** What each sequence got in each step. Steps that look alike are drawn as one where there is no gap between them. */
  #shares(context, scene, rows, lane, time) {
    const { colors, trace } = scene;
    const column = time.column;
    const gap = column >= 6 && lane >= 6 ? 1 : 0;
    const pad = lane >= 8 ? 2 : lane >= 4 ? 1 : 0;
    const height = lane - 2 * pad;
    const inset = lane >= 8 ? height * 0.22 : 0;
    const runs = new Map(); // sequence -> [kind, first step, step behind the last]
    const flush = (id, [kind, from, to]) => {
      const y = rows.get(id) + pad;
      const x = time.x(from);
      const width = (to - from) * column - gap;
      context.globalAlpha = scene.active !== null && scene.active !== id ? 0.3 : 1;
      context.fillStyle = scene.colorOf(id);
      if (kind === "decode") context.fillRect(x, y + inset, width, height - 2 * inset);
      else {
        context.fillRect(x, y, width, height);
        context.globalAlpha *= 0.55;
        context.fillStyle = colors.ink;
        context.fillRect(x, y, width, height);
      }
    };
    for (let i = time.from; i < time.to; i++) {
      for (const share of trace.steps[i].info.shares) {
        if (!rows.has(share.id)) continue;
        const kind = share.kind === "decode" ? "decode" : "prompt";
        const run = runs.get(share.id);
        if (run && run[0] === kind && run[2] === i && !gap) { run[2] = i + 1; continue; }
        if (run) flush(share.id, run);
        runs.set(share.id, [kind, i, i + 1]);
      }
    }
    for (const [id, run] of runs) flush(id, run);
    context.globalAlpha = 1;
    if (lane < 6 || !trace.tried.length) return;
    for (let i = time.from; i < time.to; i++) {
      for (const share of trace.steps[i].info.shares) {
        if (!share.drafts || !rows.has(share.id)) continue;
        const y = rows.get(share.id) + pad + height - 3;
        context.fillStyle = colors.warn;
        context.fillRect(time.x(i), y, column - gap, 3);
        context.fillStyle = colors.good;
        context.fillRect(time.x(i), y, (column - gap) * (share.accepted / share.drafts), 3);
      }
    }
  }

  /** Tokens per step: of prompts, of decodes, and drafts that were rejected. */
  #bars(context, scene, time, top) {
    const { colors, trace } = scene;
    let most = 1;
    const sums = [];
    for (let i = time.from; i < time.to; i++) {
      const sum = { prompt: 0, decode: 0, rejected: 0 };
      for (const share of trace.steps[i].info.shares) {
        if (share.kind === "decode") { sum.decode += 1 + share.accepted; sum.rejected += share.drafts - share.accepted; } else sum.prompt += share.n;
      }
      sums.push(sum);
      most = Math.max(most, sum.prompt + sum.decode + sum.rejected);
    }
    const scale = (BARS - 14) / most;
    const floor = top + BARS;
    context.strokeStyle = colors.line;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(time.gutter, floor + 0.5);
    context.lineTo(time.x(time.to), floor + 0.5);
    context.stroke();
    const gap = time.column >= 6 ? 1 : 0;
    sums.forEach((sum, k) => {
      let y = floor;
      for (const [n, color] of [[sum.decode, colors.accentSoft], [sum.prompt, colors.accent], [sum.rejected, colors.warn]]) {
        const height = n ? Math.max(1, n * scale) : 0;
        context.fillStyle = color;
        context.fillRect(time.x(time.from + k), y - height, time.column - gap, height);
        y -= height;
      }
    });
    context.font = `10px ${FONT}`;
    context.fillStyle = colors.muted;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(`${most} tokens`, time.gutter - 8, floor - most * scale + 4);
    context.fillText("0", time.gutter - 8, floor - 3);
  }
}
