// ---- the request as code: always that of the form ---------------------------------------------------------
const LANGUAGES = ["curl", "python", "js"];
let language = "curl";

/** The request without what is the default anyway, and without previews. */
function lean() {
  const { partial_images, ...body } = request();
  for (const [name, value] of Object.entries(USUAL)) if (body[name] === value) delete body[name];
  return body;
}
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (value) => typeof value === "string" ? JSON.stringify(value) : String(value);
const OPENAI = ["model", "prompt", "n", "size", "quality", "output_format"];

function snippet() {
  const body = lean(), base = location.origin, form = editing(), keyed = $("key").value !== "";
  const route = form ? "/v1/images/edits" : "/v1/images/generations", format = $("output_format").value;
  if (form) body.feather = Number($("feather").value || 0);
  const several = (body.n ?? 1) > 1;
  if (language === "curl") {
    const lines = [`curl --fail-with-body ${base}${route}`];
    if (keyed) lines.push('-H "Authorization: Bearer $FLUID_API_KEY"');
    if (!several) lines.push(`-H 'Accept: image/${format}'`);
    if (form) lines.push("-F image=@image.png -F mask=@mask.png", ...Object.entries(body).map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`));
    else lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
    lines.push(several ? "-o images.json" : `-o image.${format}`);
    return lines.join(" \\\n  ");
  }
  const own = Object.entries(body).filter(([name]) => !OPENAI.includes(name)), known = Object.entries(body).filter(([name]) => OPENAI.includes(name));
  if (language === "python") {
    const fields = [...known, ["response_format", "b64_json"]].map(([name, value]) => `    ${name}=${python(value)},`);
    if (form) fields.unshift('    image=open("image.png", "rb"),', '    mask=open("mask.png", "rb"),');
    if (own.length) fields.push(`    extra_body={${own.map(([name, value]) => `"${name}": ${python(value)}`).join(", ")}},`);
    return [`import base64${keyed ? "\nimport os" : ""}\nfrom pathlib import Path\n\nfrom openai import OpenAI\n`,
      `client = OpenAI(base_url="${base}/v1", api_key=${keyed ? 'os.environ["FLUID_API_KEY"]' : '"unused"'})`,
      `images = client.images.${form ? "edit" : "generate"}(`, ...fields, ")", "for index, image in enumerate(images.data):",
      `    Path(f"image-{index}.${format}").write_bytes(base64.b64decode(image.b64_json))`].join("\n");
  }
  const all = { ...body, response_format: "b64_json" }, headers = keyed ? ['Authorization: `Bearer ${process.env.FLUID_API_KEY}`'] : [];
  if (!form) headers.unshift('"Content-Type": "application/json"');
  return [`import { ${form ? "readFile, " : ""}writeFile } from "node:fs/promises";\n`,
    ...form ? ["const body = new FormData();", 'for (const name of ["image", "mask"]) body.append(name, new Blob([await readFile(`${name}.png`)]), `${name}.png`);',
      `for (const [name, value] of Object.entries(${JSON.stringify(all, null, 2)})) body.append(name, value);`]
      : [`const body = JSON.stringify(${JSON.stringify(all, null, 2)});`],
    `const answer = await fetch("${base}${route}", { method: "POST",${headers.length ? ` headers: { ${headers.join(", ")} },` : ""} body });`,
    "if (!answer.ok) throw new Error(await answer.text());",
    "for (const [index, image] of (await answer.json()).data.entries()) {",
    `  await writeFile(\`image-\${index}.${format}\`, Buffer.from(image.b64_json, "base64"));`, "}"].join("\n");
}
function showCode() { $("snippet").textContent = snippet(); }
function speak(name) {
  language = name;
  for (const each of LANGUAGES) {
    $(`tab-${each}`).setAttribute("aria-selected", each === name);
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  $("snippet").setAttribute("aria-labelledby", `tab-${name}`);
  showCode();
}
LANGUAGES.forEach((name, index) => {
  $(`tab-${name}`).onclick = () => speak(name);
  $(`tab-${name}`).onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const next = LANGUAGES[(index + by + LANGUAGES.length) % LANGUAGES.length];
    speak(next);
    $(`tab-${next}`).focus();
  };
});
$("copyCode").onclick = () => copy($("snippet").textContent, $("copyCode"));
