// Texts that are longer than the model's context: chunks by tokens at a reader's borders, then a map and a reduce.

import { complete, count } from "./api.js";

const MARGIN = 48; // tokens of a chat template around a prompt, and of what tokenises otherwise inside it
const SLACK = 64; // tokens: a rewriting may be twice its chunk and so many, and ends there if it goes round in circles
const BORDERS = [/\n[ \t]*\n\s*/g, /\n\s*/g, /[.!?…]["')\]]*\s+|[。！？]/g, /\s+/g];
const SUMMARY = {
  whole: "Summarize the following text in a few sentences.",
  part: "Summarize the following part of a longer text in a few sentences.",
  merge: "The following are summaries of the parts of one text, in order. Summarize the whole text in a few sentences.",
};
const TONES = {
  professional: "in a professional, polite tone",
  friendly: "in a warm, friendly tone",
  concise: "as concisely as possible",
  simple: "in plain, simple words",
};

// Chunks of at most `budget` tokens, which join to `text`.
async function split(text, budget, signal) {
  const chunks = [];
  let rate = text.length / Math.max(1, await count(text, signal));
  for (let start = 0; start < text.length;) {
    let end = Math.min(text.length, start + Math.max(1, Math.floor(budget * rate)));
    for (;;) {
      if (end < text.length) end = border(text, start, end);
      const tokens = await count(text.slice(start, end), signal);
      if (tokens <= budget || end - start <= 1) break;
      end = start + Math.max(1, Math.floor((end - start) * Math.min(0.95, budget / tokens)));
    }
    chunks.push(text.slice(start, end));
    rate = Math.max(rate, 0.25);
    start = end;
  }
  return chunks;
}

// The last strongest border in the second half of a chunk, else anywhere in it, else where it is full, but not inside a
// character of two code units: half of one cannot be sent.
function border(text, start, end) {
  const part = text.slice(start, end);
  for (const least of [part.length / 2, 0]) {
    for (const pattern of BORDERS) {
      const found = [...part.matchAll(pattern)].map((match) => match.index + match[0].length).filter((at) => at > least);
      if (found.length) return start + found.at(-1);
    }
  }
  return /[\uD800-\uDBFF]/.test(text[end - 1]) && end - 1 > start ? end - 1 : end;
}

const ask = (instruction, text, most, on, signal) => complete(
  { messages: [{ role: "user", content: `${instruction}\n\n${text}` }], max_tokens: most, temperature: 0 }, on, signal,
);

// Summarises; `show.plan(line)` is told before each part of the work, `show.text(piece)` the last summary.
export async function summarise(text, context, show, signal) {
  const most = Math.min(256, Math.floor(context / 4));
  const wording = Math.max(...await Promise.all(Object.values(SUMMARY).map((each) => count(each, signal))));
  const budget = context - most - wording - MARGIN;
  const together = Math.floor(budget / (most + 2));
  const tokens = await count(text, signal);
  if (tokens <= budget) {
    show.plan(`${tokens} tokens, a context of ${context}: one pass`);
    return ask(SUMMARY.whole, text, most, show, signal);
  }
  if (together < 2) throw new Error(`a context of ${context} tokens is too small to bring summaries together`);
  let texts = await split(text, budget, signal);
  const levels = [texts.length];
  while (levels.at(-1) > 1) levels.push(Math.ceil(levels.at(-1) / together));
  const all = levels.reduce((sum, each) => sum + each, 0);
  show.plan(`${tokens} tokens, a context of ${context}: ${texts.length} chunks of at most ${budget} tokens, `
    + `at most ${all} generations in ${levels.length} levels`);
  for (let level = 1; texts.length > 1; level += 1) {
    const summaries = [];
    for (const [index, each] of texts.entries()) {
      const said = await ask(level === 1 ? SUMMARY.part : SUMMARY.merge, each, most, {}, signal);
      summaries.push(said.text.trim());
      show.plan(`level ${level}: ${index + 1} of ${texts.length}`, index > 0);
    }
    texts = groups(summaries, together);
  }
  show.plan("bringing them together");
  return ask(SUMMARY.merge, texts[0], most, show, signal);
}

function groups(texts, size) {
  const found = [];
  for (let at = 0; at < texts.length; at += size) found.push(texts.slice(at, at + size).join("\n\n"));
  return found;
}

// Rewrites chunk by chunk; white space between the chunks stays as it was.
export async function rewrite(text, tone, context, show, signal) {
  const manner = TONES[tone] ?? `in this tone: ${tone}`;
  const instruction = `Rewrite the following text ${manner}. Keep its meaning. Answer with the rewritten text alone.`;
  const room = context - await count(instruction, signal) - MARGIN;
  const budget = Math.floor(room * 0.4);
  if (budget < 8) throw new Error(`a context of ${context} tokens leaves no room for text`);
  const chunks = await split(text, budget, signal);
  show.plan(`a context of ${context}: ${chunks.length} chunks of at most ${budget} tokens`);
  const cut = [];
  for (const [index, chunk] of chunks.entries()) {
    const body = chunk.trim();
    if (body) {
      const most = Math.min(room - budget, 2 * await count(body, signal) + SLACK);
      const done = await ask(instruction, body, most, show, signal);
      if (done.finish === "length") cut.push(index + 1);
      show.text(chunk.slice(chunk.trimEnd().length));
    }
    show.plan(`chunk ${index + 1} of ${chunks.length}`, index > 0);
  }
  return { finish: cut.length ? "length" : "stop", cut };
}
