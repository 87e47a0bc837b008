// KV cache over time: slots that hold K/V, slots reserved but unused (waste), blocks that are free but cached.

import { FONT, el, fit } from "./colors.js";
import { scrubbing, timeAxis, timeline } from "./schedule.js";

const HEIGHT = 120;
const SCALES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]; // of the pool, at the top of the picture

export class Usage {
  constructor(events) {
    this.title = "KV cache over time";
    this.figure = "";
    this.canvas = el("canvas", { role: "img" });
    this.element = this.canvas;
    scrubbing(this.canvas, this, events);
  }

  draw(scene, width) {
    const { trace, colors } = scene;
    const time = (this.time = timeline(scene, width));
    const context = fit(this.canvas, width, HEIGHT + 22);
    const top = 8;
    const bottom = HEIGHT;
    const size = trace.blockSize;
    const total = Math.max(1, trace.numBlocks - 1) * size;
    const steps = trace.steps.slice(time.from, time.to);
    const most = steps.reduce((n, { info }) => Math.max(n, info.used + info.cachedFree), 0) * size;
    const scale = SCALES.find((share) => share * total >= most) ?? 1;
    const y = (slots) => bottom - (slots / (total * scale)) * (bottom - top);
    context.font = `10px ${FONT}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const share of [0, scale / 2, scale]) {
      context.strokeStyle = colors.grid;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(time.gutter, Math.round(y(share * total)) + 0.5);
      context.lineTo(width - 6, Math.round(y(share * total)) + 0.5);
      context.stroke();
      context.fillStyle = colors.muted;
      context.fillText(`${+(share * 100).toFixed(2)}%`, time.gutter - 8, y(share * total) + (share ? 0 : -3));
    }
    const area = (value, color, alpha) => {
      context.beginPath();
      context.moveTo(time.x(time.from), bottom);
      steps.forEach(({ info }, k) => {
        const level = y(value(info));
        context.lineTo(time.x(time.from + k), level);
        context.lineTo(time.x(time.from + k + 1), level);
      });
      context.lineTo(time.x(time.to), bottom);
      context.globalAlpha = alpha;
      context.fillStyle = color;
      context.fill();
      context.globalAlpha = 1;
    };
    area((info) => (info.used + info.cachedFree) * size, colors.cached, 0.55);
    area((info) => info.used * size, colors.warn, 0.75);
    area((info) => info.slots, colors.card, 1);
    area((info) => info.slots, colors.accent, colors.dark ? 0.75 : 0.8);
    timeAxis(context, scene, time, top - 4, bottom, true);
    const info = scene.step?.info;
    if (info) {
      const used = info.used * size;
      const waste = used ? ((used - info.slots) / used) * 100 : 0;
      this.figure = `${((info.slots / total) * 100).toFixed(0)}% filled, ${waste.toFixed(1)}% of what is reserved is unused`;
    } else this.figure = "";
    this.canvas.setAttribute("aria-label", `Use of the KV cache over steps ${time.from} to ${time.to - 1}: now ${this.figure}.`);
  }
}
