/* What scrolls can be reached by the keyboard, and the two side columns have names. */
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".table-wrapper, div.highlight pre")) {
    box.tabIndex = 0;
  }
  for (const [place, name] of [[".sidebar-drawer", "Site"], [".toc-drawer", "This page"]]) {
    document.querySelector(place)?.setAttribute("aria-label", name);
  }
});
