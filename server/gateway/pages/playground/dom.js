"use strict";
// ---- the page's elements, what it says, and what this browser keeps ---------------------------------------
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Show a line under the image. Screen readers hear it once, not at every step: steps say `spoken: false`. */
function say(text, { bad = false, spoken = true } = {}) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
  if (spoken) $("announce").textContent = text;
}

function remembered(name, fallback = "") {
  try { return localStorage.getItem(name) ?? fallback; } catch { return fallback; }
}
function keepInBrowser(name, value) {
  try { localStorage.setItem(name, value); return true; } catch (error) { console.warn(`${name} is not stored:`, error); return false; }
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no permission, or a page without https
    const field = make("textarea", { value: text, className: "sr" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.querySelector("span") ?? button, usual = button.dataset.usual ??= label.textContent;
  label.textContent = "Copied";
  $("announce").textContent = "Copied";
  clearTimeout(button.timer);
  button.timer = setTimeout(() => { label.textContent = usual; }, 1500);
}

// ---- theme: as the system, light, dark ----------------------------------------------------------------
const THEMES = { "": "as the system", light: "light", dark: "dark" };
function nameTheme() {
  $("themeName").textContent = `Theme: ${THEMES[document.documentElement.dataset.theme ?? ""]}`;
  $("theme").title = $("themeName").textContent;
  document.dispatchEvent(new Event("themechange"));
}
$("theme").onclick = () => {
  const names = Object.keys(THEMES), next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme;
  keepInBrowser("fluid-theme", next);
  nameTheme();
  $("announce").textContent = $("themeName").textContent;
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
nameTheme();
