// A response's tokens, shaded by what the teacher makes of them.
const VIEWS = {
  pull: "the teacher's pull: log p teacher − log p student",
  loss: "loss",
  surprise: "surprise: −log p student",
};

function token_shade(numbers, i, view) {
  if (view === "pull") {
    if (!numbers.teacher) return "transparent";
    const pull = numbers.teacher[i] - numbers.student[i];
    return `rgba(var(${pull > 0 ? "--more" : "--less"}), ${Math.min(0.75, Math.abs(pull) / 5).toFixed(3)})`;
  }
  const value = view === "loss" ? numbers.loss[i] / (Math.max(...numbers.loss.map(Math.abs)) || 1) : -numbers.student[i] / 8;
  return `rgba(var(--heat), ${Math.min(0.75, Math.max(0, value)).toFixed(3)})`;
}

// What is invisible gets a sign.
const visible = (text) => text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅";
const quoted = (text) => `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;

function top_table(title, rows, token) {
  if (!rows || !rows.length) return el("div");
  return el("div", null, el("b", { class: "small" }, title), el("table", { class: "small" }, el("tbody", null, rows.map(([text, log_p]) =>
    el("tr", null, el("td", { class: "mono" }, text === token ? el("b", null, quoted(text)) : quoted(text)), el("td", { class: "number" }, percent(Math.exp(log_p))))))));
}

function token_view(numbers, total) {
  let view = numbers.teacher ? "pull" : "loss", picked = 0;
  const other = (i) => numbers.teacher_top && numbers.teacher_top[i].length > 0 && numbers.teacher_top[i][0][0] !== numbers.texts[i];
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  const spans = numbers.texts.map((text, i) => el("span", { class: `tok${other(i) ? " other" : ""}`, tabindex: i ? -1 : 0, role: "button",
    "aria-label": `token ${i + 1}: ${text}`, on: { pointerenter: () => pick(i), focus: () => pick(i), keydown: (event) => move(event, i) } }, visible(text)));
  const box = el("pre", { class: "tokens", style: { maxHeight: "none" } }, spans, total > spans.length ? el("span", { class: "soft" }, ` … ${total - spans.length} more tokens`) : null);
  function move(event, i) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -i, End: spans.length - 1 - i }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(spans.length - 1, i + step));
    spans[next].focus();
  }
  function pick(i) {
    spans[picked].classList.remove("picked");
    spans[picked].tabIndex = -1;
    picked = i;
    spans[i].classList.add("picked");
    spans[i].tabIndex = 0;
    const facts = [`p student ${percent(Math.exp(numbers.student[i]))}`];
    if (numbers.teacher) facts.push(`p teacher ${percent(Math.exp(numbers.teacher[i]))}`, `pull ${number(numbers.teacher[i] - numbers.student[i], 2)}`);
    facts.push(`loss ${number(numbers.loss[i])}`);
    detail.replaceChildren(el("div", null, el("b", { class: "mono" }, quoted(numbers.texts[i])), ` token ${i + 1}: ${facts.join(", ")}`),
      el("div", { class: "tops" }, top_table("Student's likeliest", numbers.student_top[i], numbers.texts[i]),
        top_table("Teacher's likeliest", numbers.teacher_top && numbers.teacher_top[i], numbers.texts[i])));
  }
  const scale = el("span", { class: "small soft" });
  function shade() {
    spans.forEach((span, i) => { span.style.background = token_shade(numbers, i, view); });
    const heat = "linear-gradient(90deg, transparent, rgba(var(--heat), .75))";
    const pull = "linear-gradient(90deg, rgba(var(--less), .75), transparent, rgba(var(--more), .75))";
    scale.replaceChildren(view === "pull" ? "against the token" : "low", el("span", { class: "scale", style: { background: view === "pull" ? pull : heat } }), view === "pull" ? "for it" : "high");
  }
  const choice = el("select", { "aria-label": "shade the tokens by", on: { change: () => { view = choice.value; shade(); } } },
    Object.entries(VIEWS).filter(([name]) => name !== "pull" || numbers.teacher).map(([name, text]) => el("option", { value: name }, text)));
  shade();
  const worst = numbers.loss.indexOf(Math.max(...numbers.loss));
  pick(Math.max(0, worst));
  return [el("div", { class: "controls" }, choice, scale), box,
    numbers.teacher_top && el("p", { class: "small soft" }, "Dotted underline: the teacher would rather have said something else. Hover, or walk with the arrow keys; the token of the largest loss is shown first."), detail];
}
