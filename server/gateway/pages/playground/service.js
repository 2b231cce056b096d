// ---- requests to the service, which may be away for a while -----------------------------------------------
class Unreachable extends Error {}
class Canceled extends Error {}
class ServiceError extends Error {
  constructor(status, { message, code, param } = {}, retryAfterS = 0) {
    super(message || `The service answered with status ${status}.`);
    Object.assign(this, { status, code, param, retryAfterS });
  }
  /** Nothing was accepted, and the same request can succeed later. */
  get passing() { return this.status === 502 || this.status === 503 || this.status === 504 && !this.code; }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Unreachable(`The service at ${location.host} does not answer.`);
  }
  if (!answer.ok) throw new ServiceError(answer.status, (await answer.json().catch(() => ({}))).error, Number(answer.headers.get("Retry-After")));
  return answer;
}
/** An answer can begin and yet never end: a body that breaks off is a lost connection, too. */
const broken = () => { throw new Unreachable("The connection was lost."); };
const json = async (path, options) => (await call(path, options)).json().catch(broken);

/** What a person should know of a trouble that passes; "" for any other error. */
function explain(error) {
  if (error instanceof Unreachable) return `The service at ${location.host} does not answer: it is restarting, or it was stopped. Trying again…`;
  if (error.code === "no_workers") return "Waiting for a worker: none is running that could generate. Trying again…";
  if (error instanceof ServiceError && error.passing) return `The service cannot work at the moment: ${error.message} Trying again…`;
  return "";
}

/** Repeat `action` until it gets an answer; every request that changes something carries an Idempotency-Key. */
async function patiently(action, { run = null } = {}) {
  for (let round = 0; ; round++) {
    if (run?.canceled) throw new Canceled();
    try {
      const result = await action();
      connected();
      return result;
    } catch (error) {
      if (run?.canceled) throw new Canceled();
      const why = explain(error);
      if (!why) throw error;
      disconnected(why);
      if (run) say(WAITING, { spoken: false });
      await pause(Math.min(4000, 500 * 1.6 ** round), run);
    }
  }
}
const pause = (ms, run) => new Promise((done) => { const timer = setTimeout(done, ms); if (run) run.wake = () => { clearTimeout(timer); done(); }; });

const WAITING = "Waiting for the service…";  // the reason stands above the image
let lost = false;
function disconnected(why) {
  lost = true;
  document.documentElement.dataset.lost = "";
  if ($("connection").textContent !== why) $("connection").textContent = why;
}
function connected() {
  if (lost) { $("connection").textContent = ""; $("announce").textContent = "The service answers again."; }
  lost = false;
  delete document.documentElement.dataset.lost;
}

/** Server-sent events by hand, because EventSource cannot send a key: yields [name, data, id]. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", part; ;) {
    try { part = await reader.read(); } catch { broken(); }
    if (part.done) return;
    const blocks = (text + part.value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      if (fields.data) yield [fields.event, JSON.parse(fields.data), fields.id];
    }
  }
}

function blobOf(url) {  // of a data: URL, which the page's policy does not let fetch read
  const [head, data] = url.split(","), bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
/** A file as a data: URL, which outlives the job and needs no key. */
async function dataUrl(path) {
  return readAsUrl(await (await call(path)).blob().catch(broken));
}
const readAsUrl = (blob) => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => fail(new Error("The browser cannot read this file."));
  reader.readAsDataURL(blob);
});
