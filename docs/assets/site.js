// <quire-trace> on the site's pages, in the colours that the reader has chosen.
import "./quire-trace.js";

const follow = () => {
  const theme = document.body.dataset.mdColorScheme === "slate" ? "dark" : "light";
  for (const trace of document.querySelectorAll("quire-trace")) trace.setAttribute("theme", theme);
};
// A page may name the step that it opens at: <quire-trace data-step="12" …>.
document.addEventListener("quire-status", ({ target, detail }) => {
  if (detail.state === "loaded" && target.dataset.step) target.seek(Number(target.dataset.step));
});
follow();
new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
