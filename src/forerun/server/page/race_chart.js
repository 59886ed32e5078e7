// A race as two lines: tokens over seconds. The steeper one is the faster one.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;

export class RaceChart {
  #paths;

  constructor(recordings) {
    this.recordings = recordings;
    this.seconds = Math.max(...recordings.map((recording) => recording.seconds), 1e-6);
    this.count = Math.max(...recordings.map((recording) => recording.tokens.length), 1);
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("class", "race-chart");
    this.element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", "Tokens over seconds: plain in grey, speculative in colour");
    this.#paths = ["plain-line", "speculative-line"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("vector-effect", "non-scaling-stroke");
      this.element.append(path);
      return path;
    });
  }

  // The lines up to so many seconds of the race.
  draw(until) {
    this.recordings.forEach(({ steps }, which) => {
      let tokens = 0;
      let path = `M0 ${HEIGHT - 1}`;
      for (const step of steps) {
        if (step.at > until) break;
        path += `H${this.#x(step.at)}`;
        tokens += step.tokens.length;
        path += `V${this.#y(tokens)}`;
      }
      this.#paths[which].setAttribute("d", path);
    });
  }

  #x(seconds) { return ((WIDTH * seconds) / this.seconds).toFixed(1); }

  #y(tokens) { return (HEIGHT - 1 - ((HEIGHT - 2) * tokens) / this.count).toFixed(1); }
}
