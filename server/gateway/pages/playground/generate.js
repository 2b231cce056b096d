// ---- generating: submit, follow, show ---------------------------------------------------------------------
const ENDED = new Set(["succeeded", "failed", "canceled", "aborted"]);
const SILENCE_MS = 2500;  // without an event for so long, ask whether there is a worker at all
let run = null;  // one at a time: new images, edits and variations are shown in the same place

class Run {
  constructor(verb) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    Object.assign(this, { verb, key: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""),
      canceled: false, job: null, step: 0, steps: 0, status: "queued", heardAt: Date.now(), hangUp: new AbortController(), wake: null });
  }
  cancel() {
    this.canceled = true;
    this.hangUp.abort();
    this.wake?.();
    if (this.job) call(this.job.urls.cancel, { method: "POST" }).catch((error) => console.warn("not canceled:", error));
  }
}

/** Run `work` as the only one, with its button, progress and errors. */
async function alone(verb, work) {
  const earlier = { shots, chosen }, wasEditing = editing();
  run = new Run(verb);
  document.documentElement.dataset.busy = "";
  $("generate").setAttribute("aria-disabled", "true");
  $("choice").disabled = true;
  $("cancel").hidden = false;
  $("progress").hidden = false;
  $("progress").value = 0;
  say(verb);
  const watching = watch(run);
  try {
    await work(run);
  } catch (error) {
    if (earlier.shots.length) showShots(earlier.shots, earlier.chosen); else { shots = []; showOnly("welcome"); }
    if (wasEditing) showOnly("editor");
    fail(error);
  } finally {
    run.over = true;
    run.wake?.();
    run = null;
    if (document.activeElement === $("cancel")) $("generate").focus();
    delete document.documentElement.dataset.busy;
    $("generate").removeAttribute("aria-disabled");
    $("choice").disabled = false;
    $("cancel").hidden = true;
    $("progress").hidden = true;
    await watching;
  }
}
function fail(error) {
  if (error instanceof Canceled) return say("Canceled.");
  if (error.status === 401 || error.status === 403) return askForKey(error.message);
  const field = error.param && $("form").elements.namedItem(error.param);
  if (field) return point(field, error.message);
  say(error.message, { bad: true });
  $("status").scrollIntoView({ block: "nearest" });
}

function start() {
  if (run) return;  // Enter in the prompt comes here too
  const wrong = mistake();
  if (wrong) return point(...wrong);
  if (editing()) return startEdit();
  const body = request();
  return alone("Submitting…", async (run) => {
    const figures = prepare(body.n, body.prompt);
    const headers = { "Content-Type": "application/json", "Idempotency-Key": run.key };
    const job = await patiently(() => json("/v1/jobs", { method: "POST", headers, body: JSON.stringify(body) }), { run });
    await follow(run, job, body, figures);
  });
}

/** Follow a job to its end, and show its images. */
async function follow(run, job, body, figures, { kept, extra = {}, warnings = job.warnings ?? [] } = {}) {
  run.job = job;
  if (run.canceled) { run.cancel(); throw new Canceled(); }
  const input = job.input ?? (await patiently(() => json(job.urls.get), { run })).input;
  const plans = figures.map((_, index) => planOf(model, input, index, kept)), shown = figures.map(() => 0);
  const draw = () => figures.forEach((each, index) => {
    const canvas = each.querySelector("canvas");
    canvas.hidden = !plans[index] || !$("showOrder").checked;
    if (!canvas.hidden) drawTokens(canvas, plans[index], Math.max(shown[index], Math.floor(run.step / figures.length)), shown[index]);
  });
  run.draw = draw;
  draw();
  const ended = await listen(run, async (event, data) => {
    if (event === "status") tellStatus(run, data.status);
    if (event === "progress") { Object.assign(run, { step: data.step, steps: data.steps, status: "processing" }); tellStep(run, data.fraction); draw(); }
    if (event === "partial_image") {
      const url = await dataUrl(data.url).catch((error) => console.warn("no preview:", error));
      if (!url) return;  // a preview is worth neither a retry nor the run
      setImage(figures[data.image_index], url, `${body.prompt}, preview`);
      shown[data.image_index] = previewSteps(input)[data.partial_image_index] ?? 0;
      draw();
    }
  });
  if (ended.status === "canceled") throw new Canceled();
  if (ended.status !== "succeeded") throw new Error(ended.error?.message || `The job ended as ${ended.status}.`);
  const found = await Promise.all(ended.output.map(async (output, index) => ({ url: await patiently(() => dataUrl(output.url), { run }),
    settings: { ...body, n: 1, seed: output.seed }, format: output.format, plan: plans[index], ...extra })));
  finish(figures, found);
  remember(found);
  if (!extra.edited) history.replaceState(null, "", `#${fragment({ ...body, seed: found[0].settings.seed })}`);
  const m = ended.metrics;
  const queued = m.queue_time < .1 ? "" : `, ${m.queue_time.toFixed(2)} s of it in the queue`;
  say([`Generated in ${m.total_time.toFixed(2)} s${queued}. Seed ${found[0].settings.seed}.`, ...warnings].join(" "));
}
/** The steps after which previews are sent, as JobInput.preview_steps; Python rounds halves to even. */
function previewSteps(input) {
  const parts = Math.max(2, input.partial_images) + 1, steps = input.num_inference_steps;
  const even = (x) => (x % 1 === .5 ? 2 * Math.round(x / 2) : Math.round(x));
  const all = Array.from({ length: input.partial_images }, (_, index) => even(steps * (index + 1) / parts));
  return [...new Set(all)].filter((step) => step > 0 && step < steps);
}

/** Hear the events of the run's job up to its end, through lost connections; returns the last one's data. */
async function listen(run, hear) {
  for (let last = "", round = 0; ; round++) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await call(run.job.urls.events, { headers, signal: run.hangUp.signal });
      connected();
      for await (const [event, data, id] of events(answer)) {
        if (event === "error") throw new ServiceError(data.error.code === "queue_unavailable" ? 503 : 500, data.error);
        last = id; round = 0; run.heardAt = Date.now();
        await hear(event, data);
        if (ENDED.has(event)) return data;
      }
    } catch (error) {
      if (run.canceled) throw new Canceled();
      const why = explain(error);
      if (!why) throw error;
      disconnected(why);
      say(WAITING, { spoken: false });
    }
    await pause(Math.min(4000, 400 * 1.6 ** round), run);
    if (run.canceled) throw new Canceled();
  }
}
function tellStatus(run, status) {
  if (status === "processing" && run.status !== status) say("Generating…");
  if (status === "queued" && run.status !== status) say("Waiting for a worker: the last one stopped. Another one takes over.");
  run.status = status;
}
function tellStep(run, fraction) {
  $("progress").value = fraction;
  const quarter = Math.floor(4 * fraction);
  say(`Generating… step ${run.step} of ${run.steps}`, { spoken: false });
  if (quarter > (run.quarter ?? 0) && quarter < 4) $("announce").textContent = `${25 * quarter} % done`;
  run.quarter = quarter;
}

/** Say what a silent run waits for: its place in the queue, or a worker. */
async function watch(run) {
  while (!run.over) {
    await new Promise((done) => setTimeout(done, 700));
    const silent = Date.now() - run.heardAt > SILENCE_MS;
    if (run.over || run.canceled || lost || !(silent || run.job && run.status === "queued")) continue;
    const health = silent || !run.job ? await ready() : null, job = run.job && await json(run.job.urls.get).catch(() => null);
    if (run.over || run.canceled || lost) continue;
    const text = waitingFor(run, job, health);
    if (text && $("status").textContent !== text) say(text, { spoken: silent && !/\d+ s/.test(text) });
  }
}
function waitingFor(run, job, health) {
  const place = job?.queue;
  if (place && place.position !== null) {
    if (!place.is_possible || health?.ready === false) return "Waiting for a worker: none is running that could generate.";
    return place.position ? `In the queue: ${place.position} ahead` + (place.eta_seconds ? `, about ${Math.ceil(place.eta_seconds)} s` : "") : "In the queue: next";
  }
  if (health?.ready === false) return `Waiting for a worker: the last one stopped${run.step ? ` at step ${run.step} of ${run.steps}` : ""}. The next one continues this image.`;
  if (!run.job) return "";
  return Date.now() - run.heardAt > SILENCE_MS ? `No progress for ${Math.round((Date.now() - run.heardAt) / 1000)} s${run.step ? `, at step ${run.step} of ${run.steps}` : ""}. If its worker was lost, another one takes over.` : "";
}

/** Variations come without events: OpenAI's route has none. */
function startVariations(shot) {
  if (run) return;
  const wrong = mistake();
  if (wrong) return point(...wrong);
  const { seed, size, partial_images, ...body } = request();
  Object.assign(body, { prompt: shot.settings.prompt, n: body.n > 1 ? body.n : 4, keep: Number($("keep").value) });
  return alone("Generating variations…", async (run) => {
    $("progress").removeAttribute("value");
    const figures = prepare(body.n, "variation", shot.url), image = blobOf(shot.url);
    figures.forEach((each) => each.classList.add("waiting"));
    const answer = await patiently(() => {
      const form = new FormData();
      form.append("image", image, `image.${shot.format}`);
      for (const [name, value] of Object.entries({ ...body, response_format: "b64_json" })) form.append(name, value);
      // No Idempotency-Key: hanging up then cancels the job, whose id only the answer tells.
      return json("/v1/images/variations", { method: "POST", body: form, signal: run.hangUp.signal });
    }, { run });
    const found = answer.data.map((each) => ({ url: `data:image/${answer.output_format};base64,${each.b64_json}`, format: answer.output_format,
      settings: { ...body, n: 1, seed: each.seed, ...(answer.background === "transparent" && { background: answer.background }) },
      edited: true, before: shot.url }));
    finish(figures, found);
    remember(found);
    say([`${found.length} variations: each keeps ${Math.round(100 * body.keep)} % of the image's tokens, others by its seed.`, ...answer.warnings].join(" "));
  });
}
$("cancel").onclick = () => run?.cancel();
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && run && !$("viewer").open) run.cancel(); });
document.addEventListener("themechange", () => run?.draw?.());
$("showOrder").onchange = () => { keepInBrowser("fluid-order", $("showOrder").checked ? "1" : "0"); run?.draw?.(); };
