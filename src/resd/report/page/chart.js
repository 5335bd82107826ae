// Small line charts and stacked areas, read by mouse or by the arrow keys.
const WIDE = 400, HIGH = 170, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 22;

// About four round numbers from low to high.
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((times) => times * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

// Sums from below, so that each line is the upper edge of its area.
function stacked(lines) {
  const below = new Map();
  return lines.map((line) => {
    const floor = line.x.map((x) => below.get(x) || 0);
    const y = line.y.map((value, i) => value + floor[i]);
    line.x.forEach((x, i) => below.set(x, y[i]));
    return { ...line, floor, top: y };
  });
}

function chart(data) {
  const stack = data.kind === "stack";
  const lines = stack ? stacked(data.lines) : data.lines.map((line) => ({ ...line, top: line.y }));
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const ys = lines.flatMap((line) => line.top);
  const fraction = data.unit === "fraction";
  const low = Math.min(0, ...ys), most = Math.max(fraction ? 1 : low + 1e-9, ...ys), high = most + 0.04 * (most - low);
  const x = (value) => LEFT + ((value - xs[0]) / (xs[xs.length - 1] - xs[0] || 1)) * (WIDE - LEFT - RIGHT);
  const y = (value) => HIGH - BOTTOM - ((value - low) / (high - low)) * (HIGH - TOP - BOTTOM);
  const colour = (i) => `var(--c${(lines[i].colour ?? i) % 8})`;
  const points = (xs_, ys_) => xs_.map((value, i) => `${x(value).toFixed(1)},${y(ys_[i]).toFixed(1)}`);

  const drawn = lines.map((line, i) => {
    if (stack) {
      const back = points(line.x, line.floor).reverse();
      return svg("polygon", { points: [...points(line.x, line.top), ...back].join(" "), fill: colour(i), "fill-opacity": 0.75 });
    }
    if (line.x.length === 1) return svg("circle", { cx: x(line.x[0]), cy: y(line.y[0]), r: 3, fill: colour(i) });
    return svg("polyline", { points: points(line.x, line.top).join(" "), fill: "none", stroke: colour(i),
      "stroke-width": line.faint ? 1 : 2, "stroke-opacity": line.faint ? 0.35 : 1, "stroke-linejoin": "round",
      "stroke-dasharray": line.dashed ? "4 3" : null });
  });
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HIGH - BOTTOM });
  const names = lines.map((line, i) => {
    const value = el("b", { class: "value" });
    const key = el("i", { class: line.dashed ? "dashed" : null, style: { background: colour(i), color: colour(i) } });
    return { value, node: el("li", null, key, `${line.name} `, value) };
  });
  const at = el("span", { class: "soft small" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", tabindex: 0,
    "aria-label": `${data.title}; the arrow keys read values` },
  ticks(low, high).map((tick) => [svg("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, number(tick))]),
  ticks(xs[0], xs[xs.length - 1]).filter(Number.isInteger).map((tick) => svg("text",
    { x: x(tick), y: HIGH - 6, "text-anchor": "middle" }, tick)),
  drawn, cursor);

  let index = xs.length - 1;
  function show(i, visible) {
    index = Math.max(0, Math.min(xs.length - 1, i));
    const step = xs[index];
    cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step));
    cursor.style.visibility = visible ? "visible" : "hidden";
    at.textContent = ` ${data.x || "step"} ${step}`;
    lines.forEach((line, k) => {
      const place = line.x.indexOf(step);
      names[k].value.textContent = place < 0 ? "" : number(line.y[place]);
    });
  }
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const where = ((event.clientX - box.left) / box.width) * WIDE;
    const near = xs.reduce((best, value, i) => (Math.abs(x(value) - where) < Math.abs(x(xs[best]) - where) ? i : best), 0);
    show(near, true);
  });
  const rest = () => show(xs.length - 1, false);
  picture.addEventListener("pointerleave", rest);
  picture.addEventListener("blur", rest);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(index + move, true);
  });
  show(xs.length - 1, false);
  return el("figure", null, el("figcaption", null, data.title,
    data.unit && el("span", { class: "soft small" }, ` (${data.unit})`), at), picture,
  el("ul", { class: "legend" }, names.filter((name, i) => !lines[i].faint).map((name) => name.node)));
}
