// Runs before the first paint, so that a chosen theme never flashes the other one. Without a choice, the system's holds.
"use strict";
(() => {
  const chosen = localStorage.getItem("dbserve.theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
