// The step in words: one sentence for people who read, and for those who listen.

const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

/** What happened in a step, as a sentence. ``name`` gives a sequence's name. */
export function sentence(step, name) {
  const { info, line } = step;
  const parts = [];
  const decodes = info.shares.filter((s) => s.kind === "decode").length;
  const prompts = info.shares.filter((s) => s.kind === "prompt");
  const chunks = info.shares.filter((s) => s.kind === "chunk");
  if (decodes) parts.push(plural(decodes, "decode"));
  if (prompts.length === 1) parts.push(`one prompt of ${plural(prompts[0].n, "token")}`);
  else if (prompts.length) parts.push(`${prompts.length} prompts, ${sum(prompts)} tokens`);
  if (chunks.length === 1) parts.push(`one prompt chunk of ${plural(chunks[0].n, "token")}`);
  else if (chunks.length) parts.push(`${chunks.length} prompt chunks, ${sum(chunks)} tokens`);
  if (!parts.length) parts.push("nothing to compute");
  const more = [];
  const drafts = info.shares.reduce((n, s) => n + s.drafts, 0);
  if (drafts) more.push(`${info.shares.reduce((n, s) => n + s.accepted, 0)} of ${plural(drafts, "draft")} accepted`);
  if (info.hits.length) more.push(`${list(info.hits.map(name))} found ${info.hits.length > 1 ? "their prefixes" : "its prefix"} in the cache`);
  if (info.forked.length) more.push(`${plural(info.forked.length, "fork")}`);
  if (info.copies.length) more.push(`${plural(info.copies.length, "block")} copied on write`);
  if (info.preempted.length) more.push(`${list(info.preempted.map(name))} preempted`);
  if (info.resumed.length) more.push(`${list(info.resumed.map(name))} resumed`);
  if (info.swappedOut) more.push(`${plural(info.swappedOut, "block")} swapped out`);
  if (info.swappedIn) more.push(`${plural(info.swappedIn, "block")} swapped in`);
  if (info.evicted.length) more.push(`${plural(info.evicted.length, "cached block")} evicted`);
  if (info.finished.length) more.push(`${list(info.finished.map(([, n]) => n))} finished`);
  if (info.waiting) more.push(`${info.waiting} waiting`);
  return `Step ${line.plan.step}: ${parts.join(", ")}${more.length ? `; ${more.join("; ")}` : ""}.`;
}

const sum = (shares) => shares.reduce((n, s) => n + s.n, 0);

function list(names) {
  if (names.length > 3) return `${names.length} sequences`;
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** Seconds for people: 0.0031 is "3.1 ms". */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  return seconds < 1 ? `${(seconds * 1e3).toFixed(seconds < 0.1 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}
