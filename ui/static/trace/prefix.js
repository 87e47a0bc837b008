// The prefix cache as a tree: from left to right the blocks of a prefix, one below the other what it goes on with.

import { FONT, MONO, el, fit, hatch } from "./colors.js";

const TALL = 250;

export class PrefixTree {
  constructor() {
    this.title = "Prefix cache";
    this.figure = "";
    this.canvas = el("canvas", { role: "img" });
    this.element = this.canvas;
  }

  draw(scene, width) {
    const { colors, state, occupancy } = scene;
    const { nodes, leaves, depth } = layout(state.cache);
    const row = Math.max(2, Math.min(22, TALL / Math.max(leaves, 1)));
    const column = Math.max(2, Math.min(40, (width - 4) / Math.max(depth, 1)));
    const context = fit(this.canvas, width, Math.max(44, Math.min(leaves * row, TALL * 2)) + 2);
    const gap = column >= 8 && row >= 6 ? 2 : column >= 4 ? 1 : 0;
    const hits = scene.step?.info.hitBlocks ?? new Set();
    for (const node of nodes) {
      const x = node.depth * column;
      const y = node.top * row;
      const [wide, high] = [column - gap, node.span * row - gap];
      const refs = occupancy.refs[node.block];
      const dim = scene.active !== null && !(scene.tableOf(scene.active) ?? []).includes(node.block);
      context.globalAlpha = dim ? 0.3 : 1;
      context.fillStyle = refs ? scene.colorOf(occupancy.first[node.block]) : colors.cached;
      context.fillRect(x, y, wide, high);
      if (refs > 1 && high > 3 && wide > 5) {
        context.save();
        context.beginPath();
        context.rect(x, y, wide, high);
        context.clip();
        context.beginPath();
        for (let top = y; top < y + high; top += wide) hatch(context, x, top, wide);
        context.strokeStyle = colors.card;
        context.lineWidth = 1.3;
        context.globalAlpha = dim ? 0.2 : 0.7;
        context.stroke();
        context.restore();
        context.globalAlpha = dim ? 0.3 : 1;
      }
      if (hits.has(node.block)) {
        context.strokeStyle = colors.ink;
        context.lineWidth = 1.5;
        context.strokeRect(x + 0.75, y + 0.75, wide - 1.5, high - 1.5);
      }
      if (column >= 20 && row >= 11) {
        context.font = `600 10px ${MONO}`;
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.lineJoin = "round";
        context.lineWidth = 4;
        context.strokeStyle = refs ? scene.colorOf(occupancy.first[node.block]) : colors.cached;
        if (refs > 1) context.strokeText(node.block, x + wide / 2, y + high / 2 + 0.5);
        context.fillStyle = refs ? colors.onColor : colors.ink;
        context.fillText(node.block, x + wide / 2, y + high / 2 + 0.5);
      }
    }
    context.globalAlpha = 1;
    if (!nodes.length) {
      context.fillStyle = colors.muted;
      context.font = `13px ${FONT}`;
      context.textBaseline = "middle";
      context.textAlign = "left";
      context.fillText("Nothing is cached: only full blocks are.", 2, 20);
    }
    const { prefix_queries: asked = 0, prefix_hits: found = 0 } = state.stats;
    const share = asked ? `, ${Math.round((found / asked) * 100)}% of prompt tokens found here` : "";
    this.figure = `${state.cache.size} ${state.cache.size === 1 ? "block" : "blocks"}, ${leaves} ${leaves === 1 ? "branch" : "branches"}${share}`;
    this.canvas.setAttribute("aria-label", `Tree of the prefix cache: ${this.figure}.`);
  }
}

/** Places for the cached blocks: depth from the left, rows from the top; a parent spans the rows of its children. */
function layout(cache) {
  const byName = new Map();
  for (const [block, [name]] of cache) byName.set(name, block);
  const children = new Map();
  const roots = [];
  for (const [block, [, parent]] of cache) {
    const above = byName.get(parent);
    if (above === undefined) roots.push(block);
    else if (children.has(above)) children.get(above).push(block);
    else children.set(above, [block]);
  }
  const nodes = [];
  let leaves = 0;
  let depth = 0;
  const stack = roots.reverse().map((block) => [block, 0, null]);
  while (stack.length) { // depth first, without recursion: prefixes may be thousands of blocks long
    const [block, at, above] = stack.pop();
    const node = { block, depth: at, top: leaves, span: 0, above };
    nodes.push(node);
    depth = Math.max(depth, at + 1);
    const below = children.get(block);
    if (below) for (let i = below.length - 1; i >= 0; i--) stack.push([below[i], at + 1, node]);
    else {
      leaves++;
      for (let up = node; up; up = up.above) up.span++;
    }
  }
  return { nodes, leaves, depth };
}
