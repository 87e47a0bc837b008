// Speculation: how often the target agreed with the first, second, … draft of a step, and the latest verifications.

import { el } from "./colors.js";

const NS = "http://www.w3.org/2000/svg";
const LATEST = 60;

export class Speculation {
  constructor() {
    this.title = "Speculation";
    this.figure = "";
    this.svg = document.createElementNS(NS, "svg");
    this.svg.setAttribute("role", "img");
    this.element = el("div", { class: "speculation" }, this.svg);
  }

  draw(scene, width) {
    const { colors, trace } = scene;
    const tried = scene.step?.info.tried ?? [];
    const accepted = scene.step?.info.accepted ?? [];
    const parts = [];
    const most = tried.length;
    const bar = 22;
    const label = 74;
    const room = Math.max(60, width - label - 86);
    for (let p = 0; p < most; p++) {
      const y = p * bar + 2;
      const share = accepted[p] / tried[p];
      parts.push(text(0, y + 13, `draft ${p + 1}`, colors.muted, "start"));
      parts.push(rect(label, y + 2, room, bar - 8, colors.warnSoft));
      if (share) parts.push(rect(label, y + 2, room * share, bar - 8, colors.good));
      parts.push(text(label + room + 8, y + 13, `${Math.round(share * 100)}%  (${accepted[p]}/${tried[p]})`, colors.ink, "start"));
    }
    const history = latest(trace, scene.index);
    const cell = Math.min(10, Math.max(4, (width - label) / LATEST));
    const top = most * bar + 12;
    if (most) {
      parts.push(text(0, top + most * cell * 0.5 + 4, "latest", colors.muted, "start"));
      history.forEach((share, k) => {
        for (let p = 0; p < share.drafts; p++) {
          const fill = p < share.accepted ? colors.good : p === share.accepted ? colors.warn : colors.warnSoft;
          parts.push(rect(label + k * cell, top + (most - 1 - p) * cell, cell - 1.5, cell - 1.5, fill));
        }
      });
    } else parts.push(text(0, 18, "No drafts so far.", colors.muted, "start"));
    const height = most ? top + most * cell + 4 : 30;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...parts);
    const drafts = tried.reduce((a, b) => a + b, 0);
    const right = accepted.reduce((a, b) => a + b, 0);
    this.figure = drafts ? `${right} of ${drafts} drafts accepted; ${(1 + right / tried[0]).toFixed(1)} tokens per verification` : "";
    const spoken = accepted.map((n, p) => `draft ${p + 1}: ${n} of ${tried[p]}`).join(", ");
    this.svg.setAttribute("aria-label", drafts ? `Accepted drafts by position: ${spoken}.` : "No drafts so far.");
  }
}

/** The last verifications up to a step, oldest first. */
function latest(trace, index) {
  const found = [];
  for (let i = index; i >= 0 && found.length < LATEST && index - i < 2000; i--) {
    for (const share of trace.steps[i].info.shares) if (share.drafts && found.length < LATEST) found.unshift(share);
  }
  return found;
}

function rect(x, y, width, height, fill) {
  const node = document.createElementNS(NS, "rect");
  for (const [name, value] of Object.entries({ x, y, width: Math.max(0, width), height, fill, rx: 2 })) node.setAttribute(name, value);
  return node;
}

function text(x, y, words, fill, anchor) {
  const node = document.createElementNS(NS, "text");
  for (const [name, value] of Object.entries({ x, y, fill, "text-anchor": anchor, "font-size": 11 })) node.setAttribute(name, value);
  node.textContent = words;
  return node;
}
