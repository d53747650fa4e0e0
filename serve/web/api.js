// The server's API: JSON in, JSON or server-sent events out. Nothing else is ever requested.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal,
  });
  if (!response.ok) {
    const text = await response.text();
    throw new ApiError(response.status, messageOf(text) || `the server answered ${response.status}`);
  }
  return response;
}

function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 300);
  }
}

// {name, context} of the model that is served.
export async function model() {
  const [card] = (await (await request("/v1/models")).json()).data;
  return { name: card.id, context: card.max_model_len ?? 4096 };
}

export async function count(text, signal) {
  return (await (await request("/tokenize", { text }, signal)).json()).count;
}

// Streams a chat completion: `on.text(piece)`, `on.search(news)`. Returns {text, finish, usage}.
export async function complete(body, on, signal) {
  const response = await request(
    "/v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal,
  );
  const done = { text: "", finish: null, usage: null };
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new ApiError(200, chunk.error.message);
    if (chunk.search) on.search?.(chunk.search);
    if (chunk.usage) done.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      const piece = choice.delta?.content;
      if (piece) {
        done.text += piece;
        on.text?.(piece);
      }
      done.finish = choice.finish_reason ?? done.finish;
    }
  }
  if (done.finish === null) throw new ApiError(200, "the answer ended before it was whole");
  return done;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
