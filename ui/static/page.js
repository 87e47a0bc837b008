// What the page does without the server: themes, saving files, and arrow keys between tokens.
const quirePage = {
  // Switch between light and dark; the choice lasts as long as the tab.
  theme(to) {
    const dark = to ? to === "dark" : !document.body.classList.contains("dark");
    document.body.classList.toggle("dark", dark);
    sessionStorage.setItem("quire-theme", dark ? "dark" : "light");
  },
  // Hand a file to the reader: {name, text}.
  save(file) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], {type: "text/plain"}));
    link.download = file.name;
    link.click();
    URL.revokeObjectURL(link.href);
  },
};

document.addEventListener("DOMContentLoaded", () => {
  const theme = sessionStorage.getItem("quire-theme");
  if (theme) quirePage.theme(theme);
});

// One tab stop for all tokens of an answer; the arrow keys lead from one to the next.
document.addEventListener("keydown", (event) => {
  const token = event.target.closest?.(".tokens .tok");
  const way = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (!token || !way) return;
  const all = [...token.parentElement.querySelectorAll(":scope > .tok")];
  const next = all[all.indexOf(token) + way];
  if (next) {
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
  event.preventDefault();
});
