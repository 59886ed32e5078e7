// What went wrong, said kindly, with the field that it is about.

import { ServerError } from "./server.js";
import { InvalidSetting } from "./settings.js";

export class Problem {
  #marked = null;

  constructor(element, controlOf) {
    this.element = element;
    this.controlOf = controlOf;
  }

  clear() {
    this.element.hidden = true;
    this.element.textContent = "";
    if (this.#marked) {
      this.#marked.removeAttribute("aria-invalid");
      this.#marked.removeAttribute("aria-errormessage");
    }
    this.#marked = null;
  }

  show(error) {
    this.clear();
    this.element.textContent = explain(error);
    this.element.hidden = false;
    this.element.scrollIntoView({ block: "nearest" });
    const control = error.param ? this.controlOf(error.param) : null;
    if (control) {
      control.setAttribute("aria-invalid", "true");
      control.setAttribute("aria-errormessage", this.element.id);
      control.focus({ preventScroll: true });
      this.#marked = control;
    }
  }
}

function explain(error) {
  if (error instanceof InvalidSetting) return error.message;
  if (!(error instanceof ServerError)) {
    return error instanceof TypeError ? "The server cannot be reached. It may be starting, or the connection is gone; what you typed is still here." : `Something on this page broke: ${error.message}`;
  }
  const named = error.param && !error.message.includes(error.param) ? `${error.param}: ` : "";
  switch (error.status) {
    case 401: return "The server did not take the key. Reload the page to give it again.";
    case 429: return `The server has as much to do as it can take${error.retryAfter ? `; try again in ${error.retryAfter} s` : ": try again shortly"}. (${error.message})`;
    case 503: return `The server takes no requests now. (${error.message})`;
    case 400: case 404: case 413: case 422: return `The server refused this request. ${named}${error.message}`;
    default: return error.message;
  }
}
