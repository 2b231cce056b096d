// ---- history: kept in this browser only -------------------------------------------------------------------
const KEPT = 24;
function stored() {
  try { const all = JSON.parse(remembered("fluid-recent", "[]")); return Array.isArray(all) ? all : []; } catch { return []; }
}
function remember(found) {
  let all = [...found.map(({ before, ...shot }) => shot), ...stored()].slice(0, KEPT);
  while (!keepInBrowser("fluid-recent", JSON.stringify(all)) && all.length > 1) all = all.slice(0, -1);  // out of space: drop the oldest
  showHistory(all);
}
function showHistory(all) {
  $("history").hidden = !all.length;
  $("recent").replaceChildren(...all.map((shot) => make("button", { type: "button", title: described(shot), onclick: () => recall(shot) },
    make("img", { src: shot.url, alt: shot.settings.prompt }))));
}
function recall(shot) {
  if (run) return say("An image is being generated; cancel it to look at another one.", { bad: true });
  closeEditor();
  restore(shot.settings);
  showShots([shot]);
  $("frame").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  say(shot.edited ? "Settings of this edit restored. Generate makes a whole new image with them; use “Edit a part” to edit."
    : "Settings restored. Generate makes the same image again.");
}
$("forget").onclick = () => {
  keepInBrowser("fluid-recent", "[]");
  showHistory([]);
  say("The history of this browser is empty.");
};
