// Tokens as elements. Text goes in as text, never as markup.

import { KINDS } from "./kinds.js";
import { visible } from "./visible.js";

export function tokenElement(token, index) {
  const element = document.createElement("span");
  element.className = `token ${token.kind in KINDS ? token.kind : "plain"}`;
  element.dataset.index = index;
  if (token.text === "") element.classList.add("silent");
  // every newline gets a mark before it; the mark is drawn by the style sheet, so that copied text is the text
  const lines = visible(token.text).split("\n");
  lines.forEach((line, at) => {
    if (at) {
      const newline = document.createElement("span");
      newline.className = "newline";
      newline.textContent = "\n";
      element.append(newline);
    }
    if (line) element.append(line);
  });
  return element;
}
