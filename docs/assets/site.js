// <quire-trace> on the site's pages, in the colours that the reader has chosen.
import "./quire-trace.js";

const follow = () => {
  const theme = document.body.dataset.mdColorScheme === "slate" ? "dark" : "light";
  for (const trace of document.querySelectorAll("quire-trace")) trace.setAttribute("theme", theme);
};
// It opens in the middle of its story, or at the step that the page names: <quire-trace data-step="12" …>.
document.addEventListener("quire-status", ({ target, detail }) => {
  if (detail.state === "loaded" && !target.hasAttribute("autoplay")) target.seek(Number(target.dataset.step ?? target.length / 2));
});
follow();
new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
