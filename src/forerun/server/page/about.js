// What the page is connected to: the model, its drafters, and how exact it is.

const EXACTNESS = {
  bitwise: ["bitwise exact", "With speculation and without it every number is the same, bit for bit: so are the tokens."],
  distribution: ["exact in law", "Every token has the target's own law; where two tokens are nearly equally likely, runs may fall either way."],
};

export function showAbout(element, engine) {
  const [exact, why] = EXACTNESS[engine.exactness?.kind] ?? [engine.exactness?.kind ?? "", ""];
  const parts = [
    part("model", engine.model),
    part("", engine.drafters?.length ? `drafters: ${engine.drafters.join(", ")}` : "no drafter"),
    part("exact", exact, why),
  ];
  element.replaceChildren(...parts.filter((each) => each.textContent));
}

function part(className, text, title = "") {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  if (title) element.title = title;
  return element;
}
