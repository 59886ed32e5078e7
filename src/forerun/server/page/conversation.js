// The messages of a chat so far, and how they look.

import { tokenElement } from "./tokens.js";
import { visible } from "./visible.js";

export class Conversation {
  #messages = []; // { role, content, tokens }

  constructor(element, card) {
    this.element = element;
    this.card = card;
  }

  get isEmpty() { return this.#messages.length === 0; }

  // For a request: with the system message first, where there is one.
  messages(system) {
    const said = this.#messages.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }

  add(role, content, tokens = []) {
    this.#messages.push({ role, content, tokens });
    const message = document.createElement("div");
    message.className = `message ${role}`;
    const who = document.createElement("p");
    who.className = "who";
    who.textContent = role === "user" ? "You" : "Model";
    const text = document.createElement("div");
    text.className = "output";
    if (tokens.length) {
      text.append(...tokens.map(tokenElement));
      text.tabIndex = 0;
      text.setAttribute("role", "group");
      text.setAttribute("aria-label", "Answer. The arrow keys go from token to token.");
      this.card.watch(text, () => tokens);
    } else {
      text.textContent = visible(content);
    }
    message.append(who, text);
    this.element.append(message);
    message.scrollIntoView({ block: "nearest" });
  }

  // Takes back the last message: its answer could not be had.
  takeBack() {
    this.element.lastElementChild?.remove();
    return this.#messages.pop()?.content ?? "";
  }

  clear() {
    this.#messages = [];
    this.element.replaceChildren();
  }
}
