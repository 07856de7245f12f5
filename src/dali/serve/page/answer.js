// One answer of the server, as it comes: server-sent events of /v1/chat/completions.

export class Refused extends Error {}

const GONE = "The server does not answer.";

export function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// What the server says at `path`, and with which status; 0: nothing.
export async function ask(path, key) {
  try {
    const response = await fetch(path, { headers: headers(key), cache: "no-store" });
    return { status: response.status, said: await response.json() };
  } catch {
    return { status: 0, said: null };
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const text = line.trimEnd();
        if (!text.startsWith("data:")) continue; // a comment keeps the connection open while the prompt is read
        const data = text.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function send(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const asked = { method: "POST", headers: headers(key), body, signal };
  const response = await fetch("v1/chat/completions", asked).catch((error) => {
    throw signal.aborted ? error : new Refused(GONE);
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(said?.error?.message ?? `The server answered ${response.status}.`);
}

// Yields {content, reasoning} pieces, and at last {finished, usage, timings}.
export async function* answer(request, key, signal) {
  const response = await send(request, key, signal);
  let finished = null, usage = null, timings = null;
  try {
    for await (const event of events(response.body)) {
      if (event.error) throw new Refused(event.error.message);
      usage = event.usage ?? usage;
      timings = event.timings ?? timings;
      const choice = event.choices?.[0];
      if (!choice) continue;
      finished = choice.finish_reason ?? finished;
      const { content, reasoning_content: reasoning } = choice.delta ?? {};
      if (content || reasoning) yield { content: content ?? "", reasoning: reasoning ?? "" };
    }
  } catch (error) {
    throw signal.aborted || error instanceof Refused ? error : new Refused("The answer broke off.");
  }
  if (finished === null) throw new Refused("The answer broke off.");
  yield { finished, usage, timings };
}
