// The page: four tabs over the API of the server that it came from. Model text is set as text, never as markup.

import { ApiError, complete, model } from "./api.js";
import { rewrite, summarise } from "./long.js";
import { Tree } from "./tree.js";

const $ = (id) => document.getElementById(id);
let served = { name: "", context: 4096 };

async function start() {
  try {
    served = await model();
    $("model").textContent = `${served.name}, context ${served.context.toLocaleString("en")} tokens`;
    $("key").hidden = true;
  } catch (error) {
    $("key").hidden = error.status !== 401;
    $("model").textContent = error.status === 401 ? "locked" : String(error.message);
  }
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-value").value);
  start();
});

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
}

function show(name) {
  for (const panel of document.querySelectorAll("[role=tabpanel]")) panel.hidden = panel.id !== name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", String(tab.getAttribute("aria-controls") === name));
  }
  history.replaceState(null, "", `#${name}`);
}

// Runs `work(signal)` for a form: its button waits, its Stop aborts, an error is a sentence in `place`.
function task(form, place, work) {
  const stop = form.querySelector(".stop");
  const submit = form.querySelector("[type=submit]");
  let running = null;
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    submit.disabled = true;
    stop.hidden = false;
    try {
      await work(running.signal);
    } catch (error) {
      note(place(), error.name === "AbortError" ? "stopped" : String(error.message), "error");
      if (error instanceof ApiError && error.status === 401) start();
    } finally {
      running = null;
      submit.disabled = false;
      stop.hidden = true;
    }
  });
}

function add(place, text, kind) {
  const made = document.createElement("div");
  made.className = kind;
  made.textContent = text;
  place.append(made);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

const note = (place, text, kind = "") => add(place, text, `note ${kind}`);

// chat

let messages = [];
let used = 0; // tokens of the conversation, as the server last counted them

$("chat-new").addEventListener("click", () => {
  $("chat-form").querySelector(".stop").click();
  messages = [];
  used = 0;
  $("chat-log").replaceChildren();
});

$("chat-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("chat-form").requestSubmit();
});

task($("chat-form"), () => $("chat-log"), async (signal) => {
  const log = $("chat-log");
  const said = $("chat-text").value.trim();
  if (!said) return;
  $("chat-text").value = "";
  if (used > served.context * 0.75 && messages.length > 2) {
    const kept = Math.ceil(messages.length / 4) * 2;
    note(log, `the context is almost full: the ${messages.length - kept} oldest messages are dropped`);
    messages = messages.slice(-kept);
  }
  const talk = messages; // New begins another one, and what still comes belongs to this one
  talk.push({ role: "user", content: said });
  add(log, said, "turn user");
  const place = add(log, "", "turn");
  let text = "";
  try {
    const on = { text: (piece) => { text += piece; place.textContent = text; place.scrollIntoView({ block: "end" }); } };
    const done = await complete({ messages: talk, max_tokens: Math.floor(served.context / 4), temperature: 0.7 }, on, signal);
    if (talk !== messages) return;
    used = done.usage?.total_tokens ?? used;
    note(log, told(done));
  } finally {
    // What was said stays in the conversation, also where it was stopped; nothing said takes the question back.
    if (text) talk.push({ role: "assistant", content: text });
    else talk.pop();
  }
});

function told(done) {
  const cut = done.finish === "length" ? ", cut: the limit is reached" : "";
  if (!done.usage) return cut;
  const cached = done.usage.prompt_tokens_details?.cached_tokens ?? 0;
  return `${done.usage.prompt_tokens} prompt tokens, ${cached} of them cached; ${done.usage.completion_tokens} new${cut}`;
}

// summarise and rewrite

function shower(name) {
  const result = $(`${name}-result`);
  const plan = $(`${name}-plan`);
  result.textContent = "";
  plan.replaceChildren();
  return {
    text: (piece) => { result.textContent += piece; },
    plan: (line, again = false) => {
      if (!again || !plan.lastElementChild) plan.append(document.createElement("li"));
      plan.lastElementChild.textContent = line;
    },
  };
}

task($("summarize-form"), () => $("summarize"), async (signal) => {
  const done = await summarise($("summarize-text").value, served.context, shower("summarize"), signal);
  if (done.finish === "length") note($("summarize"), "the summary was cut: the limit is reached");
});

$("summarize-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    $("summarize-text").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    note($("summarize"), `${file.name} is not UTF-8 text`, "error");
  }
});

task($("rewrite-form"), () => $("rewrite"), async (signal) => {
  const tone = $("rewrite-tone").value.trim();
  const done = await rewrite($("rewrite-text").value, tone, served.context, shower("rewrite"), signal);
  if (done.cut.length) note($("rewrite"), `these chunks were cut: ${done.cut.join(", ")}`);
});

// search

task($("search-form"), () => $("search"), async (signal) => {
  const result = $("search-result");
  result.textContent = "";
  $("search-spent").textContent = "";
  const tree = new Tree($("search-tree"));
  const field = { method: $("search-method").value, n: Number($("search-n").value) };
  if ($("search-budget").value) field.budget = Number($("search-budget").value);
  const body = { messages: [{ role: "user", content: $("search-text").value }], search: field };
  await complete(body, {
    text: (piece) => { result.textContent += piece; },
    search: (news) => {
      tree.update(news);
      $("search-spent").textContent = spent(news);
    },
  }, signal);
});

function spent(news) {
  const tokens = `${news.spent?.generated ?? 0} tokens drawn, ${news.spent?.scored ?? 0} scored`;
  if (!news.method) return tokens;
  const answer = news.answer == null ? "no answer" : `answer ${news.answer}`;
  return `${news.method}: ${answer}${news.score == null ? "" : `, score ${news.score.toFixed(2)}`}; ${tokens}`;
}

show(["chat", "summarize", "rewrite", "search"].find((name) => location.hash === `#${name}`) ?? "chat");
start();
