// Runs what is asked for: one answer, or plain and speculative decoding against each other.

import { Pane, rate } from "./pane.js";
import { Recording, firstDifference, record } from "./recording.js";
import { RaceChart } from "./race_chart.js";
import { replay } from "./replay.js";
import { openVerdict, showVerdict } from "./verdict.js";

const NOTES = {
  recorded: "Recorded one after the other, each alone and with nothing of the prompt in the cache; then replayed in the time that they took. Seconds count from the sending of the request.",
  together: "Both ran at the same time and shared the engine: compare them with each other, not with a run alone.",
};

export class Playground {
  #stopping = null; // of what runs now

  // `ask` gives { path, body(speculates, cacheSalt), maxTokens, speculates, race } of what the controls say; it throws what is wrong with them.
  constructor({ ask, panes, legend, verdict, note, card, onChange }) {
    Object.assign(this, { ask, panes, legend, verdict, note, card, onChange });
    this.recordings = [];
  }

  get isRunning() { return this.#stopping !== null; }

  stop() {
    this.#stopping?.abort();
  }

  clear() {
    this.recordings = [];
    this.panes.replaceChildren();
    this.#hideVerdict();
    this.legend.count([]);
  }

  // The answer, whole or as far as it came before Stop; throws what else went wrong.
  async runOne() {
    const asked = this.ask();
    return this.#exclusively(async (signal) => {
      this.#hideVerdict();
      const [pane] = this.#openPanes([asked.speculates ? "Speculative" : "Plain"], asked.maxTokens);
      const recording = await this.#record(asked.path, asked.body(asked.speculates), signal, pane, "running");
      this.recordings = [recording];
      this.legend.count(recording.tokens);
      return { recording, summary: summary(recording) };
    });
  }

  async runBoth() {
    const asked = this.ask();
    return this.#exclusively(async (signal) => {
      this.#hideVerdict();
      const panes = this.#openPanes(["Plain", "Speculative"], asked.maxTokens);
      this.note.textContent = NOTES[asked.race];
      this.note.hidden = false;
      const run = (which, words) => this.#record(asked.path, asked.body(which === 1, newSalt()), signal, panes[which], words);
      let both;
      if (asked.race === "together") {
        both = await Promise.all([run(0, "running"), run(1, "running")]);
      } else {
        panes[1].say("waits", "waits");
        both = [await run(0, "recording, 1 of 2")];
        if (both[0].isWhole) both.push(await run(1, "recording, 2 of 2"));
      }
      this.recordings = both;
      const recording = both.at(-1);
      this.legend.count(recording.tokens);
      if (both.length < 2 || !both.every((each) => each.isWhole)) return { recording, summary: "Stopped." };
      return { recording, summary: await this.#race(both, panes, asked.race === "recorded", signal) };
    });
  }

  // Shows the last two answers once more.
  async replay() {
    const panes = this.shown;
    await this.#exclusively((signal) => this.#race(this.recordings, panes, true, signal));
  }

  async #race(both, panes, isRecorded, signal) {
    const chart = new RaceChart(both);
    openVerdict(this.verdict, chart.element, () => this.replay());
    if (isRecorded) await replay(both, panes, chart, signal); else chart.draw(Infinity);
    const [plain, speculative] = both;
    const difference = firstDifference(plain.tokens, speculative.tokens);
    if (difference !== null) panes.forEach((pane) => pane.markDifference(difference));
    return showVerdict(this.verdict, { plain, speculative, difference, panes });
  }

  async #record(path, body, signal, pane, words) {
    pane.say(words, "running");
    try {
      const recording = await record(path, body, signal, (tokens, sofar) => {
        pane.add(tokens);
        pane.show(sofar.seconds);
        this.legend.count(sofar.tokens);
      });
      pane.show(recording.seconds, true);
      pane.say(ending(recording), "done");
      return recording;
    } catch (error) {
      pane.say(signal.aborted ? "stopped" : "failed", signal.aborted ? "stopped" : "failed");
      if (!signal.aborted) throw error;
      return error.recording ?? new Recording();
    }
  }

  #openPanes(titles, maxTokens) {
    this.shown = titles.map((title) => new Pane(title, maxTokens, this.card));
    this.panes.replaceChildren(...this.shown.map((pane) => pane.element));
    this.panes.classList.toggle("two", titles.length === 2);
    this.shown.forEach((pane) => pane.show(0));
    return this.shown;
  }

  #hideVerdict() {
    this.verdict.hidden = true;
    this.note.hidden = true;
  }

  async #exclusively(work) {
    const stopping = new AbortController();
    this.#stopping = stopping;
    this.onChange();
    try {
      return await work(stopping.signal);
    } catch (error) {
      stopping.abort(); // of two that ran together the other one ends too
      throw error;
    } finally {
      this.#stopping = null;
      this.onChange();
    }
  }
}

function ending({ finish }) {
  return finish === "length" ? "done, at its length" : "done, at its end";
}

function summary({ tokens, seconds, isWhole }) {
  const speed = seconds ? `, ${rate(tokens.length / seconds)} tokens per second` : "";
  return `${isWhole ? "Done" : "Stopped"}: ${tokens.length} tokens in ${seconds.toFixed(2)} seconds${speed}.`;
}

// Runs with different salts share nothing: the second one of a race does not find the first one's prompt in the cache.
function newSalt() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
