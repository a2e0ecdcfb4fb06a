// A table that is wider than its place says so.
(() => {
  "use strict";
  const look = (box) => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  const sizes = new ResizeObserver((entries) => { for (const entry of entries) look(entry.target); });
  for (const box of document.querySelectorAll(".scroll")) {
    sizes.observe(box);
    box.addEventListener("scroll", () => look(box), { passive: true });
  }
})();
