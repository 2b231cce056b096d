// Render avatars: node avatars.mjs <folder of @dicebear/core> <folder of a style>, with a JSON list of options on stdin.
// Prints a line of JSON for each: the image as SVG, and the traits that it shows.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [core, style] = process.argv.slice(2);
const { createAvatar } = await import(pathToFileURL(`${core}/lib/index.js`).href);
const drawer = await import(pathToFileURL(`${style}/lib/index.js`).href);
for (const each of JSON.parse(readFileSync(0, 'utf8'))) {
  const avatar = createAvatar(drawer, each);
  console.log(JSON.stringify({ svg: avatar.toString(), traits: avatar.toJson().extra }));
}
