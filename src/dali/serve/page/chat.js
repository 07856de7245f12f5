// The page: conversations at the left, the chat, the machine at the right.
import { answer, ask } from "./answer.js";
import { Conversations, keepSettings } from "./conversations.js";
import { watch } from "./machine.js";
import { article, element, summary } from "./messages.js";

const at = (id) => document.getElementById(id);
const log = at("log"), message = at("message"), settings = at("settings"), said = at("said");
const conversations = new Conversations();
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const AGAIN = 2000; // ms, until a server that is not ready is asked again
let running = null; // the AbortController of the answer under way

const key = () => settings.elements.key.value.trim();

function keep(done) {
  at("unkept").hidden = done;
}

function showConversation() {
  log.replaceChildren(...conversations.current.messages.map((one) => article(one).made));
  log.scrollTop = log.scrollHeight;
  showList();
}

function showList() {
  const list = at("conversations"), focused = list.contains(document.activeElement);
  list.replaceChildren(
    ...conversations.all.map((one) => {
      const line = element("li"), open = element("button", one.title), remove = element("button", "×");
      open.title = one.title; // where it is cut
      if (one === conversations.current) open.setAttribute("aria-current", "true");
      open.addEventListener("click", () => {
        stop();
        conversations.choose(one.id);
        showConversation();
      });
      remove.setAttribute("aria-label", `Delete ${one.title}`);
      remove.addEventListener("click", () => {
        if (one.messages.length && !confirm(`Delete “${one.title}”? It is kept nowhere else.`)) return;
        if (one === conversations.current) stop();
        keep(conversations.remove(one.id));
        showConversation();
      });
      line.append(open, remove);
      return line;
    }),
  );
  if (focused) list.querySelector("[aria-current]")?.focus(); // what had the focus is gone
}

function request() {
  const values = Object.fromEntries(new FormData(settings)), wanted = {};
  for (const name of NUMBERS) if (values[name] !== "") wanted[name] = Number(values[name]);
  if (values.reasoning_effort) wanted.reasoning_effort = values.reasoning_effort;
  const system = values.system.trim() ? [{ role: "system", content: values.system }] : [];
  return { messages: [...system, ...conversations.history], ...wanted };
}

function stop() {
  running?.abort();
}

function busy(is) {
  if (document.activeElement === at(is ? "send" : "stop")) message.focus(); // a disabled button would lose the focus
  at("send").disabled = is;
  at("stop").disabled = !is;
  log.setAttribute("aria-busy", String(is));
}

// Shows `one` at the end of the log; returns what shows it anew, at most once a frame.
function shown(one) {
  const { made, update } = article(one);
  log.lastChild.replaceWith(made);
  let drawn = 0;
  const draw = () => {
    drawn = 0;
    const below = made.isConnected && log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    update();
    if (below) log.scrollTop = log.scrollHeight;
  };
  return () => { drawn ||= requestAnimationFrame(draw); };
}

async function say() {
  const text = message.value;
  if (!text.trim() || running) return;
  message.value = "";
  conversations.add({ role: "user", content: text });
  const asked = request(), one = { role: "assistant", content: "", reasoning: "" };
  keep(conversations.add(one));
  showConversation();
  const draw = shown(one), own = (running = new AbortController());
  busy(true);
  said.textContent = "";
  try {
    for await (const piece of answer(asked, key(), own.signal)) {
      if ("finished" in piece) one.note = summary(piece);
      one.content += piece.content ?? "";
      one.reasoning += piece.reasoning ?? "";
      draw();
    }
    said.textContent = one.content.slice(0, 1000);
  } catch (error) {
    one.note = own.signal.aborted ? "stopped" : error.message;
    one.failed = !own.signal.aborted;
    if (!one.content && !message.value) message.value = text; // to be sent again
    said.textContent = one.note;
    if (one.failed) describe();
  } finally {
    running = null;
    busy(false);
    draw();
    keep(conversations.save());
  }
}

let describing = 0; // the timer of another look at the server

// Tells which model answers, or why none does.
async function describe() {
  clearTimeout(describing);
  const { status, said: models } = await ask("v1/models", key()), model = models?.data?.[0];
  const why = { 401: "the server wants an API key", 503: models?.error?.message }[status] ?? "the server does not answer";
  const context = model?.meta?.n_ctx ? `, context of ${model.meta.n_ctx}` : "";
  const now = model ? `${model.id}${context}` : why;
  if (at("model").textContent !== now) at("model").textContent = now;
  if (status === 401) {
    if (settings.hidden) at("settings-toggle").click();
    settings.elements.key.focus();
  } else if (!model) describing = setTimeout(describe, AGAIN);
}

function toggle(button, panel, after = () => {}) {
  button.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    after();
  });
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); say(); });
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => { stop(); conversations.begin(); showConversation(); message.focus(); });
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
toggle(at("settings-toggle"), settings);
toggle(at("machine-toggle"), at("machine"), () => at("columns").classList.toggle("plain", at("machine").hidden));
settings.addEventListener("submit", (event) => event.preventDefault());
settings.elements.key.addEventListener("change", describe);
addEventListener("pagehide", () => { if (running) conversations.save(); }); // what of the answer has come
if (matchMedia("(max-width: 60rem)").matches) at("machine-toggle").click(); // the chat needs the room
keepSettings(settings);
conversations.follow(showList);
showConversation();
describe();
watch(key, () => !at("machine").hidden && !document.hidden);
