// Messages as the reader sees them. Nothing that anyone wrote is ever taken for HTML.

export function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

// Text with fenced code apart. What has not changed stays the same element, so that what a reader has marked there stays marked.
function show(text, into) {
  const parts = text.split(/^```/m).map((part, index) => (index % 2 ? ["PRE", part.replace(/^[^\n]*\n?/, "")] : ["DIV", part]));
  parts.forEach(([tag, part], index) => {
    const old = into.children[index];
    if (old?.tagName === tag) {
      if (old.textContent !== part) old.textContent = part;
      return;
    }
    const made = element(tag, part, tag === "DIV" ? "text" : "");
    if (tag === "PRE") made.tabIndex = 0; // long lines are scrolled by keys, too
    if (old) old.replaceWith(made);
    else into.append(made);
  });
  while (into.children.length > parts.length) into.lastChild.remove();
}

// The element of a message, and what shows it anew once it has changed.
export function article(one) {
  const made = element("article", "", one.role);
  made.append(element("h2", one.role === "user" ? "You" : "Answer"));
  const reasoning = element("details"), thought = element("div", "", "text");
  reasoning.append(element("summary", "Reasoning"), thought);
  const body = element("div"), note = element("p", "", "note");
  made.append(reasoning, body, note);
  const update = () => {
    reasoning.hidden = !one.reasoning;
    if (thought.textContent !== (one.reasoning ?? "")) thought.textContent = one.reasoning ?? "";
    show(one.content, body);
    note.textContent = one.note ?? "";
    note.hidden = !one.note;
    note.classList.toggle("failed", Boolean(one.failed));
  };
  update();
  return { made, update };
}

// What an answer came to, in a line.
export function summary({ finished, usage, timings }) {
  const parts = [];
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (timings?.predicted_per_second)
    parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s${timings.modelled ? " (modelled)" : ""}`);
  if (usage?.prompt_tokens) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt of ${usage.prompt_tokens}${cached ? `, ${cached} of them kept from before` : ""}`);
  }
  if (finished === "length") parts.push("stopped at the limit of tokens");
  return parts.join(", ");
}
