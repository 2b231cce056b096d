// ---- the form: what the model offers, and the request that it describes -----------------------------------
const NUMBERS = ["guidance_scale", "temperature", "num_inference_steps", "diffusion_steps"];
const CHOICES = ["guidance_schedule", "order", "background"];
const SHARED = ["prompt", "negative_prompt", "seed", "n", "quality", ...CHOICES, ...NUMBERS];
const USUAL = { n: 1, quality: "auto", size: "auto", output_format: "png", partial_images: "3", keep: "0.5", feather: "2" };
const LINKED = ["model", ...SHARED];
const LEAST = Object.fromEntries(NUMBERS.map((name) => [name, $(name).min]));
let models = [], model = null, style = "";
let wanted = "";  // the model that was chosen here, or by a link

/** Offer what the service has; a choice only if there are several models. */
function offerModels(list) {
  models = list;
  const options = list.map((each) => make("option", { value: each.id, textContent: each.ready ? each.id : `${each.id} (no worker)` }));
  const text = (all) => [...all].map((each) => each.textContent).join();
  if (text(options) !== text($("choice").options)) $("choice").replaceChildren(...options);
  $("choiceField").hidden = list.length < 2;
  const named = (id) => list.find((each) => each.id === id), up = list.filter((each) => each.ready);
  const found = named(wanted) ?? named(model?.id) ?? up.find((each) => each.default) ?? up[0] ?? list[0];
  if (!found) return;
  if (wanted && !named(wanted)) say(`The model ${wanted} of the link is not served here; this is ${found.id}.`, { bad: true });
  wanted = named(wanted) ? wanted : "";
  offer(found);
}
/** Use another model, if the service has it, or when it has. */
function useModel(id) {
  wanted = id;
  const found = models.find((each) => each.id === id);
  if (!found) return;
  offer(found);
  showModel(found.ready);
}
$("choice").onchange = () => { useModel($("choice").value); formChanged(); describe(); };

/** Fit the form to a model: limits, size, styles, words, examples. */
function offer(found) {
  const same = model?.id === found.id, order = $("order").value || $("order").dataset.linked;
  model = found;
  $("choice").value = model.id;
  showPresets();
  if (same) return;
  const size = model.image_size.join("x");
  $("size").replaceChildren(...["auto", size].map((name) => make("option", { textContent: name })));
  $("sizeHelp").textContent = `This model has one size, ${model.image_size.join(" × ")} pixels.`;
  $("choiceHelp").textContent = [`${model.image_size.join(" × ")} pixels.`, model.description, model.license && `Licence: ${model.license}.`, model.conditions].filter(Boolean).join(" ");
  for (const name of NUMBERS) Object.assign($(name), { max: model.limits[`max_${name}`] ?? "", min: model.limits[`min_${name}`] ?? LEAST[name] });
  const orders = (model.orders ?? ["random", "halton"]).map((name) => make("option", { textContent: name }));
  $("order").replaceChildren($("order").options[0], ...orders);
  $("order").value = orders.some((each) => each.textContent === order) ? order : "";
  $("styles").replaceChildren(...model.styles.map((name) => chip(name, () => setStyle(name))));
  $("count").textContent = model.vocabulary.length ? `(${model.vocabulary.length})` : "";
  $("avoid").hidden = model.labels.length > 0 || model.negative_prompts === false;  // no text to steer away from
  $("ground").hidden = !model.transparent;
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
/** Where a text names a style: one of the model's anywhere, or any at its end. */
function namedStyle() { return `\\b(?:${model.styles.map((name) => name.replace(/[^\w ]/g, "\\$&")).join("|")}) style\\b|\\S+ style\\s*$`; }
/** The text with the chosen style in place of the one that it names. */
function withStyle(text) {
  if (!model?.styles.length) return text;
  if (style && new RegExp(namedStyle(), "i").test(text)) return text.replace(new RegExp(namedStyle(), "i"), `${style} style`).trim();
  const bare = text.replace(new RegExp(`^(?:${namedStyle()})[,\\s]*|,?\\s*(?:\\bin\\s+)?(?:${namedStyle()})`, "i"), "").trim();
  return style ? `${bare}, ${style} style` : bare;
}
function setStyle(name) { style = style === name ? "" : name; $("prompt").value = withStyle($("prompt").value); formChanged(); }
function markStyle() {
  const text = $("prompt").value.toLowerCase(), place = (name) => text.indexOf(`${name.toLowerCase()} style`);
  style = (model?.styles || []).filter((name) => place(name) >= 0).sort((one, other) => place(one) - place(other))[0] || "";
  for (const each of $("styles").children) each.setAttribute("aria-pressed", each.textContent === style);
}
function article(word) {
  if (/[^su]s$/.test(word)) return word;
  return (/^(?:[aeiou]|x-)/i.test(word) && !/^(?:uni|one\b|eu|ewe)/i.test(word) ? "an " : "a ") + word;
}
/** The styles in which the model has seen a word. */
function stylesOf(word) { return model.breadth?.includes(word) && model.breadth_styles?.length ? model.breadth_styles : model.styles; }
function promptOf(word) {
  if (!stylesOf(word).includes(style)) style = "";
  return withStyle(article(word));
}
function showWords() {
  const wanted = $("filter").value.toLowerCase();
  $("words").replaceChildren(...model.vocabulary.filter((word) => word.toLowerCase().includes(wanted)).map((word) =>
    Object.assign(chip(word, () => { $("prompt").value = promptOf(word); formChanged(); $("prompt").focus(); }),
      { title: stylesOf(word) === model.styles ? "" : `one at a time, in ${stylesOf(word).join(" or ")} style` })));
}
function showExamples() {
  const example = (text) => chip(text, () => { $("prompt").value = text; formChanged(); $("form").requestSubmit(); });
  if (model.examples?.length) return void $("examples").replaceChildren(...model.examples.map(example));
  const words = model.vocabulary.length ? model.vocabulary : model.labels.map((label) => label.split(",")[0]);
  const some = [8, 9, 39, 1].map((place) => words[place % words.length]).filter((word, place, all) => word && all.indexOf(word) === place);
  $("examples").replaceChildren(...some.map((word, place) => {
    const name = model.styles[place % model.styles.length], text = article(word) + (name ? `, ${name} style` : "");
    return example(text);
  }));
}
$("filter").oninput = () => model && showWords();
$("surprise").onclick = () => {
  const any = (list) => list[Math.floor(Math.random() * list.length)];
  if (!model?.vocabulary.length || run) return;
  const word = any(model.vocabulary);
  style = any(stylesOf(word)) || "";
  $("prompt").value = promptOf(word);
  $("seed").value = "";
  formChanged();
  $("form").requestSubmit();
};

function request() {
  const body = { prompt: $("prompt").value, n: Number($("n").value || 1), quality: $("quality").value,
    output_format: $("output_format").value, partial_images: Number($("partial_images").value) };
  if (models.length > 1) body.model = model.id;
  if ($("size").value !== "auto") body.size = $("size").value;
  if ($("seed").value.trim()) body.seed = Number($("seed").value);
  for (const name of ["negative_prompt", ...CHOICES]) if ($(name).value.trim() && !$(name).closest("[hidden]")) body[name] = $(name).value;
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
$("form").addEventListener("input", (event) => {
  if (event.target === $("order")) $("order").dataset.linked = "";
  forgive(event.target);
  formChanged();
});
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
  return new URLSearchParams(LINKED.filter((name) => settings[name] !== undefined && settings[name] !== "").map((name) => [name, settings[name]]));
}
function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!LINKED.some((name) => given.get(name))) return false;
  restore(Object.fromEntries(given));
  if ([...given.keys()].some((name) => !["model", "prompt", "seed", "n", "quality"].includes(name))) $("options").open = true;
  return true;
}
/** Set the form to these settings; what they leave out goes back to its default. */
function restore(settings) {
  $("order").dataset.linked = settings.order ?? "";  // whose option comes with the model
  if (settings.model) useModel(settings.model);
  for (const name of SHARED) $(name).value = settings[name] ?? (name === "prompt" ? $("prompt").value : USUAL[name] ?? "");
  if (settings.output_format) $("output_format").value = settings.output_format;
  formChanged();
}
addEventListener("hashchange", () => {  // a link that was pasted into this tab
  if (fromAddress() && !run) say("Settings of the link loaded. Generate makes its image.");
});
