// Colours of the pictures, light and dark, and how to draw sharply on any screen.
//
// Requests get hues that stand apart; the sequences of one request share its hue and differ in lightness. They are made
// in OKLCH, where equal lightness looks equally light, so that no request shouts.

const HUES = [255, 55, 160, 350, 300, 195, 95, 25, 280, 125, 225, 330];
const LIGHTNESS = [0, 0.09, -0.08, 0.15, -0.14, 0.045, -0.045, 0.12];

const THEMES = {
  light: {
    dark: false, bg: "#ffffff", card: "#ffffff", ink: "#1c2230", muted: "#5c6675", line: "#e2e6eb", grid: "#eef1f4",
    free: "#f2f4f7", cached: "#c3cad3", cachedInk: "#6d7886", accent: "#3355d1", accentSoft: "#b9c6f4", warn: "#c2410c",
    warnSoft: "#f6c9ae", good: "#207a45", goodSoft: "#a9dcbc", onColor: "#10141c",
    base: 0.7, chroma: 0.125,
  },
  dark: {
    dark: true, bg: "#12151b", card: "#181c24", ink: "#e9ecf2", muted: "#9ba5b4", line: "#2b313c", grid: "#222732",
    free: "#20252f", cached: "#4b5564", cachedInk: "#9aa5b5", accent: "#8ea6ff", accentSoft: "#3a4984", warn: "#ff9b66",
    warnSoft: "#6b3a21", good: "#6cd694", goodSoft: "#2a5f40", onColor: "#0c0f14",
    base: 0.68, chroma: 0.12,
  },
};

/** The palette for "light" or "dark"; ``owner(request number, stream)`` is a sequence's colour. */
export function palette(name) {
  const theme = THEMES[name];
  const known = new Map();
  const owner = (number, stream = 0) => {
    const key = number * 64 + (stream % 64);
    if (!known.has(key)) {
      const l = theme.base + LIGHTNESS[stream % LIGHTNESS.length] * (theme.dark ? 0.8 : 1);
      known.set(key, fromOklch(l, theme.chroma, HUES[number % HUES.length]));
    }
    return known.get(key);
  };
  return { ...theme, owner };
}

/** An OKLCH colour as #rrggbb (Ottosson's matrices). */
function fromOklch(l, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const [x, y, z] = [
    (l + 0.3963377774 * a + 0.2158037573 * b) ** 3,
    (l - 0.1055613458 * a - 0.0638541728 * b) ** 3,
    (l - 0.0894841775 * a - 1.291485548 * b) ** 3,
  ];
  const rgb = [
    4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
    -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
    -0.0041960863 * x - 0.7034186147 * y + 1.707614701 * z,
  ];
  return "#" + rgb.map((v) => {
    const gamma = v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055;
    return Math.round(255 * Math.max(0, Math.min(1, gamma))).toString(16).padStart(2, "0");
  }).join("");
}

/** Give a canvas this size in CSS pixels, with as many real ones as the screen has; returns its cleared context. */
export function fit(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

export const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
export const MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

/** An element with properties and children; text goes in as text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Three diagonal strokes across a square: the hatching of what is shared. Added to the current path. */
export function hatch(context, x, y, size, height = size) {
  context.moveTo(x, y + height / 2);
  context.lineTo(x + size / 2, y);
  context.moveTo(x, y + height);
  context.lineTo(x + size, y);
  context.moveTo(x + size / 2, y + height);
  context.lineTo(x + size, y + height / 2);
}
