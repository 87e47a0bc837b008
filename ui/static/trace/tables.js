// The block tables: for each sequence its physical blocks in logical order, as a list that scrolls.
//
// Only the rows in sight are drawn, on one canvas, so two hundred sequences cost what ten do. For keyboard and screen
// reader it is a listbox whose chosen option is said in words.

import { FONT, MONO, el, fit, hatch } from "./colors.js";

const ROW = 24;
const TALL = 330;

export class BlockTables {
  constructor(events) {
    this.title = "Block tables";
    this.figure = "";
    this.events = events;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.option = el("div", { role: "option", id: "row", class: "unseen" });
    this.spacer = el("div", { class: "spacer" }, this.canvas);
    this.element = el("div", { class: "rows", role: "listbox", tabIndex: 0, "aria-label": "Sequences and their block tables" }, this.spacer, this.option);
    this.list = [];
    this.chips = { x: 0, width: 22, logical: true };
    this.element.addEventListener("scroll", () => events.redraw());
    this.element.addEventListener("pointermove", (event) => events.hover(this.#seqAt(event)));
    this.element.addEventListener("pointerleave", () => events.hover(null));
    this.element.addEventListener("click", (event) => events.select(this.#seqAt(event), true));
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  #seqAt(event) {
    const y = event.clientY - this.element.getBoundingClientRect().top + this.element.scrollTop;
    return this.list[Math.floor(y / ROW)]?.id ?? null;
  }

  #key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    if (!by) { this.events.select(null); return; }
    const at = this.list.findIndex((seq) => seq.id === this.selected);
    const next = this.list[Math.max(0, Math.min(this.list.length - 1, at < 0 ? 0 : at + by))];
    if (!next) return;
    const y = this.list.indexOf(next) * ROW;
    const { scrollTop, clientHeight } = this.element;
    if (y < scrollTop) this.element.scrollTop = y;
    if (y + ROW > scrollTop + clientHeight) this.element.scrollTop = y + ROW - clientHeight;
    this.events.select(next.id);
  }

  /** Where the chips of a sequence are, relative to ``element``; none if its row is out of sight. */
  chipPlaces(id) {
    const at = this.list.findIndex((seq) => seq.id === id);
    const y = at * ROW - this.element.scrollTop;
    if (at < 0 || y < -ROW / 2 || y > this.element.clientHeight - ROW / 2) return [];
    const { x, width } = this.chips;
    return (this.shown.get(id) ?? []).map((block, i) => ({ block, x: x + i * width + width / 2, y: y + ROW / 2 }));
  }

  draw(scene, width) {
    const { colors, state } = scene;
    this.selected = scene.selected;
    const waiting = state.waiting().map((request) => ({
      id: `waiting:${request.id}`, name: scene.requestName(request.id), row: -1, status: "waiting", length: request.promptLen, request: request.id, stream: 0,
    }));
    this.list = [...state.inOrder(), ...waiting];
    const height = Math.max(ROW * 3, Math.min(TALL, this.list.length * ROW));
    if (this.element.style.height !== `${height}px`) this.element.style.height = `${height}px`;
    this.spacer.style.height = `${this.list.length * ROW}px`;
    const view = this.list.length * ROW > height ? width - 12 : width; // room for a scrollbar
    const context = fit(this.canvas, view, height);
    const top = this.element.scrollTop;
    const label = Math.min(190, Math.max(128, view * 0.3));
    const longest = Math.max(1, ...this.list.map((seq) => (scene.tableOf(seq.id) ?? []).length));
    const chip = Math.max(3, Math.min(30, (view - label - 4) / longest));
    this.chips = { x: label, width: chip };
    this.shown = new Map();
    const from = Math.floor(top / ROW);
    const to = Math.min(this.list.length, Math.ceil((top + height) / ROW));
    for (let i = from; i < to; i++) this.#row(context, scene, this.list[i], i * ROW - top, view, label, chip);
    if (!this.list.length) {
      context.fillStyle = colors.muted;
      context.font = `13px ${FONT}`;
      context.fillText("Nobody is here.", 2, 20);
    }
    const running = this.list.filter((seq) => seq.row >= 0).length;
    this.figure = `${running} running${this.list.length - running ? `, ${this.list.length - running} waiting` : ""}`;
    this.#say(scene);
  }

  #row(context, scene, seq, y, view, label, chip) {
    const { colors, occupancy } = scene;
    const active = scene.active === seq.id;
    if (active || scene.selected === seq.id) {
      context.fillStyle = colors.grid;
      context.beginPath();
      context.roundRect(0, y + 1, view, ROW - 2, 5);
      context.fill();
    }
    const color = scene.colorOf(seq.id, seq);
    context.globalAlpha = seq.row >= 0 ? 1 : 0.5;
    context.fillStyle = color;
    context.beginPath();
    context.roundRect(5, y + 7, 10, 10, 3);
    context.fill();
    context.globalAlpha = 1;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.fillStyle = colors.ink;
    context.font = `${scene.selected === seq.id ? 600 : 500} 12px ${FONT}`;
    context.fillText(clip(context, seq.name, label - 74), 21, y + ROW / 2 + 0.5);
    context.fillStyle = colors.muted;
    context.font = `11px ${FONT}`;
    context.textAlign = "right";
    context.fillText(`${seq.length} tok`, label - 8, y + ROW / 2 + 0.5);
    context.textAlign = "left";
    const blocks = scene.tableOf(seq.id) ?? [];
    if (seq.row < 0) {
      context.fillStyle = seq.status === "waiting" ? colors.muted : colors.warn;
      const words = { waiting: "waiting", preempted: "preempted: waits, its K/V is gone", swapped: "preempted: K/V in host memory" };
      context.fillText(words[seq.status] ?? seq.status, label, y + ROW / 2 + 0.5);
      return;
    }
    this.shown.set(seq.id, blocks);
    const side = ROW - 8;
    const gap = chip > 8 ? 2 : chip > 4 ? 1 : 0;
    const wide = chip - gap;
    context.beginPath();
    let stripes = false;
    for (let i = 0; i < blocks.length; i++) {
      const x = label + i * chip;
      const used = Math.max(0, Math.min(1, (seq.computed - i * scene.trace.blockSize) / scene.trace.blockSize));
      context.globalAlpha = 0.3;
      context.fillStyle = color;
      context.fillRect(x, y + 4, wide, side);
      context.globalAlpha = 1;
      context.fillRect(x, y + 4, wide * used, side);
      if (occupancy.refs[blocks[i]] > 1) { stripes = true; hatch(context, x, y + 4, wide, side); }
    }
    if (stripes) {
      context.strokeStyle = colors.card;
      context.globalAlpha = 0.75;
      context.lineWidth = 1.4;
      context.stroke();
      context.globalAlpha = 1;
    }
    if (chip < 20) return;
    context.font = `600 10px ${MONO}`;
    context.textAlign = "center";
    context.lineJoin = "round";
    for (let i = 0; i < blocks.length; i++) {
      const x = label + i * chip + wide / 2;
      const used = seq.computed - i * scene.trace.blockSize;
      context.lineWidth = 3.5;
      context.strokeStyle = color;
      if (occupancy.refs[blocks[i]] > 1) context.strokeText(blocks[i], x, y + ROW / 2 + 0.5);
      context.fillStyle = occupancy.refs[blocks[i]] > 1 || used * 2 > scene.trace.blockSize ? colors.onColor : colors.ink;
      context.fillText(blocks[i], x, y + ROW / 2 + 0.5);
    }
  }

  #say(scene) {
    const seq = this.list.find((one) => one.id === scene.selected);
    const text = seq ? describe(seq, scene.tableOf(seq.id) ?? []) : "";
    if (this.option.textContent !== text) this.option.textContent = text;
    this.option.setAttribute("aria-selected", seq ? "true" : "false");
    if (seq) this.element.setAttribute("aria-activedescendant", "row");
    else this.element.removeAttribute("aria-activedescendant");
  }
}

function describe(seq, blocks) {
  if (seq.row < 0) return `${seq.name}: ${seq.status}, ${seq.length} tokens`;
  return `${seq.name}: running, ${seq.length} tokens in ${blocks.length} blocks: ${blocks.join(", ")}`;
}

/** As much of a text as fits, with an ellipsis. */
export function clip(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let short = text;
  while (short.length > 1 && context.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}
