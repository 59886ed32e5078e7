// One answer on the page: its name, how far it is and how fast, and its tokens.

import { numPasses } from "./recording.js";
import { tokenElement } from "./tokens.js";

export class Pane {
  tokens = [];

  constructor(title, maxTokens, card) {
    this.maxTokens = maxTokens;
    this.element = make("article", "pane");
    this.element.setAttribute("aria-label", title);
    const head = make("header", "pane-head");
    this.title = make("h3", "", title);
    this.state = make("span", "state");
    head.append(this.title, this.state);

    this.bar = make("div", "bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", `${title}: tokens so far`);
    this.bar.setAttribute("aria-valuemin", "0");
    this.fill = make("div", "fill");
    this.bar.append(this.fill);

    const figures = make("dl", "figures");
    this.figures = Object.fromEntries(["tokens", "seconds", "tokens/s", "per pass"].map((name) => {
      const group = make("div", "");
      const value = make("dd", "", "–");
      group.append(make("dt", "", name), value);
      figures.append(group);
      return [name, value];
    }));

    this.output = make("div", "output");
    this.output.tabIndex = 0;
    this.output.setAttribute("role", "group");
    this.output.setAttribute("aria-label", `${title}: text. The arrow keys go from token to token.`);
    card.watch(this.output, () => this.tokens);
    this.element.append(head, this.bar, figures, this.output);
  }

  reset() {
    this.tokens = [];
    this.output.replaceChildren();
    this.element.classList.remove("first");
    this.show(0);
  }

  add(tokens) {
    const follows = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 40;
    const elements = tokens.map((token, at) => tokenElement(token, this.tokens.length + at));
    this.tokens = this.tokens.concat(tokens);
    this.output.append(...elements);
    if (follows) this.output.scrollTop = this.output.scrollHeight;
  }

  // Progress and figures at so many seconds. At its end an answer fills its bar, also where it ended before `max_tokens`.
  show(seconds, isOver = false) {
    const count = this.tokens.length;
    const passes = numPasses(this.tokens);
    const share = isOver ? 1 : this.maxTokens ? Math.min(1, count / this.maxTokens) : 0;
    this.fill.style.transform = `scaleX(${share})`;
    this.bar.setAttribute("aria-valuemax", String(this.maxTokens ?? count));
    this.bar.setAttribute("aria-valuenow", String(count));
    this.figures.tokens.textContent = String(count);
    this.figures.seconds.textContent = seconds.toFixed(2);
    this.figures["tokens/s"].textContent = count && seconds ? rate(count / seconds) : "–";
    this.figures["per pass"].textContent = passes ? (count / passes).toFixed(2) : "–";
  }

  say(words, state = "") {
    this.state.textContent = words;
    this.element.dataset.state = state;
  }

  // Shows the first token that differs from the other answer's.
  markDifference(place) {
    let element = this.output.children[place];
    if (!element) {
      element = make("span", "token missing", "ends here");
      this.output.append(element);
    }
    element.classList.add("differs");
    element.scrollIntoView({ block: "nearest" });
  }
}

export function rate(value) {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
