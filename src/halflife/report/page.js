(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const config = read("chart-config");
  for (const box of document.querySelectorAll(".chart")) {
    // SVG takes its colours from the page; the interpreter needs no eval, which the page's policy forbids.
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config };
    window.vegaEmbed(box, read(box.dataset.spec), options)
      .then(() => { box.dataset.drawn = "yes"; })
      .catch((error) => {
        box.textContent = `This figure could not be drawn: ${error.message}`;
        box.classList.add("failed");
        console.error(error);
      });
  }
})();
