// ---- the form: what the model offers, and the request that it describes -----------------------------------
const NUMBERS = ["guidance_scale", "temperature", "num_inference_steps", "diffusion_steps"];
const CHOICES = ["guidance_schedule", "order"];
const SHARED = ["prompt", "negative_prompt", "seed", "n", "quality", ...CHOICES, ...NUMBERS];
const USUAL = { n: 1, quality: "auto", size: "auto", output_format: "png", partial_images: "3", keep: "0.5", feather: "2" };
let model = null, style = "";

/** Fit the form to a model: limits, size, styles, words, examples. */
function offer(found) {
  const same = model?.id === found.id;
  model = found;
  showPresets();
  if (same) return;
  const size = model.image_size.join("x");
  $("size").replaceChildren(...["auto", size].map((name) => make("option", { textContent: name })));
  $("sizeHelp").textContent = `This model has one size, ${model.image_size.join(" × ")} pixels.`;
  for (const name of NUMBERS) if (model.limits[`max_${name}`] !== undefined) $(name).max = model.limits[`max_${name}`];
  const orders = (model.orders ?? ["random", "halton"]).map((name) => make("option", { textContent: name }));
  $("order").replaceChildren($("order").options[0], ...orders);
  $("styles").replaceChildren(...model.styles.map((name) => chip(name, () => setStyle(name))));
  $("count").textContent = model.vocabulary.length ? `(${model.vocabulary.length})` : "";
  $("avoid").hidden = model.labels.length > 0;  // class labels leave no text to lead away from
  $("vocabulary").hidden = $("surprise").hidden = !model.vocabulary.length;
  showWords();
  markStyle();
  showExamples();
  glimpse();
}
const chip = (text, onclick) => make("button", { type: "button", textContent: text, onclick });

/** Placeholders are what an empty field means, which depends on the quality. */
function showPresets() {
  if (!model) return;
  const quality = $("quality").value === "auto" ? model.defaults.quality : $("quality").value, preset = model.presets[quality] ?? {};
  for (const name of NUMBERS) $(name).placeholder = preset[name] ?? model.defaults[name] ?? "";
  for (const name of CHOICES) $(name).options[0].textContent = preset[name] ?? model.defaults[name] ? `default (${preset[name] ?? model.defaults[name]})` : "default";
  const steps = preset.num_inference_steps ? `: ${preset.num_inference_steps} steps for ${model.tokens} tokens, ${preset.diffusion_steps} diffusion steps` : "";
  $("qualityHelp").textContent = `${$("quality").value === "auto" ? `auto is ${quality}` : quality}${steps}. More steps take longer.`;
}
function withStyle(text) {
  const bare = text.replace(/,?\s*\S+ style\s*$/i, "").trim();
  return style ? `${bare}, ${style} style` : bare;
}
function setStyle(name) { style = style === name ? "" : name; $("prompt").value = withStyle($("prompt").value); formChanged(); }
function markStyle() {
  style = (model?.styles || []).find((name) => $("prompt").value.toLowerCase().includes(`${name} style`)) || "";
  for (const each of $("styles").children) each.setAttribute("aria-pressed", each.textContent === style);
}
function article(word) { return /[^su]s$/.test(word) ? word : (/^[aeiou]/i.test(word) ? "an " : "a ") + word; }
function showWords() {
  const wanted = $("filter").value.toLowerCase();
  $("words").replaceChildren(...model.vocabulary.filter((word) => word.toLowerCase().includes(wanted)).map((word) =>
    chip(word, () => { $("prompt").value = withStyle(article(word)); formChanged(); $("prompt").focus(); })));
}
function showExamples() {
  const words = model.vocabulary.length ? model.vocabulary : model.labels.map((label) => label.split(",")[0]);
  const some = [8, 9, 39, 1].map((place) => words[place % words.length]).filter((word, place, all) => word && all.indexOf(word) === place);
  $("examples").replaceChildren(...some.map((word, place) => {
    const name = model.styles[place % model.styles.length], text = article(word) + (name ? `, ${name} style` : "");
    return chip(text, () => { $("prompt").value = text; formChanged(); $("form").requestSubmit(); });
  }));
}
$("filter").oninput = () => model && showWords();
$("surprise").onclick = () => {
  const any = (list) => list[Math.floor(Math.random() * list.length)];
  if (!model?.vocabulary.length || run) return;
  style = any(model.styles) || "";
  $("prompt").value = withStyle(article(any(model.vocabulary)));
  $("seed").value = "";
  formChanged();
  $("form").requestSubmit();
};

function request() {
  const body = { prompt: $("prompt").value, n: Number($("n").value || 1), quality: $("quality").value,
    output_format: $("output_format").value, partial_images: Number($("partial_images").value) };
  if ($("size").value !== "auto") body.size = $("size").value;
  if ($("seed").value.trim()) body.seed = Number($("seed").value);
  for (const name of ["negative_prompt", ...CHOICES]) if ($(name).value.trim()) body[name] = $(name).value;
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  return body;
}

/** Why the form cannot be sent: [field, message], or null. */
function mistake() {
  for (const field of $("form").elements) {
    if (field === $("prompt") && !field.value.trim()) return [field, "Enter a prompt: what should the image show?"];
    if (field === $("seed") && (field.validity.patternMismatch || Number(field.value) > Number.MAX_SAFE_INTEGER)) {
      return [field, `A seed is a whole number, at most ${Number.MAX_SAFE_INTEGER} here because browsers round larger ones.`];
    }
    if (field.validity && !field.validity.valid) return [field, field.validationMessage];
  }
  return null;
}
/** Open what hides the field, name the mistake beside it, and put the cursor there. */
function point(field, message) {
  const label = field.labels?.[0]?.textContent.trim() || field.id, id = `${field.id}Error`;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.dataset.help ??= field.getAttribute("aria-describedby") ?? "";
  field.setAttribute("aria-describedby", `${id} ${field.dataset.help}`.trim());
  const error = $(id) ?? make("p", { id, className: "error" });
  error.textContent = message;
  field.after(error);
  say(`${label}: ${message}`, { bad: true });
  field.focus();
}
function forgive(field) {
  field.removeAttribute("aria-invalid");
  if (field.dataset.help) field.setAttribute("aria-describedby", field.dataset.help); else if (field.dataset.help === "") field.removeAttribute("aria-describedby");
  $(`${field.id}Error`)?.remove();
}
function formChanged() { markStyle(); showPresets(); showCode(); }
$("form").addEventListener("input", (event) => { forgive(event.target); formChanged(); });
$("reset").onclick = () => {
  for (const name of [...CHOICES, ...NUMBERS, "negative_prompt", "seed"]) $(name).value = "";
  for (const [name, value] of Object.entries(USUAL)) $(name).value = value;
  formChanged();
  say("Settings are as they were at first.");
};
$("form").onsubmit = (event) => { event.preventDefault(); start(); };
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); } };

// ---- the URL holds prompt, seed and settings: a link to it generates the same image -----------------------
function fragment(settings) {
  return new URLSearchParams(SHARED.filter((name) => settings[name] !== undefined && settings[name] !== "").map((name) => [name, settings[name]]));
}
function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!SHARED.some((name) => given.get(name))) return false;
  restore(Object.fromEntries(given));
  if ([...given.keys()].some((name) => !["prompt", "seed", "n", "quality"].includes(name))) $("options").open = true;
  return true;
}
/** Set the form to these settings; what they leave out goes back to its default. */
function restore(settings) {
  for (const name of SHARED) $(name).value = settings[name] ?? (name === "prompt" ? $("prompt").value : USUAL[name] ?? "");
  if (settings.output_format) $("output_format").value = settings.output_format;
  formChanged();
}
addEventListener("hashchange", () => {  // a link that was pasted into this tab
  if (fromAddress() && !run) say("Settings of the link loaded. Generate makes its image.");
});
