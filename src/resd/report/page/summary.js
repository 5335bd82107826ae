// What came of the run, what it cost, and what it warned of.
function tile(label, value, note) {
  return el("div", { class: "tile" }, el("span", { class: "soft small" }, label), el("b", null, value),
    note && el("span", { class: "soft small" }, note));
}

function summary(run) {
  const { start, best, last, baselines } = run.headline;
  const trivial = Object.entries(baselines).map(([name, value]) => `${name} ${percent(value)}`).join(", ");
  const tokens = run.cost.tokens.reduce((sum, row) => sum + row[1], 0);
  const tiles = [];
  if (start) tiles.push(tile("Start", percent(start.mean), `${start.name} at step ${start.step}`));
  if (best && best.step !== start.step) tiles.push(tile("Best", percent(best.mean), `${best.name} at step ${best.step}`));
  if (last && last.step !== best.step) tiles.push(tile("Last", percent(last.mean), `${last.name} at step ${last.step}`));
  if (trivial) tiles.push(tile("Trivial strategies", trivial, "the same problems"));
  tiles.push(tile("Rollouts", run.headline.rollouts.toLocaleString("en"), `${run.last} of ${run.steps || "?"} steps`));
  if (tokens) tiles.push(tile("Tokens generated", tokens.toLocaleString("en")));
  if (run.cost.total_seconds) tiles.push(tile("Time in steps", duration(run.cost.total_seconds), "loading not counted"));
  const costs = [];
  if (run.cost.tokens.length) costs.push(el("div", null, el("h3", null, "Generated tokens, by purpose"),
    bars(run.cost.tokens, (value) => value.toLocaleString("en"))));
  if (run.cost.seconds.length) costs.push(el("div", null, el("h3", null, "Seconds, by phase"), bars(run.cost.seconds, duration)));
  return section("summary", "Summary", el("div", { class: "tiles" }, tiles),
    helped(run), run.warnings.length ? [el("h3", null, many(run.warnings.length, "warning")),
      run.warnings.map((item) => el("p", { class: "warning" }, item.step ? `step ${item.step}: ` : "", item.text))]
      : el("p", { class: "soft" }, "The run warned of nothing."),
    before_and_after(run), el("div", { class: "columns" }, costs),
    el("details", null, el("summary", null, "Settings"), el("div", { class: "scroll" }, el("table", null,
      el("tbody", null, run.config.map(([key, value]) => el("tr", null, el("td", { class: "mono" }, key), el("td", { class: "mono" }, value))))))));
}

// The lessons that reflections found most helpful, and where they came from.
function helped(run) {
  const found = run.playbook.lessons.filter((lesson) => lesson_end(lesson).helpful > 0).sort(ORDERS["most helpful first"]).slice(0, 3);
  return found.length ? [el("h3", null, "The lessons that helped most"), el("ol", null, found.map((lesson) => el("li", null, el("b", null, lesson.content),
    el("span", { class: "soft" }, ` helpful ${lesson_end(lesson).helpful}, harmful ${lesson_end(lesson).harmful}; learnt at step ${lesson.born}`,
      lesson.example && [" from ", story_link(lesson.story, lesson.example)]))))] : null;
}

function verdict(passed) {
  return el("span", { class: passed ? "good" : "bad" }, passed ? "✓ passed" : "✗ failed");
}

// Answers to the same problems: of the first evaluation, and of one to be chosen.
function before_and_after(run) {
  const { steps, rows } = run.answers;
  if (!rows.length) return null;
  const best = run.headline.best ? run.headline.best.step : steps[steps.length - 1];
  const body = el("tbody");
  const cell = (row, step) => {
    const found = row.at[step];
    if (!found) return el("td", { class: "soft" }, "not kept");
    return el("td", null, verdict(found[1]), el("pre", null, run.texts[found[0]]),
      found[2] !== null && run.texts[found[2]] && el("p", { class: "small soft" }, run.texts[found[2]]));
  };
  const draw = (step) => body.replaceChildren(...rows.map((row) => el("tr", null,
    el("td", null, el("pre", null, run.texts[row.prompt])), cell(row, steps[0]), cell(row, step))));
  const choice = el("select", { id: "after", on: { change: () => draw(choice.value) } },
    steps.map((step) => el("option", { value: step, selected: step === best }, `step ${step}${step === best ? " (best)" : ""}`)));
  draw(steps.includes(best) ? best : steps[steps.length - 1]);
  return [el("h3", null, "The same test problems, before and after"), el("div", { class: "scroll" }, el("table", null,
    el("thead", null, el("tr", null, el("th", null, "problem"), el("th", null, `step ${steps[0]}`),
      el("th", null, el("label", { for: "after" }, "after "), choice))), body))];
}
