// The machine, from /v1/stats once a second: what was done since the last look.
import { ask } from "./answer.js";

const EVERY = 1000; // ms
const FADING = 0.6; // of what the heat map keeps from look to look
const at = (id) => document.getElementById(id);
let warmth = []; // [layer][expert], what the heat map shows
let hits = "-"; // share of experts found on the accelerator, when last there were any to find

function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit++) count /= 1000;
  return `${count.toFixed(count < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

// Puts a name and a value into each pair of cells.
function fill(into, pairs, make) {
  if (into.childElementCount !== make(pairs).length) into.replaceChildren(...make(pairs));
  const cells = into.querySelectorAll("dt, dd, th, td");
  pairs.flat().forEach((text, index) => { if (cells[index].textContent !== text) cells[index].textContent = text; });
}

const cell = (tag) => document.createElement(tag);

function terms(pairs) {
  return pairs.flatMap(() => [cell("dt"), cell("dd")]);
}

function rows(pairs) {
  return pairs.map(() => {
    const row = cell("tr"), head = cell("th");
    head.scope = "row";
    row.append(head, cell("td"));
    return row;
  });
}

// Layers downwards, experts to the right; the busiest of a layer is darkest.
function heat(layers) {
  const canvas = at("heat"), width = Math.max(...layers.map((one) => one.length), 1);
  canvas.width = width;
  canvas.height = Math.max(layers.length, 1);
  const context = canvas.getContext("2d");
  const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--heat").trim().split(" ").map(Number);
  const image = context.createImageData(canvas.width, canvas.height);
  warmth = layers.map((counts, layer) => counts.map((count, expert) => count + FADING * (warmth[layer]?.[expert] ?? 0)));
  warmth.forEach((counts, layer) => {
    const most = Math.max(...counts) || 1;
    counts.forEach((count, expert) => {
      image.data.set([red, green, blue, Math.round((255 * count) / most)], 4 * (layer * width + expert));
    });
  });
  context.putImageData(image, 0, 0);
  const busy = layers.map((counts) => counts.filter((count) => count > 0).length);
  const least = Math.min(...busy), most = Math.max(...busy);
  at("heat-text").textContent = most > 0
    ? `${layers.length} layers of ${width} experts; ${least === most ? most : `${least} to ${most}`} of each got tokens in the last second.`
    : `${layers.length} layers of ${width} experts, idle.`;
}

function less(now, before) {
  return now.map((counts, layer) => counts.map((count, expert) => count - (before[layer]?.[expert] ?? 0)));
}

function show(now, before, seconds) {
  const since = (name) => now[name] - before[name];
  const of = (name) => now.experts.total[name] - before.experts.total[name];
  const lookups = of("resident") + of("prefetched") + of("fetched") + of("cpu");
  if (lookups) hits = `${Math.round((100 * (of("resident") + of("prefetched"))) / lookups)} %`;
  const accelerator = now.accelerator ? [["Experts found on the accelerator", hits]] : [];
  at("machine-title").textContent = now.experts.modelled ? "Machine, with a simulated accelerator" : "Machine";
  fill(at("figures"), [
    ["Answers under way", `${now.running}`],
    ["Answers waiting", `${now.waiting}`],
    ["Tokens/s, answers", (since("generated_tokens") / seconds).toFixed(1)],
    ["Tokens/s, prompts", ((since("prompt_tokens") - since("cached_tokens")) / seconds).toFixed(0)],
    ["Prompt tokens not read twice", `${now.cached_tokens}`],
    ...accelerator,
  ], terms);
  const copied = now.accelerator ? [["experts, to the accelerator", bytes(of("link_bytes") / seconds)]] : [];
  fill(at("links").tBodies[0], [["experts, to compute", bytes(of("expert_bytes") / seconds)], ...copied], rows);
  heat(less(now.workload, before.workload));
}

// Whether these are counts of one server: another one begins at nothing.
function follows(now, before) {
  return before !== null && now.generated_tokens >= before.generated_tokens && now.experts.total.steps >= before.experts.total.steps;
}

export function watch(key, wanted) {
  let before = null, then = 0;
  const look = async () => {
    if (wanted()) {
      const { status, said } = await ask("v1/stats", key());
      const now = status === 200 ? said : null, time = performance.now();
      if (now && follows(now, before)) show(now, before, (time - then) / 1000);
      before = now;
      then = time;
    }
    setTimeout(look, EVERY);
  };
  look();
}
