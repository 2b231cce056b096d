// Runs in a folder of its own: one call of a JavaScript client with its defaults; prints the sizes of the images.
import { readFileSync } from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";
import OpenAI, { toFile } from "openai";

const baseURL = process.env.FLUID_TEST_BASE_URL; // ends with /v1
const apiKey = process.env.FLUID_TEST_KEY ?? "unused";
const prompt = "a cat";
const openai = new OpenAI({ baseURL, apiKey });
const vercel = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "fluid", baseURL, apiKey });
const square = () => readFileSync(process.env.FLUID_TEST_IMAGE);
const file = () => toFile(square(), "square.png", { type: "image/png" });

async function bytesOf(image) {
  if (image.b64_json) return Buffer.from(image.b64_json, "base64");
  return Buffer.from(await (await fetch(image.url)).arrayBuffer());
}
const all = async (answer) => Promise.all((await answer).data.map(bytesOf));
const made = async (answer) => (await answer).images.map((image) => Buffer.from(image.uint8Array));

const calls = {
  openai_generate: () => all(openai.images.generate({ prompt })),
  openai_edit: async () => all(openai.images.edit({ image: await file(), prompt })),
  openai_edit_list: async () => all(openai.images.edit({ model: "gpt-image-1", image: [await file()], prompt })),
  openai_variation: async () => all(openai.images.createVariation({ image: await file() })),
  openai_stream: async () => {
    let last;
    for await (const event of await openai.images.generate({ prompt, model: "gpt-image-1", stream: true })) last = event;
    if (last.type !== "image_generation.completed") throw new Error(last.type);
    return [Buffer.from(last.b64_json, "base64")];
  },
  vercel_openai: () => made(generateImage({ model: vercel.image("dall-e-3"), prompt })),
  vercel_openai_gpt_image: () => made(generateImage({ model: vercel.image("gpt-image-1"), prompt })),
  vercel_compatible: () => made(generateImage({ model: compatible.imageModel("dall-e-3"), prompt })),
  vercel_openai_edit: () =>
    made(generateImage({ model: vercel.image("gpt-image-1"), prompt: { text: prompt, images: [square()] } })),
  vercel_compatible_edit: () =>
    made(generateImage({ model: compatible.imageModel("dall-e-2"), prompt: { text: prompt, images: [square()] } })),
};

const images = await calls[process.argv[2]]();
for (const image of images) {
  if (image.subarray(1, 4).toString() !== "PNG") throw new Error(`no PNG: ${image.subarray(0, 16)}`);
}
console.log(JSON.stringify(images.map((image) => [image.readUInt32BE(16), image.readUInt32BE(20)])));
