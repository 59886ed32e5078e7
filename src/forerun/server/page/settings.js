// The controls beside the prompt: read into a request, and remembered in this browser. Prompts and keys are not.

const KEY = "forerun.settings";
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;

// The control that a field of a request comes from, for errors that name the field.
const CONTROLS = {
  max_completion_tokens: "max_tokens", prompt: "prompt", messages: "prompt", "speculation.num_draft_tokens": "num_draft_tokens",
};

export class InvalidSetting extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

export class Settings {
  constructor(form) {
    this.form = form;
    this.#restore();
    for (const control of form.elements) control.addEventListener("input", () => this.#remember()); // some stand outside the form
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  get mode() { return this.form.elements.mode.value; }
  get speculates() { return this.form.elements.speculation.checked; }
  get race() { return this.form.elements.race.value; }
  get maxTokens() { return this.#number("max_tokens", true); }

  // The seed that is in the field, or a new one where there is none: so "run both" has one, and every run can be repeated.
  get seed() { return this.#number("seed", true) ?? this.drawSeed(); }

  drawSeed() {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    this.form.elements.seed.value = seed;
    this.#remember();
    return seed;
  }

  // Fields of a request that are the same for both modes; the server's own defaults stand for what is empty.
  get sampling() {
    const stop = this.form.elements.stop.value.split("\n").filter((line) => line !== "").map(unescaped);
    const given = { temperature: this.#number("temperature"), top_p: this.#number("top_p"), seed: this.seed };
    if (stop.length) given.stop = stop;
    return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== null));
  }

  speculation(enabled) {
    const asked = { enabled, tokens: true, report: true };
    const length = this.#number("num_draft_tokens", true);
    if (enabled) asked.num_draft_tokens = length ?? "auto";
    return asked;
  }

  control(param) {
    const name = CONTROLS[param] ?? param;
    return document.getElementById(name ?? "") ?? null;
  }

  // True where the mode had to change for it.
  disableChat(reason) {
    const chat = document.querySelector("input[name=mode][value=chat]");
    const wasChat = chat.checked;
    chat.disabled = true;
    if (wasChat) this.form.elements.mode.value = "completion";
    const note = document.getElementById("chat-note");
    note.textContent = reason;
    note.hidden = false;
    chat.setAttribute("aria-describedby", note.id);
    return wasChat;
  }

  #number(name, whole = false) {
    const input = this.form.elements[name];
    const label = input.labels[0].firstChild.textContent.trim();
    if (input.validity.badInput) throw new InvalidSetting(name, `${label}: give a number.`);
    if (input.value === "") return null;
    const value = Number(input.value);
    if (whole && !Number.isSafeInteger(value)) throw new InvalidSetting(name, `${label}: give a whole number up to ${LARGEST_SEED}.`);
    return value;
  }

  #restore() {
    let saved = {};
    try { saved = JSON.parse(localStorage.getItem(KEY) ?? "{}"); } catch { /* unreadable or switched off: the defaults stand */ }
    for (const control of this.form.elements) {
      if (!control.name || !(control.name in saved)) continue;
      if (control.type === "radio") control.checked = control.value === saved[control.name];
      else if (control.type === "checkbox") control.checked = saved[control.name] === true;
      else control.value = String(saved[control.name]);
    }
    for (const name of ["mode", "race"]) {
      if (!this.form.elements[name].value) document.querySelector(`input[name=${name}]`).checked = true;
    }
  }

  #remember() {
    const saved = {};
    for (const control of this.form.elements) {
      if (!control.name) continue;
      if (control.type === "checkbox") saved[control.name] = control.checked;
      else if (control.type !== "radio" || control.checked) saved[control.name] = control.value;
    }
    try { localStorage.setItem(KEY, JSON.stringify(saved)); } catch { /* they hold until the page is closed */ }
  }
}

function unescaped(line) {
  return line.replace(/\\(n|t|\\)/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}
