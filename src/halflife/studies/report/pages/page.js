(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const config = read("chart-config");
  const begun = new Map();
  const draw = (box) => {
    if (begun.has(box)) return begun.get(box);
    // SVG takes its colours from the page; the interpreter needs no eval, which the page's policy forbids.
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config };
    const drawing = window.vegaEmbed(box, read(box.dataset.spec), options)
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
