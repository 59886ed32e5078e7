// A small history in SVG: one or two lines over the last minute.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 28;

export class Sparkline {
  #paths;

  constructor(svg, classes = ["line"]) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.#paths = classes.map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("vector-effect", "non-scaling-stroke");
      svg.append(path);
      return path;
    });
  }

  // `lines`: each a list of numbers or nulls (gaps), the newest last; all share one scale from `least` to the largest, or to `most`.
  draw(lines, length, least = 0, most = null) {
    const top = Math.max(most ?? 0, least + 1e-9, ...lines.flat().filter((value) => value !== null));
    lines.forEach((values, which) => {
      let path = "";
      let isGap = true;
      values.forEach((value, at) => {
        if (value === null) { isGap = true; return; }
        const x = WIDTH * (1 - (values.length - 1 - at) / (length - 1));
        const y = 1 + (HEIGHT - 2) * (1 - (value - least) / (top - least));
        path += `${isGap ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
        if (isGap) path += "h0.01";
        isGap = false;
      });
      this.#paths[which].setAttribute("d", path);
    });
  }
}
