(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const config = read("chart-config");
  const begun = new Map();

  // The numbers at the pointer stand below the chart, or above it where the window ends: never on its lines.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const words = (value) => typeof value === "number" ? value.toLocaleString("en-US", { maximumSignificantDigits: 8 }) : value;
  const show = ({ across, zero } = {}, event, value) => {
    tip.hidden = value === null || typeof value !== "object";
    if (tip.hidden) return;
    const table = document.createElement("table");
    for (const [name, number] of Object.entries(value)) {
      if (name === "y" && across) continue; // where a point of a cloud stands; its words follow
      const row = table.insertRow();
      row.insertCell().textContent = name === "x" && across ? across : name;
      row.insertCell().textContent = name === "x" && across && number === zero ? "0" : words(number);
    }
    tip.replaceChildren(table);
    const box = event.target.closest(".chart").getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const below = box.bottom + 6;
    const top = below + height < innerHeight ? below : Math.max(4, box.top - height - 6);
    tip.style.left = `${Math.max(8, Math.min(event.clientX - width / 2, document.documentElement.clientWidth - width - 8))}px`;
    tip.style.top = `${top}px`;
  };

  const draw = (box) => {
    if (begun.has(box)) return begun.get(box);
    const spec = read(box.dataset.spec);
    const tooltip = (handler, event, item, value) => show(spec.usermeta, event, value);
    // SVG takes its colours from the page; the interpreter needs no eval, which the page's policy forbids.
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config, tooltip };
    const drawing = (window.vegaEmbed
      ? window.vegaEmbed(box, spec, options)
      : Promise.reject(new Error(`the file ${document.body.dataset.charts} is not beside this page`)))
      .then(() => { box.dataset.drawn = "yes"; })
      .catch((error) => {
        box.textContent = `This figure could not be drawn: ${error.message}`;
        box.classList.add("failed");
        console.error(error);
      });
    begun.set(box, drawing);
    return drawing;
  };
  // What a reader is about to see is drawn first, and the rest one by one while nothing else happens.
  const boxes = [...document.querySelectorAll(".chart")];
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "600px" });
  for (const box of boxes) near.observe(box);
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 30));
  const rest = () => {
    const box = boxes.find((candidate) => !begun.has(candidate));
    if (box) idle(() => draw(box).then(rest));
  };
  idle(rest);
  // Paper has nothing to click on.
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const box of boxes) draw(box);
    for (const part of document.querySelectorAll("details.run:not([open])")) { part.open = true; opened.push(part); }
  });
  addEventListener("afterprint", () => { for (const part of opened.splice(0)) part.open = false; });
})();
