// The card that says what one token is: by pointer, by touch, and by the arrow keys inside an output.

import { KINDS } from "./kinds.js";
import { visibleInline } from "./visible.js";

const MARGIN = 8;
const OWN_SCROLL = 150; // ms in which a scroll event is of our own making

export class TokenCard {
  #shown = null;
  #movedAt = -Infinity; // when the keyboard last brought a token into view

  constructor(card, announce) {
    this.card = card;
    this.announce = announce;
    const onScroll = () => { if (performance.now() - this.#movedAt > OWN_SCROLL) this.hide(); };
    document.addEventListener("scroll", onScroll, { passive: true, capture: true });
    addEventListener("resize", () => this.hide());
    document.addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".token")) this.hide(); });
  }

  // `tokens()` are those of the output's elements, in their order.
  watch(output, tokens) {
    const show = (element) => this.#show(element, tokens()[element.dataset.index]);
    output.addEventListener("pointerover", (event) => {
      const element = event.target.closest(".token");
      if (element) show(element);
    });
    output.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.hide(); });
    output.addEventListener("click", (event) => {
      const element = event.target.closest(".token");
      if (element) show(element);
    });
    output.addEventListener("blur", () => this.hide());
    output.addEventListener("keydown", (event) => {
      const to = target(output, this.#shown, event);
      if (!to) return;
      event.preventDefault();
      this.#movedAt = performance.now();
      to.scrollIntoView({ block: "nearest" });
      const token = tokens()[to.dataset.index];
      show(to);
      this.announce(`${visibleInline(token.text) || "no text"}. ${facts(token).map(([name, value]) => `${name} ${value}`).join(", ")}`);
    });
  }

  hide() {
    this.#shown?.classList.remove("current");
    this.#shown = null;
    this.card.hidden = true;
  }

  get isShown() { return !this.card.hidden; }

  #show(element, token) {
    if (!token) return;
    this.hide();
    this.#shown = element;
    element.classList.add("current");
    this.card.replaceChildren(...content(token));
    this.card.hidden = false;
    const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.card;
    const below = at.bottom + MARGIN + height < innerHeight;
    const left = Math.max(MARGIN, Math.min(at.left, document.documentElement.clientWidth - width - MARGIN));
    this.card.style.left = `${left}px`;
    this.card.style.top = `${Math.max(MARGIN, below ? at.bottom + MARGIN : at.top - MARGIN - height)}px`;
  }
}

function target(output, shown, event) {
  const all = output.querySelectorAll(".token");
  const here = shown && output.contains(shown) ? Number(shown.dataset.index) : null;
  switch (event.key) {
    case "ArrowRight": return all[here === null ? 0 : here + 1];
    case "ArrowLeft": return all[here === null ? all.length - 1 : here - 1];
    case "Home": return all[0];
    case "End": return all[all.length - 1];
    default: return null;
  }
}

function facts(token) {
  const rows = [["kind", KINDS[token.kind]?.label ?? token.kind]];
  if (typeof token.logprob === "number") rows.push(["probability", percent(Math.exp(token.logprob))]);
  rows.push(["drafted by", token.drafter ?? "nobody"], ["token id", String(token.token_id)]);
  return rows;
}

function content(token) {
  const text = document.createElement("p");
  text.className = "card-text";
  text.textContent = token.text === "" ? "no text of its own" : visibleInline(token.text);
  const list = document.createElement("dl");
  for (const [name, value] of facts(token)) {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name[0].toUpperCase() + name.slice(1);
    description.textContent = value;
    if (name === "kind") description.className = `kind-name ${token.kind}`;
    list.append(term, description);
  }
  const meaning = document.createElement("p");
  meaning.className = "note";
  meaning.textContent = KINDS[token.kind]?.meaning ?? "";
  return [text, list, meaning];
}

function percent(share) {
  if (share > 0.9995 && share < 1) return "> 99.9 %";
  if (share < 0.0001) return "< 0.01 %";
  return `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;
}
