// How a race ended: who was first and by how much, and whether the tokens are the same.

const TIE = 0.01; // of the longer time

// While the race is on: its chart, and room for the words.
export function openVerdict(element, chart, onReplay) {
  const said = document.createElement("div");
  said.className = "said";
  said.append(words("who", "The race is on"), words("", "\u00a0"));
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Replay";
  button.disabled = true;
  button.addEventListener("click", onReplay);
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = "tokens over seconds";
  figure.append(chart, caption);
  element.replaceChildren(said, figure, button);
  element.hidden = false;
}

// Says it in an opened `element`, and returns the words.
export function showVerdict(element, { plain, speculative, difference, panes }) {
  const [first, other, at] = speculative.seconds <= plain.seconds ? [speculative, plain, 1] : [plain, speculative, 0];
  const isTie = other.seconds - first.seconds <= TIE * other.seconds;
  const name = at === 1 ? "Speculative" : "Plain";
  const lead = (other.seconds - first.seconds).toFixed(2);
  const speed = isTie ? "A tie: less than 1 % apart" : `${name} was first by ${lead} s: ${(other.seconds / first.seconds).toFixed(2)}× as fast`;
  if (!isTie) panes[at].element.classList.add("first");

  const count = Math.max(plain.tokens.length, speculative.tokens.length);
  const same = difference === null ? `Identical: ${count} of ${count} tokens` : `Different from token ${difference + 1} of ${count} on`;

  element.querySelector(".said").replaceChildren(words("who", speed), words(difference === null ? "same" : "other", same));
  element.querySelector("button").disabled = false;
  return `${speed}. ${same}.`;
}

function words(className, text) {
  const element = document.createElement("p");
  element.className = className;
  element.textContent = text;
  return element;
}
