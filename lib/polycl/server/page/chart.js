// A curve as an SVG that says in words what it shows; the page has the same figures as a table beside it.

const WIDTH = 320, HEIGHT = 150, LEFT = 44, RIGHT = 8, TOP = 10, BOTTOM = 26;
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Two round ends around all values, so that the axis does not jump with every point. */
function ends(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const step = 10 ** Math.floor(Math.log10(Math.max(high - low, Math.abs(high) / 10, 1e-4)));
  const bottom = Math.floor(low / step) * step;
  return [bottom, Math.max(Math.ceil(high / step) * step, bottom + step)];
}

export const rounded = (value) => Number(value.toPrecision(3)).toString();

/** A figure of `points`, `[step, value]` each, over `steps`. `kind` is a class of the style sheet. */
export function chart(title, points, steps, kind) {
  const [low, high] = ends(points.map((point) => point[1]));
  const last = Math.max(steps || 0, points[points.length - 1][0], 1);
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * step / last;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const [firstPoint, lastPoint] = [points[0], points[points.length - 1]];
  const words = `${title}: ${rounded(firstPoint[1])} at step ${firstPoint[0]}, ${rounded(lastPoint[1])} at step ${lastPoint[0]}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": words });
  for (const value of [low, high]) {
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "axis" }));
    svg.append(shape("text", { x: LEFT - 6, y: y(value) + 5, "text-anchor": "end" }, rounded(value)));
  }
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 6 }, "0"));
  svg.append(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `step ${last}`));
  const path = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  svg.append(shape("polyline", { points: path, class: `line ${kind}` }));
  if (points.length <= 12) {
    for (const [step, value] of points) svg.append(shape("circle", { cx: x(step), cy: y(value), r: 3, class: `dot ${kind}` }));
  }
  const caption = document.createElement("figcaption");
  caption.textContent = `${title}, now ${rounded(lastPoint[1])}`;
  const figure = document.createElement("figure");
  figure.append(caption, svg);
  return figure;
}
