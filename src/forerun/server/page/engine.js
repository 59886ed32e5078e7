// The engine's state, asked for each second while somebody looks; more rarely while the server is away.

import { getJSON } from "./server.js";

const EVERY = 1000;
const LONGEST_WAIT = 10000;

export class EngineFeed {
  #timer = null;
  #failures = 0;

  // `onState(engine, at)` with each answer, `onAway(seconds, error)` when there was none: seconds until the next try.
  constructor(onState, onAway) {
    this.onState = onState;
    this.onAway = onAway;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.#ask()));
    if (!document.hidden) this.#ask();
  }

  #pause() {
    clearTimeout(this.#timer);
  }

  async #ask() {
    clearTimeout(this.#timer);
    let wait = EVERY;
    try {
      const state = await getJSON("v1/engine", AbortSignal.timeout(8000));
      this.#failures = 0;
      this.onState(state, performance.now() / 1000);
    } catch (error) {
      this.#failures += 1;
      wait = Math.min(LONGEST_WAIT, EVERY * 2 ** Math.min(this.#failures - 1, 8));
      this.onAway(wait / 1000, error);
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), wait);
  }
}
