// A search's tree as it grows. News: {steps: [{id, parent, text, score, status}], spent}; steps known already come
// again, without parent and text, when their score or status changes. The last news has {method, answer, score, path}.

export class Tree {
  constructor(place) {
    this.place = place;
    this.steps = new Map();
    this.roots = document.createElement("ul");
    place.replaceChildren(this.roots);
  }

  update(news) {
    for (const step of news.steps ?? []) {
      if (!this.steps.has(step.id)) this.add(step);
      this.mark(this.steps.get(step.id), step);
    }
    for (const id of news.path ?? []) this.steps.get(id)?.line.classList.add("won");
  }

  add(step) {
    const line = element("div", "step");
    const score = element("span", "score");
    const meter = element("meter");
    const text = element("code");
    text.textContent = step.text.trim() || "(nothing)"; // textContent: a model's text is never markup
    line.append(score, meter, text);
    const item = element("li");
    const below = element("ul");
    item.append(line, below);
    (this.steps.get(step.parent)?.below ?? this.roots).append(item);
    this.steps.set(step.id, { line, score, meter, below });
  }

  mark(known, step) {
    known.score.textContent = step.score == null ? "" : step.score.toFixed(2);
    known.meter.hidden = step.score == null;
    known.meter.value = step.score ?? 0;
    known.line.className = `step ${step.status ?? ""}`;
    known.line.title = step.status ?? "";
  }
}

function element(name, kind = "") {
  const made = document.createElement(name);
  made.className = kind;
  return made;
}
