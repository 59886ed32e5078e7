// What this page asks of the server. Addresses are relative, so that it also works behind a prefix; the browser adds the key by itself.

import { readEvents } from "./sse.js";

// An error that the server explained. `param` names the field that it is about, where it is about one.
export class ServerError extends Error {
  constructor(message, status, param, retryAfter) {
    super(message);
    this.status = status;
    this.param = param ?? null;
    this.retryAfter = retryAfter ?? null;
  }
}

export async function getJSON(path, signal) {
  const response = await fetch(path, { signal, cache: "no-store" });
  if (!response.ok) throw await explained(response);
  return response.json();
}

// Yields { tokens, text, finish, metrics } for each event that brings any of these.
export async function* streamed(path, body, signal) {
  const response = await post(path, body, signal);
  let finished = false;
  for await (const event of readEvents(response)) {
    if (event.error) throw new ServerError(event.error.message, response.status, event.error.param);
    const choice = event.choices?.[0];
    finished ||= Boolean(choice?.finish_reason);
    yield {
      tokens: choice?.tokens ?? [],
      text: choice?.text ?? choice?.delta?.content ?? "",
      finish: choice?.finish_reason ?? null,
      metrics: event.metrics?.speculative_decoding ?? null,
    };
  }
  if (!finished) throw new ServerError("The server ended the answer before it was complete.", response.status);
}

async function post(path, body, signal) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  if (!response.ok) throw await explained(response);
  return response;
}

async function explained(response) {
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* a proxy's error page, say */ }
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ServerError(message, response.status, error.param, response.headers.get("Retry-After"));
}
