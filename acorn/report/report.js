// Details under the pointer: words of anything with data-tip, values of a chart's curves, the paths of a step.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (words, event) => {
    tip.textContent = words;
    tip.hidden = false;
    const { clientWidth: width, clientHeight: height } = document.documentElement;
    const x = Math.max(6, Math.min(event.clientX + 14, width - tip.offsetWidth - 6));
    const below = event.clientY + 18 + tip.offsetHeight < height;
    tip.style.left = `${x + window.scrollX}px`;
    tip.style.top = `${(below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12) + window.scrollY}px`;
  };
  const number = (value) => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? String(+value.toPrecision(4)) : value.toExponential(2));
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));

  for (const svg of document.querySelectorAll("svg[data-extent]")) {
    const { x0, x1, left, right, log } = JSON.parse(svg.dataset.extent);
    const share = (x) => (log ? Math.log(x / x0) / Math.log(x1 / x0) : (x - x0) / (x1 - x0));
    const value = (part) => (log ? x0 * (x1 / x0) ** part : x0 + part * (x1 - x0));
    const curves = [...svg.querySelectorAll("[data-points]")].map((line) => ({ name: line.dataset.name, points: JSON.parse(line.dataset.points) }));
    const cross = svg.querySelector(".cross");
    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
      const wanted = value((at - left) / (right - left));
      const hits = curves.filter((curve) => curve.points.length).map((curve) => [curve.name, nearest(curve.points, wanted)]);
      const drawn = left + share(nearest(hits.map(([, point]) => point), wanted)[0]) * (right - left);
      cross.setAttribute("x1", drawn);
      cross.setAttribute("x2", drawn);
      cross.style.visibility = "visible";
      show(hits.map(([name, [x, y]]) => `${name} ${number(y)} at ${svg.dataset.x} ${x}`).join("\n"), event);
    });
    svg.addEventListener("pointerleave", () => {
      cross.style.visibility = "hidden";
      tip.hidden = true;
    });
  }

  for (const element of document.querySelectorAll("[data-tip]")) {
    element.addEventListener("pointermove", (event) => show(element.dataset.tip, event));
    element.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  for (const chain of document.querySelectorAll("svg.chain")) {
    const links = [...chain.querySelectorAll(".link")];
    const boxes = [...chain.querySelectorAll("a")];
    const follow = (step, from, to, seen) => {
      seen.add(step);
      for (const link of links) {
        if (link.dataset[from] !== step) continue;
        link.classList.add("on");
        if (!seen.has(link.dataset[to])) follow(link.dataset[to], from, to, seen);
      }
      return seen;
    };
    for (const box of boxes) {
      box.addEventListener("pointerenter", () => {
        const step = box.firstElementChild.dataset.step;
        const near = new Set([...follow(step, "to", "from", new Set()), ...follow(step, "from", "to", new Set())]);
        boxes.forEach((other) => other.classList.toggle("on", near.has(other.firstElementChild.dataset.step)));
        chain.classList.add("traced");
      });
      box.addEventListener("pointerleave", () => {
        chain.classList.remove("traced");
        [...links, ...boxes].forEach((element) => element.classList.remove("on"));
      });
    }
  }

  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
