"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  try {
    const kept = localStorage.getItem("lmcache-theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch { /* a page opened from a file may have no storage */ }
  button.hidden = false;
  show();
  prefersDark.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("lmcache-theme", root.dataset.theme); } catch { /* as above */ }
    show();
  });

  const tip = document.getElementById("tip");
  let current = null;
  const marksOf = (plot) =>
    [...plot.querySelectorAll('.role-mark [role="graphics-symbol"][aria-label]')];
  const hide = () => {
    if (current) current.classList.remove("on");
    current = null;
    tip.hidden = true;
  };
  const name = (mark) => {
    hide();
    current = mark;
    mark.classList.add("on");
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    place();
  };
  const place = () => {
    if (!current) return;
    const at = current.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = at.left + at.width / 2 - size.width / 2;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${at.top > size.height + 12 ? at.top - size.height - 8 : at.bottom + 8}px`;
  };
  for (const plot of document.querySelectorAll(".plot")) {
    plot.addEventListener("pointerover", (event) => {
      const mark = event.target.closest('.role-mark [role="graphics-symbol"][aria-label]');
      if (mark) name(mark); else hide();
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const forward = event.key === "ArrowRight" || event.key === "ArrowDown";
      const back = event.key === "ArrowLeft" || event.key === "ArrowUp";
      if (event.key === "Escape") hide();
      if (!forward && !back) return;
      event.preventDefault();
      const marks = marksOf(plot);
      if (!marks.length) return;
      const here = marks.indexOf(current);
      const next = here < 0 ? (forward ? 0 : marks.length - 1) : here + (forward ? 1 : -1);
      name(marks[(next + marks.length) % marks.length]);
    });
  }
  addEventListener("scroll", place, { passive: true });
  // on paper every table is open, and afterwards as it was
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
