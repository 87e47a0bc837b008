// Server-sent events over fetch, so that a key can go along in a header. Comes back by itself when the line breaks.

const PAUSES = [500, 1000, 2000, 5000]; // milliseconds before each attempt to connect again; the last one repeats

/**
 * Listen to ``url``. ``on.line(object)`` gets what each event holds; ``on.status(state, text)`` is told "connecting",
 * "live", "waiting" (it will try again) or "refused" (it will not: the server said why). Returns a function that ends it.
 */
export function listen(url, headers, on) {
  const abort = new AbortController();
  let attempt = 0;
  const run = async () => {
    while (!abort.signal.aborted) {
      on.status("connecting", "Connecting to the server.");
      let why = "The server has ended the stream.";
      try {
        const response = await fetch(url, { headers: { ...headers, Accept: "text/event-stream" }, signal: abort.signal, cache: "no-store" });
        if (response.ok) {
          await read(response.body.getReader(), (line) => {
            if (attempt >= 0) on.status("live", "Live.");
            attempt = -1;
            on.line(line);
          });
        } else if (response.status < 500 && response.status !== 429) {
          on.status("refused", await refusal(response));
          return;
        } else why = await refusal(response);
      } catch (error) {
        if (abort.signal.aborted) return;
        why = error instanceof TypeError ? "The server cannot be reached." : String(error.message ?? error);
        if (error.fatal) { on.status("refused", why); return; }
      }
      if (abort.signal.aborted) return;
      attempt = Math.min(Math.max(attempt, 0) + 1, PAUSES.length);
      on.status("waiting", `${why} Trying again.`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, PAUSES[attempt - 1]);
        abort.signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
      });
    }
  };
  run();
  return () => abort.abort();
}

/** Split a stream of bytes into the objects of its events. */
async function read(reader, take) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) take(JSON.parse(line.slice(5)));
  }
}

async function refusal(response) {
  const text = await response.text();
  try { return JSON.parse(text).error.message; } catch { return `The server answered ${response.status}.`; }
}
