// The page of a comparison: curves, table, seeds in pairs, and each run's own page.
function plain_table(heads, rows) {
  return el("div", { class: "scroll" }, el("table", null, el("thead", null, el("tr", null, heads.map((head, i) => el("th", { class: i ? "number" : null }, head)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map((cell, i) => el("td", { class: i ? "number" : null }, cell)))))));
}

function comparison(run, place) {
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const parts = [
    section("curves", "Curves", el("p", { class: "soft small" }, "Bold: the median over seeds. Faint: each seed."), el("div", { class: "charts" }, run.curves.map(chart))),
    section("table", "Table", plain_table(["variant", "seeds", "rollouts", "mean@n", "min", "max", "best@n", "rollouts to 0.5", "seconds a run"],
      run.rows.map(([label, ...values]) => [label, ...values.map((value) => number(value))]))),
  ];
  if (run.pairs.length) parts.push(section("pairs", "Seed by seed", el("p", { class: "soft small" },
    "The last evaluation of each variant minus that of the first one with the same seed. Sign test: how often chance alone splits so unevenly; five seeds can give 0.0625 at the least."),
  plain_table(["difference", "of", "mean", "each seed", "better", "sign test"], run.pairs.map((pair) => [pair.name, pair.value, pair.mean === null ? "" : signed(pair.mean),
    pair.seeds.map((seed, i) => `${seed}: ${signed(pair.differences[i])}`).join("  "),
    `${pair.differences.filter((value) => value > 0).length} of ${pair.seeds.length}`, number(pair.sign, 4)]))));
  parts.push(section("runs", "Runs", plain_table(["run", "mean@n", "best@n"], run.runs.map((item) => [
    item.page ? el("a", { href: item.page }, `${item.label}, seed ${item.seed}`) : `${item.label}, seed ${item.seed}`, number(item.mean), number(item.best)])),
  run.failures.map(([label, seed, reason]) => el("p", { class: "warning" }, `${label}, seed ${seed}: ${reason}`))));
  place.replaceChildren(el("header", null, el("h1", null, run.name), el("p", { class: "soft" }, run.title)), ...parts);
}
