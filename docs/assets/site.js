// <quire-trace> on the site's pages, and in the notebooks' films, in the colours that the reader has chosen.
import "./quire-trace.js";

const theme = () => (document.body.dataset.mdColorScheme === "slate" ? "dark" : "light");
const follow = () => {
  for (const trace of document.querySelectorAll("quire-trace")) trace.setAttribute("theme", theme());
  document.querySelectorAll("iframe[srcdoc]").forEach(dress);
};

// A notebook's film is a page of its own in a frame: it has its own colours, and its height was a guess.
function dress(frame) {
  const inside = frame.contentDocument;
  const trace = inside?.querySelector("quire-trace");
  if (!trace) return;
  inside.documentElement.style.colorScheme = theme(); // else its background is white
  trace.setAttribute("theme", theme());
  frame.style.height = `${inside.body.scrollHeight}px`;
}
for (const frame of document.querySelectorAll("iframe[srcdoc]")) {
  const watch = () => new ResizeObserver(() => dress(frame)).observe(frame.contentDocument.body);
  if (frame.contentDocument?.querySelector("quire-trace")) watch();
  else frame.addEventListener("load", watch);
}

// A page may name the step that it opens at: <quire-trace data-step="12" …>.
document.addEventListener("quire-status", ({ target, detail }) => {
  if (detail.state === "loaded" && target.dataset.step) target.seek(Number(target.dataset.step));
});
follow();
new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
