// Conversations, kept in this browser alone: [{id, title, messages: [{role, content, reasoning?, note?, failed?}]}], the newest first.

const KEY = "dali.conversations", CHOSEN = "dali.conversation", SETTINGS = "dali.settings";

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise; // not ours, or no storage here
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or forbidden: the page goes on without
  }
}

function isMessage(one) {
  return ["user", "assistant"].includes(one?.role) && typeof one.content === "string";
}

function kept() {
  const found = read(KEY, []);
  const whole = (one) => typeof one?.id === "string" && Array.isArray(one.messages) && one.messages.every(isMessage);
  return Array.isArray(found) ? found.filter(whole) : [];
}

export class Conversations {
  constructor() {
    this.all = kept();
    const chosen = read(CHOSEN, null);
    this.current = this.all.find((one) => one.id === chosen) ?? this.begin();
  }

  // Another conversation, not to be kept before it has a message.
  begin() {
    const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // an insecure context has no UUIDs
    this.all = this.all.filter((one) => one.messages.length > 0);
    this.current = { id, title: "New conversation", messages: [] };
    this.all.unshift(this.current);
    return this.current;
  }

  choose(id) {
    this.current = this.all.find((one) => one.id === id) ?? this.current;
    write(CHOSEN, this.current.id);
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    if (this.current.id === id) this.current = this.all[0] ?? this.begin();
    return this.save();
  }

  add(message) {
    if (this.current.messages.length === 0) this.current.title = message.content.trim().slice(0, 60);
    this.current.messages.push(message);
    return this.save();
  }

  // Whether the browser took them.
  save() {
    return write(KEY, this.all.filter((one) => one.messages.length > 0)) && write(CHOSEN, this.current.id);
  }

  // Another tab has saved: its conversations are the newer ones, but for the one at hand.
  adopt() {
    const theirs = kept().map((one) => (one.id === this.current.id ? this.current : one));
    this.all = theirs.includes(this.current) ? theirs : [this.current, ...theirs];
  }

  // Calls `then` when another tab has saved.
  follow(then) {
    addEventListener("storage", (event) => {
      if (event.key !== KEY) return;
      this.adopt();
      then();
    });
  }

  // What the model is to read: questions with their answers, and the last question. What failed or was stopped before it said
  // anything is left out with its question, as templates want the roles to alternate.
  get history() {
    const messages = this.current.messages;
    const answered = (one) => Boolean(one?.content) && !one.failed;
    const counts = (one, index) =>
      one.role === "assistant" ? answered(one) : index === messages.length - 1 || answered(messages[index + 1]);
    return messages.filter(counts).map(({ role, content }) => ({ role, content }));
  }
}

// A key is a secret: it stays in memory, until the page is left.
export function keepSettings(form) {
  const before = read(SETTINGS, {});
  for (const field of form.elements) {
    const value = before[field.name];
    if (field.name !== "key" && typeof value === "string") field.value = value;
  }
  form.addEventListener("input", () => {
    const values = Object.fromEntries(new FormData(form));
    delete values.key;
    write(SETTINGS, values);
  });
}
