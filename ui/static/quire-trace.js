// <quire-trace>: watch an engine think. Draws a trace of quire (docs/trace.md), recorded or live, in six views.
//
//   <quire-trace src="steps.jsonl" views="blocks tables schedule" theme="auto" autoplay></quire-trace>
//   <quire-trace live="/trace"></quire-trace>
//
// Attributes  src, live (addresses), views (of: blocks tables schedule usage prefix speculation; all without it),
//             theme (auto, light, dark), autoplay
// Methods     load(text), connect(url, {headers}), disconnect(), push(line), play(), pause(), step(n), seek(i),
//             exportPerfetto(), exportTrace()
// Properties  position (of the step that is shown, from 0; -1 without any), length (in steps)
// Events      quire-step    detail: {index, time, step, happened}; happened (since the last one, while it plays) as in quire.ui.scenarios.MOMENTS
//             quire-status  detail: {state, text}; state: empty, loaded, connecting, live, waiting, refused, problem, closed
//
// No dependencies, and no network but src and live. What a trace says is put into the page as text only.

import { BlockMap } from "./trace/blocks.js";
import { el, palette } from "./trace/colors.js";
import { Trace, shortName } from "./trace/model.js";
import { chromeTrace } from "./trace/perfetto.js";
import { PrefixTree } from "./trace/prefix.js";
import { Schedule } from "./trace/schedule.js";
import { Speculation } from "./trace/speculation.js";
import { listen } from "./trace/sse.js";
import { STYLE } from "./trace/style.js";
import { BlockTables } from "./trace/tables.js";
import { Usage } from "./trace/usage.js";
import { duration, sentence } from "./trace/words.js";

const VIEWS = { blocks: BlockMap, tables: BlockTables, schedule: Schedule, usage: Usage, prefix: PrefixTree, speculation: Speculation };
const LIVE_STEPS = 4096; // kept of a stream; a file is kept whole
const LIVE_SHARES = 200_000; // and shares of sequences in them: about a hundred megabytes
const SPEEDS = [2, 5, 10, 30, 60]; // steps per second
const SPOKEN_EVERY = 2500; // milliseconds between sentences for screen readers while it plays
const FLASH = 700; // milliseconds
const ICONS = {
  first: "M3 3h2v10H3zM13 3v10L6 8z", back: "M11 3v10L4 8zM12 3h1v10h-1z", play: "M4 2.5v11L13 8z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z", forward: "M5 3v10l7-5zM3 3h1v10H3z", last: "M11 3h2v10h-2zM3 3v10l7-5z",
};

class QuireTrace extends HTMLElement {
  static observedAttributes = ["src", "live", "views", "theme", "autoplay"];

  #trace = new Trace();
  #position = -1;
  #following = true; // stays at the newest step while lines come in
  #playing = false;
  #fresh = false; // a trace was loaded and nobody has moved in it yet
  #speed = 10;
  #selected = null;
  #hovered = null;
  #views = [];
  #frame = 0; // of requestAnimationFrame
  #played = 0; // when it last went a step on
  #flashed = 0; // when the step shown came into view
  #spoken = 0;
  #told = -1; // the step that quire-step last told of, dropped ones counted
  #stop = null; // ends the stream
  #parts = null;
  #colors = null;
  #drafting = false; // whether there were drafts: the legend has them then
  #dark = globalThis.matchMedia("(prefers-color-scheme: dark)");
  #still = globalThis.matchMedia("(prefers-reduced-motion: reduce)");
  #resize = new ResizeObserver(() => this.#redraw());
  #themed = () => this.#restyle();

  get position() { return this.#position; }
  get length() { return this.#trace.length; }

  connectedCallback() {
    if (!this.#parts) this.#build();
    this.#dark.addEventListener("change", this.#themed);
    this.#resize.observe(this.#parts.views);
    this.#restyle();
    this.#show();
    if (this.getAttribute("live") && !this.#stop) this.connect(this.getAttribute("live"));
  }

  disconnectedCallback() {
    this.#dark.removeEventListener("change", this.#themed);
    this.#resize.disconnect();
    this.disconnect();
    this.pause();
  }

  attributeChangedCallback(name, before, value) {
    if (before === value) return;
    if (name === "src" && value) this.#fetch(value);
    else if (name === "live" && this.isConnected) value ? this.connect(value) : this.disconnect();
    else if (name === "theme") this.#restyle();
    else if (name === "views" && this.#parts) this.#choose();
  }

  // --- what others call ----------------------------------------------------------------------------------------------

  /** Show a recorded trace: JSON lines. What is no trace is said in the status line, and false returned. */
  load(text) {
    this.disconnect();
    this.#playing = false;
    const trace = new Trace();
    try { trace.load(text); } catch (error) {
      this.#status("problem", `This cannot be shown: ${error.message}.`);
      return false;
    }
    this.#begin(trace);
    this.#status("loaded", "");
    // At rest it shows where most is going on; playing begins at the beginning.
    const used = trace.steps.map(({ info }) => info.used + info.copies.length / 10);
    this.seek(used.indexOf(Math.max(...used)));
    this.#fresh = true;
    if (this.hasAttribute("autoplay")) this.play();
    return true;
  }

  /** Show what a server's /trace says, from now on. ``headers`` go along, such as Authorization. */
  connect(url, { headers = {} } = {}) {
    this.disconnect();
    this.#begin(new Trace(LIVE_STEPS, LIVE_SHARES));
    this.#following = true;
    this.#stop = listen(url, headers, {
      line: (line) => {
        try { this.push(line); } catch (error) {
          this.disconnect();
          this.#status("problem", `This cannot be shown: ${error.message}.`);
        }
      },
      status: (state, text) => this.#status(state, text),
    });
  }

  /** Listen no more; what has come stays. */
  disconnect() {
    if (!this.#stop) return;
    this.#stop();
    this.#stop = null;
    this.#status("closed", "Not connected.");
  }

  /** One more line of a trace, as an object. Throws an Error for a line that does not fit. */
  push(line) {
    if (line.type === "dropped") this.#status("live", `Live. ${line.steps} steps were left out: this page could not keep up.`);
    if (line.type === "lost") this.#status("waiting", `The engine is gone (${line.reason}). Waiting for it.`);
    const kept = this.#trace.dropped;
    const stepped = this.#trace.add(line);
    if (line.type === "header" && !this.length) { // else it goes on with the trace that is here
      this.#following = true;
      this.#selected = null;
      this.#position = -1;
      this.#told = -1;
    }
    if (stepped && this.#trace.dropped > kept) this.#position = Math.max(0, this.#position - (this.#trace.dropped - kept));
    if (this.#following) this.#goto(this.length - 1);
    else this.#redraw();
  }

  play() {
    if (!this.length) return;
    if ((this.#position >= this.length - 1 || this.#fresh) && !this.#stop) this.#goto(0);
    this.#fresh = false;
    this.#playing = !this.#stop || this.#position < this.length - 1;
    this.#following = !this.#playing;
    this.#played = performance.now();
    this.#buttons();
    this.#redraw();
  }

  pause() {
    this.#playing = false;
    this.#following = false;
    this.#buttons();
    this.#redraw();
  }

  /** Go ``n`` steps on, or back where it is negative. */
  step(n = 1) { this.seek(this.#position + n); }

  /** Show step ``i``, counted from 0; beyond the ends is the end. */
  seek(i) {
    if (!this.length) return;
    this.#playing = this.#fresh = false;
    this.#goto(Math.max(0, Math.min(this.length - 1, Math.round(i))));
    if (this.#told !== this.#trace.dropped + this.#position) this.#told = this.#trace.dropped + this.#position - 1; // a leap passes nothing
    this.#following = Boolean(this.#stop) && this.#position === this.length - 1;
    this.#buttons();
  }

  /** The trace for https://ui.perfetto.dev, as a JSON string. */
  exportPerfetto() { return JSON.stringify(chromeTrace(this.#trace.lines())); }

  /** The trace as JSON lines, to be loaded again. */
  exportTrace() { return this.#trace.lines().map((line) => `${JSON.stringify(line)}\n`).join(""); }

  // --- state ---------------------------------------------------------------------------------------------------------

  #begin(trace) {
    this.#trace = trace;
    this.#position = -1;
    this.#told = -1;
    this.#selected = this.#hovered = null;
    this.#redraw();
  }

  async #fetch(src) {
    this.#status("connecting", "Loading.");
    try {
      const response = await fetch(src);
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      const text = await response.text();
      if (this.getAttribute("src") === src) this.load(text);
    } catch (error) { this.#status("problem", `${src} cannot be loaded: ${error.message}.`); }
  }

  #goto(position) {
    if (position !== this.#position) this.#flashed = performance.now();
    this.#position = position;
    this.#redraw();
  }

  #status(state, text) {
    this.dispatchEvent(new CustomEvent("quire-status", { detail: { state, text }, bubbles: true, composed: true }));
    if (!this.#parts) return;
    this.#parts.status.className = `status ${state}`;
    this.#parts.status.textContent = text;
  }

  #tell(step) {
    const { dropped, steps } = this.#trace;
    const number = dropped + this.#position;
    if (!step || this.#told === number) return;
    // A picture may take longer than a step: what happened in the steps that were passed over is told too.
    const first = this.#told < number ? Math.max(this.#told + 1 - dropped, 0) : this.#position;
    const happened = [...new Set(steps.slice(first, this.#position + 1).flatMap((one) => one.info.happened))];
    this.#told = number;
    const detail = { index: this.#position, time: step.line.t, step: step.line.plan.step, happened };
    this.dispatchEvent(new CustomEvent("quire-step", { detail, bubbles: true, composed: true }));
  }

  // --- the picture ---------------------------------------------------------------------------------------------------

  #redraw() {
    if (!this.#frame && this.#parts) this.#frame = requestAnimationFrame((now) => { this.#frame = 0; this.#tick(now); });
  }

  #tick(now) {
    if (this.#playing && now - this.#played >= 1000 / this.#speed) {
      const steps = Math.max(1, Math.min(8, Math.floor(((now - this.#played) * this.#speed) / 1000)));
      this.#played = now;
      this.#position = Math.min(this.length - 1, this.#position + steps);
      this.#flashed = now;
      if (this.#position >= this.length - 1) { this.#playing = false; this.#following = Boolean(this.#stop); this.#buttons(); }
    }
    this.#show(now);
    if (this.#playing) this.#redraw();
  }

  #show(now = performance.now()) {
    const { views, empty, says, about, range, where } = this.#parts;
    const trace = this.#trace;
    const known = Boolean(trace.header);
    empty.hidden = known;
    about.hidden = !known;
    views.hidden = this.#parts.legend.hidden = !known;
    range.max = Math.max(0, this.length - 1);
    range.disabled = !this.length;
    if (!known) { says.textContent = ""; where.textContent = ""; this.#buttons(); return; }
    if (this.#position < 0 && this.length) this.#position = this.length - 1;
    const scene = this.#scene(now);
    const { step } = scene;
    const text = step ? sentence(step, scene.nameOf) : "No step yet: the engine is idle.";
    says.textContent = text;
    this.#speak(text, now);
    range.value = Math.max(0, this.#position);
    range.setAttribute("aria-valuetext", text);
    where.textContent = step ? `${this.#position + 1} / ${this.length} · ${duration(step.line.t)}` : "";
    if (this.#drafting !== trace.tried.length > 0) {
      this.#drafting = !this.#drafting;
      this.#describe(this.#views.map((one) => one.name));
    }
    const drafts = trace.tried.length > 0 || (this.getAttribute("views") ?? "").includes("speculation");
    for (const { name, view, card, figure } of this.#views) {
      if (name === "speculation") card.hidden = !drafts;
      if (name === "prefix") card.classList.toggle("alone", !drafts || !this.#views.some((one) => one.name === "speculation"));
      if (card.hidden) continue;
      const style = card.clientWidth - 24;
      if (style > 20) view.draw(scene, style);
      figure.textContent = view.figure;
    }
    about.textContent = this.#hoverText(scene);
    this.#arrows(scene);
    this.#buttons();
    this.#tell(step);
    if (scene.flash > 0 && step?.info.copies.length) this.#redraw();
  }

  /** All that the views need to draw one moment. */
  #scene(now) {
    const trace = this.#trace;
    const index = this.#position;
    const state = trace.stateAt(index);
    const colors = this.#colors;
    const tableOf = (id) => { const seq = state.seqs.get(id); return seq && seq.row >= 0 ? state.tables.get(seq.row) : undefined; };
    const colorOf = (id, known) => {
      const seq = known ?? state.seqs.get(id) ?? trace.lanes.get(id);
      return seq ? colors.owner(trace.numbers.get(seq.request) ?? 0, seq.stream) : colors.cachedInk;
    };
    const flash = this.#still.matches ? 0 : Math.max(0, 1 - (now - this.#flashed) / FLASH);
    const selected = this.#selected !== null && (state.seqs.has(this.#selected) || String(this.#selected).startsWith("waiting:")) ? this.#selected : null;
    const hovered = state.seqs.has(this.#hovered?.seq) ? this.#hovered.seq : null;
    return {
      trace, index, state, colors, tableOf, colorOf, flash, selected, active: hovered ?? (state.seqs.has(selected) ? selected : null),
      step: index >= 0 ? trace.steps[index] : null, following: this.#following && Boolean(this.#stop),
      occupancy: state.occupancy(trace.numBlocks, trace.blockSize),
      nameOf: (id) => trace.names.get(id) ?? trace.lanes.get(id)?.name ?? `sequence ${id}`,
      requestName: shortName,
    };
  }

  #hoverText(scene) {
    const block = this.#hovered?.block ?? -1;
    if (block === 0) return "Block 0 is the null block: padding is read and written there, and it is never handed out.";
    if (block > 0 && block < this.#trace.numBlocks) {
      const holders = [...scene.state.tables].filter(([, blocks]) => blocks.includes(block)).map(([row]) => scene.nameOf(scene.state.rows.get(row)));
      const cached = scene.state.cache.has(block) ? ", in the prefix cache" : "";
      if (!holders.length) return `Block ${block}: free${cached ? `${cached}: what it holds can still be found` : ""}.`;
      const who = holders.length > 4 ? `${holders.length} sequences` : holders.join(", ");
      return `Block ${block}: held by ${who}; ${scene.occupancy.slots[block]} of ${this.#trace.blockSize} slots used${cached}.`;
    }
    const seq = scene.state.seqs.get(scene.active);
    if (!seq) return "";
    const cached = seq.cached ? `, ${seq.cached} of them found in the cache` : "";
    return `${seq.name}: ${seq.status}, prompt of ${seq.promptLen} tokens${cached}, ${seq.computed} positions with K/V in ${(scene.tableOf(seq.id) ?? []).length} blocks.`;
  }

  /** From each entry of the chosen sequence's block table to the cell of that block. */
  #arrows(scene) {
    const { arrows, views } = this.#parts;
    const map = this.#views.find((one) => one.name === "blocks" && !one.card.hidden);
    const tables = this.#views.find((one) => one.name === "tables" && !one.card.hidden);
    const paths = [];
    if (map && tables && scene.active !== null) {
      const origin = views.getBoundingClientRect();
      const from = tables.view.element.getBoundingClientRect();
      const to = map.view.canvas.getBoundingClientRect();
      const beside = from.right < to.left + 8;
      for (const chip of tables.view.chipPlaces(scene.active).slice(0, 48)) {
        const cell = map.view.place(chip.block);
        const half = (beside ? 1 : -1) * 8;
        const [x1, y1] = [from.left - origin.left + chip.x, from.top - origin.top + chip.y + half];
        const [x2, y2] = [to.left - origin.left + cell.x, to.top - origin.top + cell.y + cell.size / 2];
        const sag = 26 + (x2 - x1) * 0.06; // beside each other they hang like cables, below what they connect
        const bend = beside ? [x1 + 8, y1 + sag, x2 - 4, y2 + sag] : [x1, y1 - (y1 - y2) * 0.5, x2, y2 + (y1 - y2) * 0.5];
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("d", `M${x1} ${y1}C${bend.join(" ")} ${x2} ${y2}`);
        path.setAttribute("stroke", scene.colors.ink);
        path.setAttribute("marker-end", "url(#tip)");
        paths.push(path);
      }
    }
    arrows.querySelector("marker path").setAttribute("fill", scene.colors.ink);
    arrows.querySelector("g").replaceChildren(...paths);
  }

  #speak(text, now) {
    if (this.#playing || this.#following) {
      if (now - this.#spoken < SPOKEN_EVERY) return;
      this.#spoken = now;
    }
    if (this.#parts.spoken.textContent !== text) this.#parts.spoken.textContent = text;
  }

  #buttons() {
    if (!this.#parts) return;
    const { play, first, back, forward, last, save, perfetto } = this.#parts;
    const running = this.#playing || (this.#following && Boolean(this.#stop));
    for (const button of [play, first, back, forward, last, save, perfetto]) button.disabled = !this.length;
    const label = running ? "Pause" : "Play";
    if (play.getAttribute("aria-label") !== label) {
      play.setAttribute("aria-label", label);
      play.title = `${label} (space)`;
      play.querySelector("path").setAttribute("d", running ? ICONS.pause : ICONS.play);
    }
  }

  // --- what it is made of --------------------------------------------------------------------------------------------

  #build() {
    const root = this.attachShadow({ mode: "open" });
    const button = (name, label, act) => {
      const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      icon.setAttribute("viewBox", "0 0 16 16");
      icon.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", ICONS[name]);
      icon.append(path);
      return el("button", { class: `icon${name === "play" ? " main" : ""}`, type: "button", "aria-label": label, title: label, onclick: act }, icon);
    };
    const first = button("first", "First step (Home)", () => this.seek(0));
    const back = button("back", "One step back (Left)", () => this.step(-1));
    const play = button("play", "Play", () => this.#toggle());
    const forward = button("forward", "One step on (Right)", () => this.step(1));
    const last = button("last", "Last step (End)", () => this.seek(this.length - 1));
    const range = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step", oninput: () => this.seek(Number(range.value)) });
    const where = el("span", { class: "where" });
    const speed = el("select", { "aria-label": "Speed", title: "Speed", onchange: () => { this.#speed = Number(speed.value); } },
      ...SPEEDS.map((n) => el("option", { value: n, textContent: `${n} steps/s`, selected: n === this.#speed })));
    const file = el("input", { type: "file", class: "unseen", accept: ".jsonl,.json,.txt", tabIndex: -1, "aria-label": "A recorded trace", onchange: () => this.#open(file.files[0]) });
    const opener = el("button", { class: "plain", type: "button", title: "Open a recorded trace (steps.jsonl), or drop it here", textContent: "Open…", onclick: () => file.click() });
    const save = el("button", { class: "plain", type: "button", title: "Save this trace, to be opened again", textContent: "Save", onclick: () => this.#download("steps.jsonl", this.exportTrace()) });
    const perfetto = el("button", { class: "plain", type: "button", title: "Save for ui.perfetto.dev", textContent: "Perfetto", onclick: () => this.#download("steps.trace.json", this.exportPerfetto()) });
    const status = el("span", { class: "status", role: "status" });
    const says = el("p", { class: "says" });
    const spoken = el("div", { class: "unseen", "aria-live": "polite", "aria-atomic": "true" });
    const empty = el("div", { class: "empty", textContent: "Open a recorded trace (steps.jsonl), drop one here, or connect to a server." });
    const arrows = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    arrows.setAttribute("class", "arrows");
    arrows.setAttribute("aria-hidden", "true");
    const marker = document.createElementNS("http://www.w3.org/2000/svg", "marker");
    for (const [name, value] of Object.entries({ id: "tip", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" })) marker.setAttribute(name, value);
    const tip = document.createElementNS("http://www.w3.org/2000/svg", "path");
    tip.setAttribute("d", "M0 1l7 3-7 3z");
    marker.append(tip);
    arrows.append(marker, document.createElementNS("http://www.w3.org/2000/svg", "g"));
    const views = el("div", { class: "views" });
    const legend = el("ul", { class: "legend", "aria-label": "Legend" });
    const about = el("div", { class: "about", "aria-live": "off" });
    const frame = el("div", { class: "frame", role: "region", "aria-label": "Trace of the engine" },
      el("div", { class: "bar" },
        el("div", { class: "buttons", role: "group", "aria-label": "Playback" }, first, back, play, forward, last),
        el("div", { class: "scrub" }, range, where), speed, opener, save, perfetto, file, status),
      says, about, empty, views, el("div", { class: "unseen" }, spoken), legend);
    this.#parts = { root, frame, first, back, play, forward, last, range, where, save, perfetto, status, says, spoken, empty, views, arrows, legend, about };
    root.append(el("style", { textContent: STYLE }), frame);
    this.#choose();
    frame.addEventListener("keydown", (event) => this.#key(event));
    this.#dropping(frame);
  }

  /** Make the cards of the chosen views, in their usual order. */
  #choose() {
    const { views, arrows } = this.#parts;
    const wanted = (this.getAttribute("views") ?? "").split(/\s+/).filter((name) => name in VIEWS);
    const names = Object.keys(VIEWS).filter((name) => !wanted.length || wanted.includes(name));
    const events = {
      seek: (i) => this.seek(i),
      redraw: () => this.#redraw(),
      hover: (seq) => { if (this.#hovered?.seq !== seq) { this.#hovered = seq === null ? null : { seq }; this.#redraw(); } },
      hoverBlock: (block) => { if ((this.#hovered?.block ?? -1) !== block) { this.#hovered = block < 0 ? null : { block, seq: this.#holder(block) }; this.#redraw(); } },
      pickBlock: (block) => events.select(this.#holder(block), true),
      select: (seq, toggle) => { this.#selected = toggle && seq === this.#selected ? null : seq; this.#redraw(); },
    };
    const pairs = [["blocks", "tables"], ["speculation", "prefix"]];
    this.#views = names.map((name) => {
      const view = new VIEWS[name](events);
      const figure = el("p");
      const alone = pairs.some((pair) => pair.includes(name) && !pair.every((one) => names.includes(one)));
      const card = el("section", { class: `view ${name === "speculation" ? "speculation-view" : name}${alone ? " alone" : ""}`, "aria-label": view.title },
        el("header", {}, el("h3", { textContent: view.title }), figure), view.element);
      return { name, view, card, figure };
    });
    views.replaceChildren(...this.#views.map(({ card }) => card), arrows);
    this.#describe(names);
    this.#redraw();
  }

  #holder(block) {
    if (block < 1 || !this.length) return null;
    const state = this.#trace.stateAt(this.#position);
    for (const [row, blocks] of state.tables) if (blocks.includes(block)) return state.rows.get(row) ?? null;
    return null;
  }

  /** The legend, of what the chosen views show. */
  #describe(names) {
    const colors = this.#colors;
    if (!colors) return;
    const [a, b] = [colors.owner(0), colors.owner(1)];
    const has = (...any) => any.some((name) => names.includes(name));
    const striped = `repeating-linear-gradient(135deg, ${a} 0 3px, ${colors.card} 3px 4.5px)`;
    const entries = [
      [has("blocks", "tables", "schedule"), `linear-gradient(90deg, ${a} 50%, ${b} 50%)`, "a request's colour"],
      [has("blocks", "tables", "prefix"), striped, "shared"],
      [has("blocks", "prefix", "usage"), colors.cached, "free, still cached"],
      [has("blocks"), colors.free, "free"],
      [has("blocks"), `${colors.free}; box-shadow: inset 0 0 0 1.5px ${colors.ink}`, "new in this step"],
      [has("blocks"), `${colors.free}; box-shadow: inset 0 0 0 2px ${colors.warn}`, "copied on write"],
      [has("schedule"), `linear-gradient(${colors.ink}8c, ${colors.ink}8c), ${a}`, "prompt chunk"],
      [has("schedule"), `linear-gradient(transparent 25%, ${a} 25% 75%, transparent 75%)`, "decode"],
      [has("schedule"), `repeating-linear-gradient(90deg, ${colors.warn} 0 4px, transparent 4px 6px) center / 100% 2px no-repeat`, "preempted"],
      [has("usage"), colors.accent, "slots in use"],
      [has("usage"), colors.warn, "reserved, unused"],
      [this.#trace.tried.length > 0, colors.good, "draft accepted"],
      [this.#trace.tried.length > 0, colors.warn, "draft rejected"],
    ];
    this.#parts.legend.replaceChildren(...entries.filter(([shown]) => shown).map(([, look, words]) => {
      const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.cssText = `background: ${look}`;
      return el("li", {}, swatch, words);
    }));
  }


  #restyle() {
    const asked = this.getAttribute("theme");
    const name = asked === "light" || asked === "dark" ? asked : this.#dark.matches ? "dark" : "light";
    this.#colors = palette(name);
    if (!this.#parts) return;
    for (const key of ["bg", "card", "ink", "muted", "line", "grid", "cached", "accent", "warn", "good"]) this.style.setProperty(`--${key}`, this.#colors[key]);
    this.style.colorScheme = name;
    this.#describe(this.#views.map((one) => one.name));
    this.#redraw();
  }

  #toggle() {
    if (this.#playing || (this.#following && this.#stop)) this.pause();
    else this.play();
  }

  #key(event) {
    const target = event.composedPath()[0];
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (target instanceof HTMLSelectElement) return;
    if (event.key === " " && target instanceof HTMLButtonElement) return; // presses that button
    const act = {
      " ": () => this.#toggle(), ArrowLeft: () => this.step(event.shiftKey ? -10 : -1), ArrowRight: () => this.step(event.shiftKey ? 10 : 1),
      Home: () => this.seek(0), End: () => this.seek(this.length - 1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  async #open(file) {
    if (file) this.load(await file.text());
  }

  #dropping(frame) {
    frame.addEventListener("dragover", (event) => { event.preventDefault(); frame.classList.add("dropping"); });
    frame.addEventListener("dragleave", (event) => { if (!frame.contains(event.relatedTarget)) frame.classList.remove("dropping"); });
    frame.addEventListener("drop", (event) => {
      event.preventDefault();
      frame.classList.remove("dropping");
      this.#open(event.dataTransfer.files[0]);
    });
  }

  #download(name, text) {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

if (!customElements.get("quire-trace")) customElements.define("quire-trace", QuireTrace);
