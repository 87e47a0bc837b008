// The physical block map: one cell for each KV block, in the order of their numbers.
//
// A cell is filled as far as its slots hold K/V, in the colour of its holder; hatched if several hold it; grey if it is
// free but cached. What a step copied on write flashes, and an arc leads from the source to the copy.

import { FONT, el, fit, hatch } from "./colors.js";

const LARGEST = 34;
const TALLEST = 330;
const FEW = 256; // blocks that are always drawn; of more, those up to the last one that was ever used, and some

export class BlockMap {
  constructor(events) {
    this.canvas = el("canvas", { role: "img" });
    this.title = "Physical blocks";
    this.figure = "";
    this.element = this.canvas;
    this.cells = { size: 0, columns: 1, gap: 0, shown: 0 };
    const at = (event) => this.#blockAt(event.offsetX, event.offsetY);
    this.canvas.addEventListener("pointermove", (event) => events.hoverBlock(at(event)));
    this.canvas.addEventListener("pointerleave", () => events.hoverBlock(-1));
    this.canvas.addEventListener("click", (event) => events.pickBlock(at(event)));
  }

  /** Where a block's cell is, in the canvas' own coordinates: its centre and size. */
  place(block) {
    const { size, columns, gap } = this.cells;
    return { x: (block % columns) * size + (size - gap) / 2, y: Math.floor(block / columns) * size + (size - gap) / 2, size: size - gap };
  }

  draw(scene, width) {
    const { trace, occupancy, colors, step } = scene;
    let n = FEW;
    while (n <= trace.highest) n *= 2;
    n = Math.min(n, trace.numBlocks);
    let size = LARGEST;
    const most = Math.min(TALLEST, Math.max(180, width * 0.6));
    while (size > 2 && Math.ceil(n / Math.max(1, Math.floor(width / size))) * size > most) size -= size > 12 ? 1 : 0.5;
    const columns = Math.max(1, Math.floor(width / size));
    const gap = size >= 14 ? 3 : size >= 8 ? 2 : size >= 5 ? 1 : 0;
    this.cells = { size, columns, gap, shown: n };
    const context = fit(this.canvas, width, Math.max(1, Math.ceil(n / columns)) * size);
    const side = size - gap;
    const radius = size >= 14 ? 3 : 0;
    const active = scene.active;
    const mine = new Map();
    if (active !== null) (scene.tableOf(active) ?? []).forEach((block, i) => mine.set(block, i));
    const dim = active !== null;
    const shared = [];
    if (!gap) { // tens of thousands of cells: the free ones in one go
      context.globalAlpha = dim ? 0.28 : 1;
      context.fillStyle = colors.free;
      context.fillRect(0, 0, columns * size, Math.floor(n / columns) * size);
      context.fillRect(0, Math.floor(n / columns) * size, (n % columns) * size, size);
    }
    for (let block = 0; block < n; block++) {
      if (!gap && !occupancy.refs[block] && !scene.state.cache.has(block)) continue;
      const x = (block % columns) * size;
      const y = Math.floor(block / columns) * size;
      const refs = occupancy.refs[block];
      context.globalAlpha = dim && !mine.has(block) ? 0.28 : 1;
      if (block === 0) {
        context.fillStyle = colors.grid;
        box(context, x, y, side, side, radius);
        if (side > 6) cross(context, x, y, side, colors.cachedInk);
      } else if (refs) {
        const color = scene.colorOf(occupancy.first[block]);
        const full = occupancy.slots[block] / trace.blockSize;
        if (side >= 6 && full < 1) {
          context.fillStyle = colors.free;
          box(context, x, y, side, side, radius);
          context.globalAlpha *= 0.3;
          context.fillStyle = color;
          box(context, x, y, side, side, radius);
          context.globalAlpha = dim && !mine.has(block) ? 0.28 : 1;
          const height = Math.max(full > 0 ? 2 : 0, Math.round(side * full));
          box(context, x, y + side - height, side, height, Math.min(radius, height / 2));
        } else {
          context.fillStyle = color;
          box(context, x, y, side, side, radius);
        }
        if (refs > 1) shared.push(block);
      } else {
        context.fillStyle = scene.state.cache.has(block) ? colors.cached : colors.free;
        box(context, x, y, side, side, radius);
      }
    }
    context.globalAlpha = 1;
    this.#hatching(context, shared, scene, side, mine, dim);
    if (size >= 18) this.#numbers(context, scene, side, mine, dim);
    if (step) this.#changes(context, scene, side, radius);
    const total = Math.max(0, trace.numBlocks - 1);
    this.figure = `${occupancy.held} of ${total.toLocaleString("en")} in use${shared.length ? `, ${shared.length} shared` : ""}${occupancy.cachedFree ? `, ${occupancy.cachedFree} free but cached` : ""}${n < trace.numBlocks ? `; ${(trace.numBlocks - n).toLocaleString("en")} more, never used` : ""}`;
    this.canvas.setAttribute("aria-label", `Map of the physical KV blocks: ${this.figure}.`);
  }

  #hatching(context, shared, scene, side, mine, dim) {
    context.lineWidth = Math.max(1, side * 0.11);
    context.lineCap = "butt";
    const { size, columns } = this.cells;
    const byColor = new Map();
    for (const block of shared) {
      const first = scene.colorOf(scene.occupancy.first[block]);
      const second = scene.colorOf(scene.occupancy.second[block]);
      const color = first === second || side < 7 ? scene.colors.card : second;
      if (!byColor.has(color)) byColor.set(color, []);
      byColor.get(color).push(block);
    }
    for (const [color, blocks] of byColor) {
      for (const lit of [true, false]) {
        context.beginPath();
        for (const block of blocks) {
          if ((!dim || mine.has(block)) === lit) hatch(context, (block % columns) * size, Math.floor(block / columns) * size, side);
        }
        context.globalAlpha = lit ? 0.9 : 0.28;
        context.strokeStyle = color;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }

  /** In large cells: which part of the sequence a block is for the one looked at, else how many hold it. */
  #numbers(context, scene, side, mine, dim) {
    const { size, columns } = this.cells;
    context.font = `600 ${Math.min(12, side * 0.42)}px ${FONT}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let block = 1; block < this.cells.shown; block++) {
      const text = dim ? mine.get(block) : scene.occupancy.refs[block] > 1 ? `×${scene.occupancy.refs[block]}` : undefined;
      if (text === undefined) continue;
      const x = (block % columns) * size + side / 2;
      const y = Math.floor(block / columns) * size + side / 2 + 0.5;
      context.lineWidth = 4;
      context.strokeStyle = scene.colorOf(scene.occupancy.first[block]);
      context.lineJoin = "round";
      if (scene.occupancy.refs[block] > 1) context.strokeText(text, x, y);
      const dark = scene.occupancy.refs[block] > 1 || scene.occupancy.slots[block] * 2 > scene.trace.blockSize;
      context.fillStyle = dark ? scene.colors.onColor : scene.colors.ink;
      context.fillText(text, x, y);
    }
  }

  /** Rings around blocks that are new in this step, and the copies on write. */
  #changes(context, scene, side, radius) {
    const { info } = scene.step;
    const { size, columns } = this.cells;
    const ring = (block, color, width) => {
      const x = (block % columns) * size;
      const y = Math.floor(block / columns) * size;
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      context.roundRect(x + width / 2, y + width / 2, side - width, side - width, radius);
      context.stroke();
    };
    if (side >= 5) {
      for (const share of info.shares) for (const block of share.fresh) ring(block, scene.colors.ink, side >= 14 ? 1.5 : 1);
    }
    for (const [src, dst] of info.copies) {
      const from = this.place(src);
      const to = this.place(dst);
      ring(dst, scene.colors.warn, Math.max(1.5, side * 0.1));
      if (scene.flash > 0) {
        context.globalAlpha = 0.55 * scene.flash;
        context.fillStyle = scene.colors.warn;
        box(context, to.x - side / 2 - 2, to.y - side / 2 - 2, side + 4, side + 4, radius + 2);
        context.globalAlpha = 1;
      }
      if (info.copies.length > 12 || side < 7) continue;
      context.strokeStyle = scene.colors.warn;
      context.lineWidth = 1.5;
      context.setLineDash([3, 2]);
      context.beginPath();
      context.moveTo(from.x, from.y);
      const lift = Math.min(40, 12 + Math.hypot(to.x - from.x, to.y - from.y) / 4);
      const above = Math.min(from.y, to.y) - lift; // where there is room, else below
      context.quadraticCurveTo((from.x + to.x) / 2, above > 0 ? above : Math.max(from.y, to.y) + lift, to.x, to.y);
      context.stroke();
      context.setLineDash([]);
    }
  }

  #blockAt(x, y) {
    const { size, columns, shown } = this.cells;
    const column = Math.floor(x / size);
    const block = Math.floor(y / size) * columns + column;
    return size && column < columns && block < shown ? block : -1;
  }
}

function box(context, x, y, width, height, radius) {
  if (!radius) { context.fillRect(x, y, width, height); return; }
  context.beginPath();
  context.roundRect(x, y, width, height, radius);
  context.fill();
}

function cross(context, x, y, side, color) {
  const inset = side * 0.32;
  context.strokeStyle = color;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x + inset, y + inset);
  context.lineTo(x + side - inset, y + side - inset);
  context.moveTo(x + side - inset, y + inset);
  context.lineTo(x + inset, y + side - inset);
  context.stroke();
}
