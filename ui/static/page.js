// What the page does without the server: themes, saving files, feeding the pictures, arrow keys between tokens.
const quirePage = {
  // Switch between light and dark; the choice lasts as long as the tab.
  theme(to) {
    const dark = to ? to === "dark" : !document.body.classList.contains("dark");
    document.body.classList.toggle("dark", dark);
    sessionStorage.setItem("quire-theme", dark ? "dark" : "light");
    this.paint();
  },

  // Tell the pictures which theme the page has.
  paint() {
    const theme = document.body.classList.contains("dark") ? "dark" : "light";
    for (const picture of document.querySelectorAll("quire-trace")) picture.setAttribute("theme", theme);
  },

  // Hand a file to the reader: {name, text}.
  save(file) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], {type: "text/plain"}));
    link.download = file.name;
    link.click();
    URL.revokeObjectURL(link.href);
  },

  // What a button in the conversation asks for; chat.py takes it from here.
  action: null,
  act(action) {
    this.action = action;
    document.getElementById("act").click();
  },

  // Turn a message into a field to change it in.
  edit(button) {
    const turn = button.closest(".turn");
    const said = turn.querySelector(".said");
    const field = document.createElement("textarea");
    field.value = said.textContent;
    field.setAttribute("aria-label", "Change the message");
    const send = (text) => this.act({do: "edit", turn: Number(button.dataset.turn), text});
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && field.value.trim()) send(field.value);
      if (event.key === "Escape") field.replaceWith(said);
      if (["Enter", "Escape"].includes(event.key) && !event.shiftKey) event.preventDefault();
    });
    said.replaceWith(field);
    field.focus();
  },

  picture(id) {
    return document.getElementById(id);
  },

  // A line of text above a picture, read out by screen readers.
  say(id, text) {
    document.getElementById(`${id}-say`).textContent = text;
  },

  // Follow the trace of the server behind the chosen model ("url name"); resolves once its first line is here, or it
  // is known that there will be none, to whether it is followed: whatever is asked of the server then will be seen.
  async watch(id, model, key) {
    if (!model) {
      this.say(id, "No server answers, so there is nothing to watch.");
      return false;
    }
    const url = new URL(`live?server=${encodeURIComponent(model.split(" ")[0])}`, document.baseURI).href;
    const headers = key ? {Authorization: `Bearer ${key}`} : {};
    const refusal = await this.refusal(url, headers);
    this.say(id, refusal);
    if (refusal) return false;
    const picture = this.picture(id);
    picture.disconnect();
    return new Promise((resolve) => {
      picture.addEventListener("quire-status", function told({detail: {state}}) {
        if (state === "connecting") return;
        picture.removeEventListener("quire-status", told);
        resolve(state === "live");
      });
      picture.connect(url, {headers});
    });
  },

  // Why a stream cannot be had, in the server's words; empty if it can.
  async refusal(url, headers) {
    const abort = new AbortController();
    try {
      const response = await fetch(url, {headers, signal: abort.signal});
      if (response.ok) return "";
      return (await response.json()).error.message;
    } catch (error) {
      return `The playground does not answer: ${error.message}`;
    } finally {
      abort.abort();
    }
  },

  leave(id) {
    this.picture(id).disconnect();
  },

  // Show the trace that was recorded of a scenario.
  async recorded(id, name, play) {
    if (!name) return;
    this.leave(id);
    this.reset(id);
    const response = await fetch(new URL(`traces/${name}.jsonl`, document.baseURI));
    if (!response.ok) {
      this.say(id, (await response.json()).error.message);
      return;
    }
    this.picture(id).load(await response.text());
    if (play) this.picture(id).play();
  },

  // Begin a scenario live: the picture follows the trace before the first request is sent.
  async play(name, model, key) {
    this.leave("lab");
    this.reset("lab");
    return this.watch("lab", model, key);
  },

  // Forget what has been said of a scenario.
  reset(id) {
    this.say(id, "");
    if (id !== "lab") return;
    for (const item of document.querySelectorAll("#story .narration li")) item.className = "";
    const views = document.querySelector("#story .narration")?.dataset.views;
    if (views) this.picture("lab").setAttribute("views", views);
  },

  // Light up the sentences whose moment has come: of each moment, the first one that is still to be said.
  tell(moments) {
    const items = [...document.querySelectorAll("#story .narration li")];
    for (const moment of moments) {
      const next = items.find((item) => item.dataset.moment === moment && !item.classList.contains("said"));
      if (!next) continue;
      for (const item of items) item.classList.remove("now");
      next.classList.add("said", "now");
    }
  },
};

document.addEventListener("DOMContentLoaded", () => {
  const theme = sessionStorage.getItem("quire-theme");
  if (theme) quirePage.theme(theme);
  // A conversation grows at its end: stay there, unless the reader has scrolled up.
  let last = true;
  document.addEventListener("scroll", ({target: log}) => {
    if (log.id === "conversation") last = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  }, true);
  new MutationObserver(() => {
    const log = document.getElementById("conversation");
    if (log && last) log.scrollTop = log.scrollHeight;
  }).observe(document.body, {childList: true, subtree: true});
  // The pictures come with the page, later; the theme may also be the system's.
  new MutationObserver(() => quirePage.paint()).observe(document.body, {attributes: true, attributeFilter: ["class"]});
});

document.addEventListener("quire-step", (event) => {
  if (event.target.id === "lab") quirePage.tell(event.detail.happened ?? []);
});

// The buttons in the conversation, and those that copy.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button[data-do]");
  if (!button) return;
  if (button.dataset.do === "edit") quirePage.edit(button);
  else if (button.dataset.do === "copy") {
    const texts = [...button.closest("article, section").querySelectorAll(".said, .call")].map((one) => one.textContent);
    await navigator.clipboard.writeText(texts.join("\n"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } else quirePage.act({do: button.dataset.do, turn: Number(button.dataset.turn)});
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
