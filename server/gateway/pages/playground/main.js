// ---- start: what the service offers, and whether it can work ----------------------------------------------
const HEALTH_MS = 5000;
let describing = 0;

/** Read the models until the one in use is ready; a service that is away or starting is waited for. */
async function describe() {
  const mine = ++describing;
  while (mine === describing) {
    let list;
    try {
      list = (await patiently(() => json("/v1/models"))).data;
    } catch (error) {
      if (error.status === 401 || error.status === 403) askForKey(error.message); else say(error.message, { bad: true });
      return;
    }
    if (mine !== describing) return;
    offerModels(list);
    const isReady = Boolean(models.find((each) => each.id === model?.id)?.ready);
    showModel(isReady);
    if (isReady) return;
    await pause(1000);
  }
}
function showModel(isReady) {
  $("model").dataset.ready = isReady;
  $("model").textContent = model ? `${model.id} · ${model.image_size.join("×")}${isReady ? "" : " · waiting for a worker"}` : "waiting for a worker to load a model…";
}
/** Readiness of the service, for the model in use, or null if it does not answer. */
async function ready() {
  try {
    const answer = await fetch("/health/ready"), body = await answer.json();
    return { ready: answer.ok && (body.models?.[model?.id] ?? true), reason: body.reason, models: body.models ?? {} };
  } catch { return null; }
}
// Looks now and then, so that an outage shows before a button is pressed.
async function watchHealth() {
  for (;;) {
    await pause(lost ? 1000 : HEALTH_MS);
    if (document.hidden || $("model").dataset.ready === undefined) continue;
    const health = await ready();
    if (!health) disconnected(explain(new Unreachable()));
    else if (!health.ready && /queue/.test(health.reason ?? "")) disconnected(`The service cannot work at the moment: ${health.reason}. Trying again…`);
    else connected();
    if (!health) continue;
    const changed = Object.entries(health.models).some(([id, up]) => models.find((each) => each.id === id)?.ready !== up);
    if (changed || health.ready !== ($("model").dataset.ready === "true")) health.ready || changed ? describe() : showModel(false);
  }
}
// The key stays in this page: it is neither stored nor put into the URL.
function askForKey(why) {
  $("model").textContent = "API key required";
  point($("key"), why);
}
$("key").onchange = () => { forgive($("key")); say(""); describe(); };

$("skip").onclick = (event) => { event.preventDefault(); $("prompt").focus(); };  // the fragment holds the settings
$("smooth").checked = document.documentElement.dataset.smooth !== undefined;
$("smooth").onchange = () => {
  document.documentElement.toggleAttribute("data-smooth", $("smooth").checked);
  keepInBrowser("fluid-smooth", $("smooth").checked ? "1" : "0");
};
$("showOrder").checked = remembered("fluid-order", "1") === "1";
showOnly("welcome");
fromAddress();
showHistory(stored());
showCode();
describe();
watchHealth();
