// ---- the stage: images, the tokens that are decided so far, and what can be done with an image ------------
let shots = [], chosen = 0;

function showOnly(part) {
  for (const name of ["welcome", "images", "editor"]) $(name).hidden = name !== part;
  $("brushes").hidden = part !== "editor";
  $("tools").hidden = part !== "images" || !shots.length;
  if (part === "welcome") glimpse();
}
/** Empty figures for images that are being generated. `src` is what an edit starts from. */
function prepare(count, alt, src = "") {
  shots = [];
  $("before").setAttribute("aria-pressed", "false");
  const figures = Array.from({ length: count }, (_, index) => figure(index, alt, src)), grid = Math.sqrt(model?.tokens ?? 0.5);
  $("images").replaceChildren(...figures);
  $("images").style.setProperty("--columns", count < 2 ? 1 : count < 5 ? 2 : count < 10 ? 3 : 4);
  showOnly("images");
  if (!src && Number.isInteger(grid) && $("showOrder").checked) {
    for (const each of figures) { each.querySelector("canvas").hidden = false; drawTokens(each.querySelector("canvas"), { grid, at: new Array(grid * grid).fill(1) }, 0, 0); }
  }
  $("frame").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  return figures;
}
function figure(index, alt, src) {
  const button = make("button", { type: "button", onclick: () => press(index) });
  if (src) button.append(make("img", { src, alt, onload: fit }));
  button.append(make("canvas", { hidden: true }));
  if (!src) button.setAttribute("aria-label", alt);
  return make("figure", {}, button);
}
function setImage(figure, src, alt) {
  const button = figure.firstChild, image = button.querySelector("img") ?? make("img", { onload: fit });
  Object.assign(image, { src, alt });
  button.removeAttribute("aria-label");
  button.prepend(image);
}
/** Show pixels as squares where they are large, or all of one size; smaller ones of two sizes would look ragged. */
function fit() {
  for (const image of document.querySelectorAll("figure img")) {
    const factor = image.clientWidth * devicePixelRatio / image.naturalWidth;
    image.classList.toggle("fine-grained", factor < 4 && !Number.isInteger(factor));
  }
}
new ResizeObserver(fit).observe($("frame"));

function showShots(found, index = 0) {
  shots = found;
  $("before").setAttribute("aria-pressed", "false");
  const figures = found.map((shot, place) => figure(place, shot.settings.prompt, shot.url));
  figures.forEach((each) => each.classList.add("done"));
  $("images").replaceChildren(...figures);
  $("images").style.setProperty("--columns", found.length < 2 ? 1 : found.length < 5 ? 2 : found.length < 10 ? 3 : 4);
  choose(index);
}
/** Turn the figures of a finished run into results where they stand, so that the last tokens fade in. */
function finish(figures, found) {
  shots = found;
  found.forEach((shot, index) => { setImage(figures[index], shot.url, shot.settings.prompt); figures[index].classList.replace("waiting", "done") || figures[index].classList.add("done"); });
  choose(0);
}
function choose(index) {
  stopReplay();
  if ($("before").getAttribute("aria-pressed") === "true" && shots[chosen] && $("images").children[chosen])
    setImage($("images").children[chosen], shots[chosen].url, shots[chosen].settings.prompt);
  chosen = index;
  const shot = shots[index];
  [...$("images").children].forEach((each, place) => {
    each.classList.toggle("chosen", place === index);
    each.firstChild.title = shots.length > 1 && place !== index ? "Choose this image" : "Large view";
  });
  $("download").href = shot.url;
  $("download").download = fileName(shot);
  $("before").hidden = !shot.before;
  $("before").setAttribute("aria-pressed", "false");
  $("replay").hidden = !shot.plan;
  showOnly("images");
}
const fileName = (shot) => `${shot.settings.prompt.replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "").slice(0, 40)}-${shot.settings.seed}.${shot.format}`;
function press(index) {
  if (!shots.length) return;  // still being generated
  if (index === chosen || shots.length === 1) view(index); else { choose(index); say(described(shots[index])); }
}
const described = (shot) => `“${shot.settings.prompt}”, seed ${shot.settings.seed}`;

$("reuse").onclick = () => { $("seed").value = shots[chosen].settings.seed; $("options").open = true; forgive($("seed")); formChanged(); say(`Seed ${shots[chosen].settings.seed} is set: ${shots[chosen].edited ? "without its source image it gives another one." : "the same prompt and settings give this image again."}`); };
$("link").onclick = () => {
  copy(`${location.origin}${location.pathname}#${fragment(shots[chosen].settings)}`, $("link"));
  if (shots[chosen].edited) say("The link has prompt and settings, not the source image: it gives another image.");
};
$("large").onclick = () => view(chosen);
$("editPart").onclick = () => openEditor(shots[chosen].url, shots[chosen].settings.prompt);
$("vary").onclick = () => startVariations(shots[chosen]);
$("before").onclick = () => {
  const shot = shots[chosen], now = $("before").getAttribute("aria-pressed") !== "true";
  $("before").setAttribute("aria-pressed", now);
  setImage($("images").children[chosen], now ? shot.before : shot.url, now ? "before the edit" : shot.settings.prompt);
};

// ---- tokens ------------------------------------------------------------------------------------------------
/** Cover the tokens that the shown image does not hold yet: a dot each; a square once decided, the newest strongest. */
function drawTokens(canvas, plan, step, shown) {
  const { grid, at } = plan, cell = Math.max(8, Math.round(640 / grid));
  if (canvas.width !== grid * cell) canvas.width = canvas.height = grid * cell;
  const pen = canvas.getContext("2d"), colors = getComputedStyle($("frame"));
  const [ground, accent, edge] = [colors.backgroundColor, paint("--accent"), paint("--edge")];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  at.forEach((when, position) => {
    if (when <= shown && when < step || when === 0) return;
    const x = position % grid * cell, y = Math.floor(position / grid) * cell;
    if (when > shown) { pen.globalAlpha = 1; pen.fillStyle = ground; pen.fillRect(x, y, cell + 1, cell + 1); }
    if (when > step) {
      pen.globalAlpha = .55; pen.fillStyle = edge;
      pen.beginPath(); pen.arc(x + cell / 2, y + cell / 2, Math.max(1, cell / 24), 0, 7); pen.fill();
    } else {
      const age = step - when, inset = when > shown ? cell * .06 : 0;
      pen.globalAlpha = when > shown ? Math.max(.22, .9 - .14 * age) : .45; pen.fillStyle = accent;
      pen.beginPath(); pen.roundRect(x + inset, y + inset, cell - 2 * inset, cell - 2 * inset, inset ? cell * .14 : 0); pen.fill();
    }
  });
  pen.globalAlpha = 1;
}
/** A color of the style sheet as the canvas understands it: light-dark() is resolved only in a color property. */
function paint(name) {
  const probe = paint.probe ??= $("frame").appendChild(make("i", { className: "sr" }));
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
/** Behind the welcome: how an image of this model would be decoded, over and over. */
function glimpse(step = 0) {
  clearTimeout(glimpse.timer);
  const plan = model && !$("welcome").hidden && planOf(model, { seed: 7, order: model.presets[model.defaults.quality]?.order ?? model.defaults.order, num_inference_steps: 24 }, 0);
  if (!plan) return;
  drawTokens($("glimpse"), plan, calm.matches ? 3 : step, 0);
  if (!calm.matches) glimpse.timer = setTimeout(() => glimpse((step + 1) % 30), document.hidden ? 2000 : 350);
}
document.addEventListener("themechange", () => glimpse());
let replaying = 0;
function stopReplay() {
  cancelAnimationFrame(replaying);
  replaying = 0;
  $("replay").setAttribute("aria-pressed", "false");
  for (const each of $("images").children) each.classList.toggle("done", shots.length > 0);
}
/** Show the image again as its tokens were decided; where motion is not wanted, the number of each token's step. */
function replay() {
  if (replaying) return stopReplay();
  const { plan } = shots[chosen], figure = $("images").children[chosen], canvas = figure.querySelector("canvas");
  canvas.hidden = false;
  figure.classList.remove("done");
  $("replay").setAttribute("aria-pressed", "true");
  if (calm.matches) { drawNumbers(canvas, plan); replaying = -1; return; }
  const began = performance.now(), length = Math.max(1600, Math.min(4000, plan.steps * 90));
  const frame = (now) => {
    const step = Math.floor((now - began) / length * (plan.steps + 1));
    if (step > plan.steps) return stopReplay();
    drawTokens(canvas, plan, step, step);
    replaying = requestAnimationFrame(frame);
  };
  replaying = requestAnimationFrame(frame);
}
function drawNumbers(canvas, plan) {
  drawTokens(canvas, plan, plan.steps + 1, plan.steps);
  const pen = canvas.getContext("2d"), cell = canvas.width / plan.grid;
  pen.font = `600 ${cell / 3}px system-ui, sans-serif`;
  pen.textAlign = "center"; pen.textBaseline = "middle"; pen.lineWidth = cell / 12;
  plan.at.forEach((when, position) => {
    const x = (position % plan.grid + .5) * cell, y = (Math.floor(position / plan.grid) + .5) * cell;
    pen.strokeStyle = "#fff"; pen.strokeText(when || "·", x, y);
    pen.fillStyle = "#111"; pen.fillText(when || "·", x, y);
  });
}
$("replay").onclick = replay;

// ---- large view --------------------------------------------------------------------------------------------
function view(index) {
  const shot = shots[(index + shots.length) % shots.length];
  chosen = shots.indexOf(shot);
  Object.assign($("viewed"), { src: shot.url, alt: shot.settings.prompt });
  $("viewedText").textContent = described(shot);
  $("viewPrevious").hidden = $("viewNext").hidden = shots.length < 2;
  if (!$("viewer").open) $("viewer").showModal();
}
$("viewPrevious").onclick = () => view(chosen - 1);
$("viewNext").onclick = () => view(chosen + 1);
$("viewClose").onclick = () => $("viewer").close();
$("viewed").onclick = () => $("viewer").close();
$("viewer").onclose = () => { choose(chosen); $("images").children[chosen].firstChild.focus(); };
$("viewer").onkeydown = (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && shots.length > 1) view(chosen + by);
};
