// ---- the order of tokens, which follows from the seed ----------------------------------------------------
// As model/inference/orders.py and kernels/fluid_kernels/philox.py: part of the contract "a seed is an image".
const WORD = 0xFFFFFFFFn;
/** Sort keys of `count` positions: the first word of Philox 4x32-10 with the counter (0, 0, position, 0). */
function orderKeys(seed, count) {
  return Array.from({ length: count }, (_, position) => {
    let k0 = BigInt(seed) & WORD, k1 = BigInt(seed) >> 32n & WORD;
    let c = [0n, 0n, BigInt(position), 0n];
    for (let round = 0; round < 10; round++) {
      const a = c[0] * 0xD2511F53n, b = c[2] * 0xCD9E8D57n;
      c = [b >> 32n ^ c[1] ^ k0, b & WORD, a >> 32n ^ c[3] ^ k1, a & WORD];
      k0 = k0 + 0x9E3779B9n & WORD; k1 = k1 + 0xBB67AE85n & WORD;
    }
    return Number(c[0]);
  });
}
function radicalInverse(index, base) {
  let value = 0, place = 1 / base;
  for (; index; index = Math.floor(index / base), place /= base) value += index % base * place;
  return value;
}
function haltonOrder(seed, grid) {
  const [down, right, swap] = orderKeys(seed, 3), cells = new Map();
  for (let index = 1; cells.size < grid * grid; index++) {
    const cell = [Math.floor(radicalInverse(index, 2) * grid), Math.floor(radicalInverse(index, 3) * grid)];
    if (!cells.has(String(cell))) cells.set(String(cell), cell);
  }
  return [...cells.values()].map(([y, x]) => {
    const [d, r] = [(y + down) % grid, (x + right) % grid];
    return swap & 1 ? r * grid + d : d * grid + r;
  }).reverse();
}
/** One colour of a checkerboard after the other, each in Halton order. */
function checkerboardOrder(seed, grid) {
  const order = haltonOrder(seed, grid), first = orderKeys(seed, 4)[3] & 1;
  const isFirst = (position) => (Math.floor(position / grid) + position % grid) % 2 === first;
  return [...order.filter((position) => !isFirst(position)), ...order.filter(isFirst)];
}
/** Positions of the grid; the last ones are decided first. */
function tokenOrder(kind, seed, grid) {
  if (kind === "raster") return Array.from({ length: grid * grid }, (_, i) => grid * grid - 1 - i);
  if (kind === "halton") return haltonOrder(seed, grid);
  if (kind === "gtr") return checkerboardOrder(seed, grid);
  const keys = orderKeys(seed, grid * grid);
  return keys.map((_, position) => position).sort((one, other) => keys[one] - keys[other] || one - other);
}
function maskedAfter(step, steps, tokens, kind) {
  if (step < 0) return tokens;
  if (kind === "gtr" && tokens > 1 && steps > 1) { // half of the tokens slowly, the rest in a few steps
    const rest = Math.floor(tokens / 2);
    const quick = Math.max(1, Math.min(4, Math.floor(steps / 8)), steps - (tokens - rest)), slow = steps - quick;
    if (step < slow) return rest + maskedAfter(step, slow, tokens - rest);
    return rest - Math.floor(rest * (step - slow + 1) / quick);
  }
  if (step >= steps - 1) return 0;
  return Math.min(Math.floor(tokens * Math.cos(Math.PI / 2 * (step + 1) / steps)), tokens - 1 - step);
}
/** The step, from 1, in which each position of the grid is decided; 0 for those that are `kept` from a source image. */
function stepOfEach(order, steps, kept = [], kind = "random") {
  const left = order.filter((position) => !kept[position]), at = new Array(order.length).fill(0);
  for (let step = 0; step < steps; step++) {
    const [after, before] = [maskedAfter(step, steps, left.length, kind), maskedAfter(step - 1, steps, left.length, kind)];
    for (let i = after; i < before; i++) at[left[i]] = step + 1;
  }
  return at;
}
/** The plan of one image of a job; null where the order is not known: another family, a grid that is no square. */
function planOf(model, input, index, kept) {
  const grid = Math.sqrt(model?.tokens ?? 0.5), steps = input.num_inference_steps;
  if (!Number.isInteger(grid) || !["fluid", "mar", "fake"].includes(model.family) || !steps) return null;
  if (!Number.isSafeInteger(input.seed) || input.order === "confidence") return null; // which only the model knows
  if (input.order === "raster") { // kept tokens are walked over
    return { grid, steps: grid * grid, at: Array.from({ length: grid * grid }, (_, i) => kept?.[i] ? 0 : i + 1) };
  }
  const kind = input.order ?? "random";
  return { grid, steps, at: stepOfEach(tokenOrder(kind, input.seed + index, grid), steps, kept, kind) };
}
