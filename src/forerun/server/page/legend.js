// The legend: what the colours mean, how many tokens have each, and a press to hide or show one.

import { KINDS, countKinds } from "./kinds.js";

export class Legend {
  #buttons = {};

  constructor(element, result) {
    for (const [kind, { label, meaning }] of Object.entries(KINDS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "legend-item";
      button.title = meaning;
      button.setAttribute("aria-pressed", "true");
      const sample = document.createElement("span");
      sample.className = `token sample ${kind}`;
      sample.textContent = label;
      const count = document.createElement("span");
      count.className = "count";
      button.append(sample, count);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        result.classList.toggle(`hide-${kind}`, !shown);
      });
      element.append(button);
      this.#buttons[kind] = count;
    }
    this.count([]);
  }

  count(tokens) {
    const counts = countKinds(tokens);
    for (const kind of Object.keys(KINDS)) {
      const share = tokens.length ? ` · ${Math.round((100 * counts[kind]) / tokens.length)} %` : "";
      this.#buttons[kind].textContent = `${counts[kind]}${share}`;
    }
  }
}
