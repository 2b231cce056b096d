// ---- editing: paint a mask over an image, generate that part ----------------------------------------------
const MOST_PIXELS = 1024;  // of a side of an image that is opened: more would be scaled down by the service anyway
const PAINT = "#ff5a1f";
const pen = $("mask").getContext("2d", { willReadFrequently: true });
let brushAt = null, stroke = null, strokes = [], undone = [], share = 0;
const editing = () => !$("editor").hidden;

async function openEditor(url, prompt, { again = [] } = {}) {
  if (run) return;
  stopReplay();
  $("original").src = url;
  await $("original").decode();
  const { naturalWidth: width, naturalHeight: height } = $("original");
  $("canvas").style.setProperty("--shape", `${width} / ${height}`);
  Object.assign($("canvas").style, width >= height ? { width: "100%", height: "auto" } : { width: "auto", height: "100%" });
  [$("mask").width, $("mask").height] = [width, height];
  $("brush").max = Math.max(4, Math.round(width / 3));
  $("brush").value = Math.max(2, Math.round(width / 6));
  brushAt = { x: width / 2, y: height / 2 };
  [strokes, undone] = [[...again], []];
  $("original").alt = prompt || "the image to edit";
  if (prompt) $("prompt").value = prompt;
  $("promptLabel").textContent = "Prompt for the painted part";
  $("generate").textContent = "Generate this part";
  setErase(false);
  showOnly("editor");
  redraw();
  formChanged();
  say("");
  $("frame").scrollIntoView({ block: "nearest" });
  $("canvas").focus({ preventScroll: true });
}
function closeEditor() {
  $("promptLabel").textContent = "Prompt";
  $("generate").textContent = "Generate";
  if (editing()) showOnly(shots.length ? "images" : "welcome");
  formChanged();
}
$("close").onclick = () => { closeEditor(); ($("tools").hidden ? $("prompt") : $("editPart")).focus(); };

// A stroke is kept as its points, so that undoing costs no memory and the mask can be painted again.
function draw({ kind, points, size, erase }, from = 0) {
  const { width, height } = $("mask");
  pen.globalCompositeOperation = kind === "invert" ? "xor" : erase ? "destination-out" : "source-over";
  pen.fillStyle = pen.strokeStyle = PAINT;
  if (kind === "clear") return pen.clearRect(0, 0, width, height);
  if (kind === "invert") return pen.fillRect(0, 0, width, height);
  if (kind === "lower") return pen.fillRect(0, height / 2, width, height / 2);
  Object.assign(pen, { lineWidth: size, lineCap: "round", lineJoin: "round" });
  pen.beginPath();
  points.slice(Math.max(0, from - 1)).forEach(({ x, y }, index) => { if (index) pen.lineTo(x, y); else { pen.moveTo(x, y); pen.lineTo(x + .01, y); } });
  pen.stroke();
}
function redraw() {
  pen.clearRect(0, 0, $("mask").width, $("mask").height);
  strokes.forEach((each) => draw(each));
  showPainted();
}
function add(step) { strokes.push(step); undone = []; draw(step); showPainted(); }
const line = (points) => ({ kind: "line", points, size: Number($("brush").value), erase: $("erase").getAttribute("aria-pressed") === "true" });
function painted() {  // RGBA: every fourth byte is alpha
  return pen.getImageData(0, 0, $("mask").width, $("mask").height).data;
}
function showPainted() {  // once per stroke, not per move: a large image has many pixels to count
  const data = painted();
  let count = 0;
  for (let i = 3; i < data.length; i += 4) if (data[i] > 127) count++;
  share = count / ($("mask").width * $("mask").height);
  $("painted").textContent = share ? `${Math.max(1, Math.round(100 * share))} % painted.` : "Nothing painted yet.";
  for (const [name, list] of [["undo", strokes], ["redo", undone]]) $(name).setAttribute("aria-disabled", !list.length);
  showCursor();
}
function undo() { if (strokes.length) { undone.push(strokes.pop()); redraw(); } }
function redo() { if (undone.length) { strokes.push(undone.pop()); redraw(); } }

function place(event) {
  const box = $("mask").getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width * $("mask").width, y: (event.clientY - box.top) / box.height * $("mask").height };
}
function showCursor() {
  const side = 100 * Number($("brush").value);
  Object.assign($("cursor").style, { left: `${100 * brushAt.x / $("mask").width}%`, top: `${100 * brushAt.y / $("mask").height}%`,
    width: `${side / $("mask").width}%`, height: `${side / $("mask").height}%` });
}
$("canvas").onpointerdown = (event) => {
  if (event.button) return;
  $("canvas").setPointerCapture(event.pointerId);
  brushAt = place(event);
  stroke = line([brushAt]);
  draw(stroke);
};
$("canvas").onpointermove = (event) => {
  brushAt = place(event);
  $("cursor").hidden = false;
  showCursor();
  if (stroke) { stroke.points.push(brushAt); draw(stroke, stroke.points.length - 1); }
};
$("canvas").onpointerup = $("canvas").onpointercancel = () => {
  if (stroke) { strokes.push(stroke); undone = []; stroke = null; showPainted(); }
};
$("canvas").onpointerleave = () => { $("cursor").hidden = document.activeElement !== $("canvas"); };
$("canvas").onfocus = () => { $("cursor").hidden = false; showCursor(); };
$("canvas").onblur = () => { $("cursor").hidden = true; };
$("canvas").onkeydown = (event) => {
  const { width, height } = $("mask"), move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (move) {
    const far = event.shiftKey ? width / 4 : Math.max(1, width / 32);
    brushAt = { x: Math.min(width, Math.max(0, brushAt.x + far * move[0])), y: Math.min(height, Math.max(0, brushAt.y + far * move[1])) };
    showCursor();
    $("painted").textContent = `Brush at ${Math.round(100 * brushAt.x / width)} % across, ${Math.round(100 * brushAt.y / height)} % down.`;
  } else if (event.key === " ") add(line([brushAt]));
  else if (event.key === "[" || event.key === "]") { $("brush").value = Number($("brush").value) * (event.key === "[" ? .8 : 1.25); showCursor(); }
  else return;
  event.preventDefault();
};
document.addEventListener("keydown", (event) => {
  if (!editing() || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.closest("textarea, input:not([type=range])")) return;
  event.preventDefault();
  if (event.shiftKey) redo(); else undo();
});
function setErase(on) { $("erase").setAttribute("aria-pressed", on); }
$("erase").onclick = () => setErase($("erase").getAttribute("aria-pressed") !== "true");
$("brush").oninput = showCursor;
$("undo").onclick = undo;
$("redo").onclick = redo;
for (const kind of ["clear", "lower", "invert"]) $(kind).onclick = () => add({ kind });

// ---- an image of one's own: chosen, dropped or pasted ------------------------------------------------------
async function openFile(file) {
  if (!file) return;
  if (run) return say("An image is being generated. Cancel it to edit another one.", { bad: true });
  try {
    const url = await readAsUrl(file), image = make("img", { src: url });
    await image.decode();
    // The service takes images of the model's shape only: the middle is cut out.
    const [across, down] = model?.image_size ?? [1, 1], { naturalWidth, naturalHeight } = image;
    const unit = Math.min(naturalWidth / across, naturalHeight / down), [width, height] = [across * unit, down * unit];
    const factor = Math.min(1, MOST_PIXELS / Math.max(width, height)), cut = Math.round(width) < naturalWidth || Math.round(height) < naturalHeight;
    if (factor === 1 && !cut) return await openEditor(url, "");
    const page = make("canvas", { width: Math.round(width * factor), height: Math.round(height * factor) });
    page.getContext("2d").drawImage(image, (naturalWidth - width) / 2, (naturalHeight - height) / 2, width, height, 0, 0, page.width, page.height);
    await openEditor(page.toDataURL(), "");
    if (cut) say("The middle of the image was cut out: this model's images have another shape.");
  } catch {
    say("The browser cannot read this file as an image. Use PNG, WebP or JPEG.", { bad: true });
  }
}
const withImage = (data) => [...data?.files ?? []].find((file) => file.type.startsWith("image/")) ?? data?.files?.[0];
$("file").onchange = () => openFile($("file").files[0]).then(() => { $("file").value = ""; });
$("openOwn").onclick = () => $("file").click();
document.addEventListener("paste", (event) => {
  // Office programs put a picture of the text beside it.
  if (event.target.closest?.("textarea, input") && event.clipboardData.types.includes("text/plain")) return;
  const file = withImage(event.clipboardData);
  if (file) { event.preventDefault(); openFile(file); }
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.documentElement.dataset.dragging = "";
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) delete document.documentElement.dataset.dragging; });
document.addEventListener("drop", (event) => {
  delete document.documentElement.dataset.dragging;
  const file = withImage(event.dataTransfer);
  if (file) { event.preventDefault(); openFile(file); }
});

// ---- sending an edit ---------------------------------------------------------------------------------------
const asFile = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));
/** The source as PNG, and the mask: what is transparent in it is generated. */
async function editFiles() {
  const { width, height } = $("mask"), data = painted();
  const [hole, page] = [make("canvas", { width, height }), make("canvas", { width, height })];
  const inHole = hole.getContext("2d"), pixels = inHole.createImageData(width, height);
  for (let i = 3; i < data.length; i += 4) pixels.data[i] = data[i] > 127 ? 0 : 255;
  inHole.putImageData(pixels, 0, 0);
  page.getContext("2d").drawImage($("original"), 0, 0);
  return { image: await asFile(page), mask: await asFile(hole) };
}
/** Tokens of which nothing is painted: they stay. */
function keptTokens() {
  const grid = Math.sqrt(model?.tokens ?? 0.5), { width, height } = $("mask"), data = painted();
  if (!Number.isInteger(grid)) return [];
  const kept = new Array(grid * grid).fill(true);
  for (let i = 3, pixel = 0; i < data.length; i += 4, pixel++) {
    if (data[i] > 127) kept[Math.floor(Math.floor(pixel / width) / height * grid) * grid + Math.floor(pixel % width / width * grid)] = false;
  }
  return kept;
}
function startEdit() {
  if (!share) { say("Paint over the part to change first.", { bad: true }); $("canvas").focus(); return; }
  const body = request(), source = $("original").src, kept = keptTokens();
  return alone("Generating the painted part…", async (run) => {
    const files = await editFiles(), figures = prepare(body.n, "the image before the edit", source);
    // With its key the job survives a lost connection; its events are followed as those of any other job.
    const job = await patiently(async () => {
      const form = new FormData();
      for (const [name, file] of Object.entries(files)) form.append(name, file, `${name}.png`);
      for (const [name, value] of Object.entries({ ...body, feather: $("feather").value || 0, stream: "true" })) form.append(name, value);
      const answer = await call("/v1/images/edits", { method: "POST", headers: { "Idempotency-Key": run.key }, body: form });
      const id = answer.headers.get("x-job-id"), path = `/v1/jobs/${id}`;
      answer.body.cancel();
      return { id, urls: { get: path, cancel: `${path}/cancel`, events: `${path}/events` }, warnings: JSON.parse(answer.headers.get("x-warnings") || "[]") };
    }, { run });
    await follow(run, job, body, figures, { kept, extra: { edited: true, before: source } });
    closeEditor();
    say(`${$("status").textContent} Only the painted part was generated.`);
  });
}
