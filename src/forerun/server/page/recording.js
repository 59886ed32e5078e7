// One answer as it came in: what each step of the engine brought, and when.

import { streamed } from "./server.js";

export class Recording {
  steps = []; // { at: seconds since the request was sent, tokens }
  tokens = [];
  text = "";
  finish = null;
  metrics = null;
  seconds = 0;

  get numPasses() { return numPasses(this.tokens); }

  get isWhole() { return this.finish !== null; }
}

// Every pass of the target ends in a token of its own; only the last can be cut short behind an accepted one.
export function numPasses(tokens) {
  const own = tokens.reduce((count, token) => count + (token.kind !== "accepted"), 0);
  return own + (tokens.length > 0 && tokens.at(-1).kind === "accepted");
}

// Runs a request to its end, or until `signal` aborts it; then the error has what came until there in `recording`.
export async function record(path, body, signal, onStep) {
  const recording = new Recording();
  const sent = performance.now();
  const now = () => (performance.now() - sent) / 1000;
  try {
    for await (const { tokens, text, finish, metrics } of streamed(path, body, signal)) {
      recording.text += text;
      recording.finish = finish ?? recording.finish;
      recording.metrics = metrics ?? recording.metrics;
      if (!tokens.length && !finish) continue;
      recording.seconds = now();
      recording.steps.push({ at: recording.seconds, tokens });
      recording.tokens.push(...tokens);
      onStep(tokens, recording);
    }
  } catch (error) {
    error.recording = recording;
    throw error;
  }
  return recording;
}

// The first place at which two texts differ in their token ids, or null where they are the same.
export function firstDifference(one, other) {
  const length = Math.max(one.length, other.length);
  for (let place = 0; place < length; place++) {
    if (one[place]?.token_id !== other[place]?.token_id) return place;
  }
  return null;
}
