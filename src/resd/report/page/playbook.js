// The playbook's life: a row a lesson, a bar from birth to death, and a slider over the steps.
function story_link(index, text) {
  return index === null || index === undefined ? text : el("a", { href: `#story-${index}` }, text);
}

// Counts of a lesson at the end of a step; null if it was not in the playbook.
function lesson_at(lesson, step) {
  if (step < lesson.born || (lesson.died !== null && step >= lesson.died)) return null;
  const state = lesson.states.filter((row) => row[0] <= step).pop();
  if (!state) return null;
  return { helpful: state[1], harmful: state[2], support: state[3], against: state[4], admitted: state[5] };
}
const lesson_end = (lesson) => {
  const [, helpful, harmful, support, against, admitted] = lesson.states[lesson.states.length - 1] || [0, 0, 0, 0, 0, false];
  return { helpful, harmful, support, against, admitted };
};

const MOMENTS = {
  added: "written by a curation", supported: "one more voice for it", opposed: "a voice against it",
  tagged: "tagged", rewritten: "rewritten; it was", admitted: "shown to the teacher from here on",
  withdrawn: "not shown to the teacher any more", dropped: "dropped",
};

function life_bar(lesson, steps, now) {
  // What came at the last step is as wide as a step too.
  const first = steps[0], last = steps[steps.length - 1] + 1, wide = 300;
  const x = (step) => ((step - first) / (last - first || 1)) * wide;
  const ends = lesson.died === null ? last : lesson.died;
  const pieces = lesson.states.map((state, i) => {
    const until = i + 1 < lesson.states.length ? lesson.states[i + 1][0] : ends;
    return svg("rect", { x: x(state[0]), y: state[5] ? 1 : 3, width: Math.max(1.5, x(until) - x(state[0])),
      height: state[5] ? 8 : 4, fill: state[5] ? "var(--c0)" : "var(--c7)" });
  });
  const marks = lesson.moments.filter((m) => m[1] === "tagged").map((m) => svg("rect",
    { x: x(m[0]), y: m[2] === "helpful" ? 10 : 13, width: 2.5, height: 3, fill: m[2] === "helpful" ? "var(--good)" : "var(--bad)" }));
  const death = lesson.died === null ? null
    : svg("path", { d: `M${x(ends) - 3} 1l6 8m0 -8l-6 8`, stroke: "var(--bad)", "stroke-width": 1.6 });
  return svg("svg", { viewBox: `-4 0 ${wide + 8} 16`, preserveAspectRatio: "none", "aria-hidden": true },
    pieces, marks, death, svg("line", { x1: x(now), x2: x(now), y1: 0, y2: 16, stroke: "var(--ink)", "stroke-width": 1 }));
}

function lesson_details(lesson) {
  const happened = new Map();
  for (const [step, what, detail, story, example] of lesson.moments) {
    const key = JSON.stringify([step, what, detail]);
    if (!happened.has(key)) happened.set(key, { step, what, detail, from: [] });
    if (example) happened.get(key).from.push(story_link(story, example));
  }
  const said = (m) => (m.what === "rewritten" ? [" ", el("span", { class: "was" }, m.detail)]
    : m.what === "dropped" ? ` (${lesson.reason})` : m.detail && ` ${m.detail}`);
  return el("ul", { class: "small" }, [...happened.values()].map((m) => el("li", null, `step ${m.step}: ${MOMENTS[m.what] || m.what}`, said(m),
    m.from.length > 1 && `, ${m.from.length} times`, m.from.length ? [", from ", m.from.slice(0, 6).map((link, i) => [i ? ", " : "", link]), m.from.length > 6 && ", …"] : "")));
}

const ORDERS = {
  "most helpful first": (a, b) => lesson_end(b).helpful - lesson_end(b).harmful - (lesson_end(a).helpful - lesson_end(a).harmful),
  "oldest first": (a, b) => a.born - b.born || a.id.localeCompare(b.id),
  "newest first": (a, b) => b.born - a.born || b.id.localeCompare(a.id),
  "most contested first": (a, b) => lesson_end(b).harmful + lesson_end(b).against - (lesson_end(a).harmful + lesson_end(a).against),
};

function playbook(run) {
  const { steps, lessons } = run.playbook;
  if (!steps.length) return section("playbook", "Playbook", el("p", { class: "soft" }, "This method keeps no playbook, or its traces were not kept."));
  const open = new Set();
  const slider = el("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, id: "when", on: { input: () => draw() } });
  const when = el("output", { for: "when", style: { minWidth: "9rem" } });
  const all = el("input", { type: "checkbox", id: "ever", on: { change: () => draw() } });
  const order = el("select", { "aria-label": "order", on: { change: () => draw() } }, Object.keys(ORDERS).map((name) => el("option", null, name)));
  const body = el("tbody"), note = el("p", { class: "soft small", "aria-live": "polite" });

  function row(lesson, now, before) {
    const counts = lesson_at(lesson, now), shown = counts || lesson_end(lesson);
    const fresh = counts && before !== null && !lesson_at(lesson, before);
    const toggle = el("button", { class: "lesson", "aria-expanded": open.has(lesson.id), on: { click: () => {
      open.has(lesson.id) ? open.delete(lesson.id) : open.add(lesson.id);
      draw();
      document.getElementById(`lesson-${lesson.id}`).querySelector("button").focus();
    } } }, lesson.content || "(its words were not kept)");
    const dead = lesson.died !== null && lesson.died <= now;
    const fate = dead ? `died at step ${lesson.died}: ${lesson.reason}` : counts ? (counts.admitted ? "shown to the teacher" : "candidate") : "not born yet";
    return [el("tr", { id: `lesson-${lesson.id}`, class: `${counts ? "" : "gone "}${fresh ? "fresh" : ""}` },
      el("td", null, toggle, el("br"), el("span", { class: "soft small" }, `${lesson.id}, born at step ${lesson.born}`,
        lesson.example && [" from ", story_link(lesson.story, lesson.example)], `; ${fate}`)),
      el("td", { class: "life" }, life_bar(lesson, steps, now)),
      el("td", { class: "number" }, el("span", { class: "good" }, `+${shown.helpful}`), " ", el("span", { class: "bad" }, `−${shown.harmful}`)),
      el("td", { class: "number" }, `${shown.support} : ${shown.against}`)),
    open.has(lesson.id) && el("tr", { class: "more" }, el("td", { colspan: 4 }, lesson_details(lesson)))];
  }
  function draw() {
    const index = Number(slider.value), now = steps[index], before = index ? steps[index - 1] : null;
    const alive = lessons.filter((lesson) => lesson_at(lesson, now));
    const admitted = alive.filter((lesson) => lesson_at(lesson, now).admitted).length;
    when.textContent = `after step ${now}`;
    note.textContent = `${many(admitted, "lesson")} shown to the teacher, ${many(alive.length - admitted, "candidate")}; `
      + `${many(lessons.length, "lesson")} ever written, ${lessons.filter((l) => l.died !== null && l.died <= now).length} of them dead by then.`;
    const chosen = (all.checked ? lessons : alive).slice().sort(ORDERS[order.value]);
    body.replaceChildren(...[chosen.map((lesson) => row(lesson, now, before))].flat(Infinity).filter(Boolean));
  }
  draw();
  return section("playbook", "The playbook's life",
    el("p", { class: "soft small" }, "Each lesson was written by the model after a failure. Bars run from birth to death: thick while the teacher sees the lesson, thin while it is a candidate; green marks below are tags as helpful, red ones as harmful; a cross is its death. Press a lesson for all that happened to it."),
    el("div", { class: "controls" }, el("label", { for: "when" }, "As it was"), slider, when, order,
      el("label", null, all, " all that ever lived")), note,
    el("div", { class: "scroll" }, el("table", { class: "lives" }, el("thead", null, el("tr", null, el("th", null, "lesson"),
      el("th", { class: "life" }, `steps ${steps[0]} to ${steps[steps.length - 1]}`), el("th", { class: "number" }, "tags"),
      el("th", { class: "number" }, "for : against"))), body)));
}
