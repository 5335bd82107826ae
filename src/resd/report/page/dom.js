// Makes elements. Text goes in as text nodes alone: what a model wrote is never read as HTML.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// A number as short as it can be read; an empty text for what is not known.
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return String(Number(value.toFixed(Math.abs(value) >= 100 ? 0 : digits)));
}
const percent = (value) => (value === null || value === undefined ? "" : `${number(100 * value, 1)} %`);
const many = (value, one) => `${value.toLocaleString("en")} ${one}${value === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 90) return `${number(seconds, 1)} s`;
  if (seconds < 5400) return `${number(seconds / 60, 1)} min`;
  return `${number(seconds / 3600, 1)} h`;
}

// Rows of label, value and a bar of the value's share.
function bars(rows, show) {
  const most = Math.max(...rows.map((row) => row[1]), 1e-9);
  return el("table", { class: "bars" }, el("tbody", null, rows.map(([name, value]) => el("tr", null,
    el("td", null, name.replaceAll("_", " ")),
    el("td", null, el("div", { class: "bar", style: { width: `${(100 * value) / most}%` } })),
    el("td", { class: "number" }, show(value))))));
}

function section(id, title, ...children) {
  return el("section", { id, "aria-label": title }, el("h2", null, title), children);
}
