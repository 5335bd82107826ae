// Unpacks the run and draws its page.
async function unpacked() {
  const text = document.getElementById("data").textContent.trim();
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function header(run) {
  const { task, model, method, seed } = run.headline;
  const state = run.complete ? "complete" : `step ${run.last}${run.steps ? ` of ${run.steps}` : ""}, not complete`;
  return el("header", null, el("h1", null, run.name), el("p", { class: "soft" }, `${method} on ${task}, model ${model}, seed ${seed}; ${state}`));
}

function curves(run) {
  return section("curves", "Curves", el("div", { class: "charts" }, run.curves.map(chart)));
}

// A link to a story opens it, wherever it stands.
function follow_links(run) {
  const go = () => {
    const match = /^#story-(\d+)$/.exec(location.hash);
    if (!match || !run.open_story || !run.open_story(Number(match[1]))) return;
    const inside = document.querySelector(".list").contains(document.activeElement);
    document.getElementById("story").scrollIntoView({ block: "nearest" });
    if (!inside) document.getElementById("story-title").focus();
  };
  addEventListener("hashchange", go);
  go();
}

// While the run goes on the page is written again, and loads itself again.
function reload_often(every) {
  const key = `resd ${location.pathname}`;
  try {
    const at = sessionStorage.getItem(key);
    if (at !== null) scrollTo(0, Number(at));
  } catch { /* a browser that keeps nothing shows the page from its top */ }
  let paused = false;
  const button = el("button", { "aria-pressed": false, on: { click: () => {
    paused = !paused;
    button.setAttribute("aria-pressed", paused);
    button.textContent = paused ? "paused" : `live, every ${every} s`;
  } } }, `live, every ${every} s`);
  setInterval(() => {
    if (paused) return;
    try { sessionStorage.setItem(key, scrollY); } catch { /* as above */ }
    location.reload();
  }, every * 1000);
  return el("span", { class: "live" }, button);
}

async function start() {
  const place = document.getElementById("page"), run = await unpacked();
  if (run.comparison) {
    comparison(run, place);
    document.body.dataset.drawn = "yes";
    return;
  }
  const parts = [summary(run), curves(run), playbook(run), stories(run)];
  const links = [["summary", "Summary"], ["curves", "Curves"], ["playbook", "Playbook"], ["stories", "Stories"]];
  const nav = el("nav", { "aria-label": "parts of the page" }, links.map(([id, text]) => el("a", { href: `#${id}` }, text)));
  place.replaceChildren(header(run), nav, ...parts);
  document.body.dataset.drawn = "yes";
  follow_links(run);
  const every = Number(document.body.dataset.every);
  if (every && !run.complete) nav.append(reload_often(every));
}
start().catch((error) => {
  document.getElementById("page").replaceChildren(el("p", { class: "warning" }, `This page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`));
  throw error;
});
