// The story of an example: what was asked, answered, found wrong, learnt, and what the teacher says.
const FILTERS = {
  all: ["all", () => true],
  failed: ["failed", (s) => !s.passed],
  passed: ["passed", (s) => s.passed],
  rejected: ["reflection or curation rejected", (s) => s.rejected.length > 0],
  numbers: ["with token numbers", (s) => s.numbers],
  cut: ["cut off", (s) => s.finish === "length"],
};
const SORTS = {
  step: ["by step", (a, b) => a.step - b.step],
  loss: ["largest loss first", (a, b) => (b.loss ?? -1) - (a.loss ?? -1)],
  reward: ["smallest reward first", (a, b) => (a.reward ?? 0) - (b.reward ?? 0)],
};
const SECTIONS = ["playbook", "question", "trial", "feedback", "reflection", "solution"];
const BATCH = 200;

function disclosed(title, text, open) {
  return text ? el("details", { open }, el("summary", null, title), el("pre", null, text)) : null;
}

function written_part(run, item) {
  const title = { reflection: "Reflection", curation: "Curation", review: "Tags after the success", reflection_again: "Reflection, asked again", curation_again: "Curation, asked again" }[item.kind];
  return [el("h3", null, title, item.finish === "length" && el("span", { class: "chip bad", style: { marginLeft: ".5rem" } }, "cut off")),
    item.read.length ? el("table", null, el("tbody", null, item.read.map(([name, text]) => el("tr", null, el("td", { class: "soft", style: { width: "10rem" } }, name), el("td", null, run.texts[text])))))
      : el("p", { class: "soft" }, "Nothing could be read from it."),
    disclosed("as the model wrote it", run.texts[item.output], !item.read.length), item.prompt !== null && disclosed("what it was asked", run.texts[item.prompt])];
}

function teacher_part(run, story) {
  if (!story.teacher) return [el("h3", null, "The teacher's prompt"), el("p", { class: "soft" }, "Not kept, or this response taught nothing.")];
  const there = SECTIONS.filter((name) => story.teacher.some((piece) => piece[0] === name));
  return [el("h3", null, "The teacher's prompt"), el("ul", { class: "legend" }, there.map((name) => el("li", null, el("span", { class: `part ${name}` }, name)))),
    el("pre", null, story.teacher.map(([name, text]) => SECTIONS.includes(name) ? el("span", { class: `part ${name}`, title: name }, run.texts[text])
      : name ? el("span", null, `[${name}]\n${run.texts[text]}\n\n`) : run.texts[text]))];
}

function story_view(run, story) {
  const [passed, cases] = story.cases;
  const facts = [`step ${story.step}`, `reward ${number(story.reward)}`];
  if (cases > 1) facts.push(`${passed} of ${cases} cases`);
  facts.push(`${story.tokens} tokens after a prompt of ${story.prompt_tokens}`);
  if (story.seed) facts.push(`seed ${story.seed}`);
  const learnt = run.playbook.lessons.filter((lesson) => lesson.story === story.index);
  return [el("h3", { id: "story-title", tabindex: -1 }, `${story.example} `, verdict(story.passed), story.finish === "length" && el("span", { class: "chip bad" }, "cut off")),
    el("p", { class: "soft small" }, facts.join(", ")),
    story.rejected.map((text) => el("p", { class: "warning" }, `rejected: ${text}`)),
    learnt.length ? el("p", null, "Lessons born here: ", learnt.map((lesson, i) => [i ? "; " : "", el("b", null, lesson.content)])) : null,
    el("h3", null, "What the student was asked"), el("pre", null, run.texts[story.prompt]),
    el("h3", null, "Its response", story.numbers && ", as the teacher sees it"),
    story.numbers ? [token_view(story.numbers, story.tokens), disclosed("as text", run.texts[story.response])]
      : [el("pre", null, run.texts[story.response]), el("p", { class: "small soft" }, "The numbers of its tokens were not kept (traces.responses).")],
    el("h3", null, "Feedback of the environment"), story.feedback === null || !run.texts[story.feedback] ? el("p", { class: "soft" }, "none") : el("pre", null, run.texts[story.feedback]),
    story.written.map((item) => written_part(run, item)), teacher_part(run, story)];
}

function stories(run) {
  if (!run.stories.length) return section("stories", "Stories", el("p", { class: "soft" }, "No traces were kept (traces.keep)."));
  run.stories.forEach((story, index) => { story.index = index; });
  const steps = [...new Set(run.stories.map((story) => story.step))];
  const list = el("div", { class: "list", role: "navigation", "aria-label": "rollouts" }), detail = el("div", { id: "story", "aria-live": "off" });
  const count = el("span", { class: "soft small", "aria-live": "polite" });
  const pick = (label, rows) => el("select", { "aria-label": label, on: { change: () => draw() } }, rows.map(([value, text]) => el("option", { value }, text)));
  const step = pick("step", [["", "every step"], ...steps.map((value) => [value, `step ${value}`])]);
  const filter = pick("which", Object.entries(FILTERS).map(([name, row]) => [name, row[0]]));
  const sort = pick("order", Object.entries(SORTS).map(([name, row]) => [name, row[0]]));
  const words = el("input", { type: "search", placeholder: "words or an example's id", "aria-label": "search", on: { input: () => draw() } });
  let current = -1, shown = BATCH;

  function item(story) {
    return el("a", { href: `#story-${story.index}`, "aria-current": story.index === current }, el("span", { class: "row" },
      el("span", null, story.example), el("span", { class: story.passed ? "good" : "bad" }, story.passed ? "✓" : "✗", story.loss === null ? "" : ` ${number(story.loss, 2)}`)),
    el("span", { class: "snippet" }, `step ${story.step}: ${run.texts[story.response]}`));
  }
  function draw(more) {
    shown = more === true ? shown + BATCH : BATCH;
    const wanted = words.value.toLowerCase();
    const found = run.stories.filter((story) => (!step.value || story.step === Number(step.value)) && FILTERS[filter.value][1](story)
      && (!wanted || `${story.example} ${run.texts[story.prompt]} ${run.texts[story.response]}`.toLowerCase().includes(wanted))).sort(SORTS[sort.value][1]);
    count.textContent = many(found.length, "rollout") + (run.left_out ? `; ${run.left_out} more were left out to keep the page small` : "");
    list.replaceChildren(...found.slice(0, shown).map(item), ...(found.length > shown ? [el("button", { on: { click: () => draw(true) } }, "more")] : []));
  }
  list.addEventListener("keydown", (event) => {
    const links = [...list.querySelectorAll("a")], at = links.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
    if (next === undefined || !links[next]) return;
    event.preventDefault();
    links[next].focus();
  });
  function open(index) {
    const story = run.stories[index];
    if (!story) return false;
    current = index;
    for (const link of list.querySelectorAll("a")) link.setAttribute("aria-current", link.getAttribute("href") === `#story-${index}`);
    detail.replaceChildren(...story_view(run, story).flat(Infinity).filter(Boolean));
    return true;
  }
  const telling = run.stories.findIndex((story) => !story.passed && story.numbers && story.written.length > 1);
  draw();
  open(Math.max(0, telling));
  run.open_story = open;
  return section("stories", "The story of an example", el("div", { class: "controls" }, step, filter, sort, words, count),
    el("div", { class: "stories" }, list, detail));
}
