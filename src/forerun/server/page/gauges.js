// The row of gauges: the engine now, from differences of its snapshots, and the last minute as small lines.

import { isRestart, rates } from "./rates.js";
import { rate } from "./pane.js";
import { Sparkline } from "./sparkline.js";

const LENGTH = 60; // seconds of history
const MOST_REASONS = 4;

// Reasons of the engine's decisions about drafts, in words.
const REASONS = {
  drafted: "drafted", forced: "forced by a grammar", probe: "probe", low_acceptance: "guesses too often wrong", batch_full: "batch is full",
  cost: "drafting costs too much", no_candidate: "no guess", no_room: "last token", first_token: "first token", off_by_request: "off by request",
};

export class Gauges {
  #history = []; // { speed, plain, acceptance, rows, requests, cache, drafting, decisions }
  #last = null; // { snapshot, at }
  #tiles = {};

  constructor(section) {
    this.section = section;
    for (const article of section.querySelectorAll("[data-gauge]")) {
      const name = article.dataset.gauge;
      const svg = article.querySelector("svg");
      this.#tiles[name] = {
        article,
        output: article.querySelector("output"),
        sparkline: svg && new Sparkline(svg, name === "speed" ? ["line second", "line"] : ["line"]),
      };
    }
    this.estimate = section.querySelector("[data-part=estimate]");
    this.bars = section.querySelector(".bars");
  }

  update(snapshot, at) {
    this.section.classList.remove("away");
    const last = this.#last;
    this.#last = { snapshot, at };
    if (last && isRestart(last.snapshot, snapshot)) this.#history = [];
    else if (last && at - last.at > 5) this.#history.push(empty()); // a gap: the page was hidden, or the server away
    if (last && at > last.at && !isRestart(last.snapshot, snapshot)) this.#push(rates(last.snapshot, snapshot, at - last.at), snapshot);
    this.#draw(snapshot);
  }

  away() {
    this.section.classList.add("away");
  }

  #push(now, snapshot) {
    this.#history.push({
      speed: now.tokensPerSecond,
      plain: now.speedup === null ? null : now.tokensPerSecond / now.speedup,
      speedup: now.speedup,
      acceptance: now.acceptanceLength,
      rows: now.rowsPerPass,
      requests: snapshot.num_running + snapshot.num_waiting,
      cache: snapshot.kv_cache_usage,
      drafting: now.draftShare,
      decisions: now.decisions,
    });
    this.#history = this.#history.slice(-LENGTH);
  }

  #draw(snapshot) {
    const now = this.#history.at(-1) ?? empty();
    this.#show("speed", now.speed === null ? null : now.speed === 0 ? "idle" : rate(now.speed), now.speed === 0);
    this.#tiles.speed.sparkline.draw([this.#line("plain"), this.#line("speed")], LENGTH);
    this.estimate.textContent = now.speedup === null ? "" : `plain ≈ ${rate(now.plain)} · ${now.speedup.toFixed(2)}×`;

    for (const [name, shown, least, most] of [
      ["acceptance", (value) => value.toFixed(2), 1, 2], ["rows", (value) => value.toFixed(1), 0, null], ["drafting", percent, 0, 0.2],
    ]) {
      // ratios of nothing are not zero: the last one stays, dimmed
      const latest = this.#history.findLast((each) => each[name] !== null)?.[name] ?? null;
      this.#show(name, latest === null ? null : shown(latest), now[name] === null);
      this.#tiles[name].sparkline.draw([this.#line(name)], LENGTH, least, most);
    }
    this.#show("requests", `${snapshot.num_running} + ${snapshot.num_waiting}`);
    this.#tiles.requests.sparkline.draw([this.#line("requests")], LENGTH, 0, 1);
    this.#show("cache", percent(snapshot.kv_cache_usage));
    this.#tiles.cache.sparkline.draw([this.#line("cache")], LENGTH, 0, 0.1);
    this.#drawReasons();
  }

  #line(name) {
    return this.#history.map((each) => each[name]);
  }

  #show(name, text, isOld = false) {
    this.#tiles[name].output.textContent = text ?? "–";
    this.#tiles[name].article.classList.toggle("old", isOld);
  }

  #drawReasons() {
    const counts = {};
    for (const each of this.#history) {
      for (const [reason, count] of Object.entries(each.decisions)) counts[reason] = (counts[reason] ?? 0) + count;
    }
    const sorted = Object.entries(counts).sort(([, one], [, other]) => other - one);
    const total = sorted.reduce((sum, [, count]) => sum + count, 0);
    const rows = sorted.slice(0, MOST_REASONS).flatMap(([reason, count]) => {
      const name = document.createElement("dt");
      name.textContent = REASONS[reason] ?? reason;
      name.title = reason;
      const value = document.createElement("dd");
      const bar = document.createElement("span");
      bar.className = reason === "drafted" || reason === "forced" ? "bar-drafted" : "bar-other";
      bar.style.width = `${Math.max(1, (100 * count) / total)}%`;
      const number = document.createElement("span");
      number.textContent = String(count);
      value.append(bar, number);
      return [name, value];
    });
    if (!rows.length) {
      const none = document.createElement("dt");
      none.className = "faint";
      none.textContent = "no steps";
      rows.push(none);
    }
    this.bars.replaceChildren(...rows);
  }
}

function empty() {
  return { speed: null, plain: null, speedup: null, acceptance: null, rows: null, requests: null, cache: null, drafting: null, decisions: {} };
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
}
