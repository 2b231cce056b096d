"use strict";
// Runs before the first paint, so that a stored theme does not flash.
try {
  const theme = localStorage.getItem("fluid-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  if (localStorage.getItem("fluid-smooth") === "1") document.documentElement.dataset.smooth = "";
} catch { /* storage is blocked: the system's theme */ }
