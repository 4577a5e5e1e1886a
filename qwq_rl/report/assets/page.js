"use strict";
// What HTML alone cannot do: exact values on hover and arrow keys, the switch of the axis, folding families, seeds as tabs, and the
// browser of rollouts. Text of a model only ever becomes a text node.

const make = (tag, kind, text) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));

// ---- Tooltips of charts
const tip = document.getElementById("tip");
const data = new WeakMap();

function show(plot, index) {
  const points = data.get(plot), svg = plot.querySelector("svg"), box = svg.getBoundingClientRect();
  const [x, heading, rows] = points[index], scale = box.width / svg.viewBox.baseVal.width;
  plot.dataset.index = index;
  plot.classList.add("live");
  const cursor = plot.querySelector(".cursor");
  cursor.setAttribute("x1", x);
  cursor.setAttribute("x2", x);
  tip.replaceChildren(make("b", "", heading), ...rows.map(([name, colour, value]) => {
    const row = make("div"), label = make("span", "", name);
    label.prepend(make("i", `c${colour}`, "●"));
    row.append(label, make("span", "", value));
    return row;
  }));
  tip.hidden = false;
  const left = box.left + x * scale, top = box.top + Math.min(...rows.map((row) => row[3])) * scale;
  const beyond = left + tip.offsetWidth + 24 > innerWidth;
  tip.style.left = `${Math.max(4, beyond ? left - tip.offsetWidth - 12 : left + 12)}px`;
  tip.style.top = `${Math.max(4, Math.min(top - 12, innerHeight - tip.offsetHeight - 4))}px`;
}

function hide(plot) {
  plot.classList.remove("live");
  tip.hidden = true;
}

function nearest(plot, clientX) {
  const svg = plot.querySelector("svg"), box = svg.getBoundingClientRect();
  const x = ((clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const distances = data.get(plot).map((point) => Math.abs(point[0] - x));
  return distances.indexOf(Math.min(...distances));
}

for (const plot of document.querySelectorAll(".plot[tabindex]")) {
  data.set(plot, JSON.parse(plot.querySelector("script").textContent));
  plot.addEventListener("pointermove", (event) => show(plot, nearest(plot, event.clientX)));
  plot.addEventListener("pointerdown", (event) => show(plot, nearest(plot, event.clientX)));
  plot.addEventListener("pointerleave", () => hide(plot));
  plot.addEventListener("blur", () => hide(plot));
  plot.addEventListener("keydown", (event) => {
    const last = data.get(plot).length - 1, now = Number(plot.dataset.index ?? -1);
    const next = { ArrowRight: Math.min(now + 1, last), ArrowLeft: Math.max(now - 1, 0), Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide(plot);
    if (next === undefined) return;
    event.preventDefault();
    show(plot, next);
  });
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// ---- The horizontal axis: updates or CPU seconds, on all charts at once
for (const field of document.querySelectorAll("[data-toggle=axis]")) {
  field.addEventListener("change", (event) => {
    document.documentElement.dataset.axis = event.target.value;
    for (const input of document.querySelectorAll("[data-toggle=axis] input")) input.checked = input.value === event.target.value;
  });
}

// ---- Families fold under their domain
for (const button of document.querySelectorAll("button.fold")) {
  const rows = [...button.closest("table").querySelectorAll("tr.families")].filter((row) => row.dataset.domain === button.dataset.domain);
  const fold = (open) => {
    button.setAttribute("aria-expanded", open);
    for (const row of rows) row.hidden = !open;
  };
  button.hidden = false;
  button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") !== "true"));
  fold(false);
}

// ---- Where the reader is
const links = [...document.querySelectorAll("nav.sections a")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links) link.toggleAttribute("aria-current", link.hash === `#${CSS.escape(entry.target.id)}` || link.hash === `#${entry.target.id}`);
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of document.querySelectorAll("section[id]")) seen.observe(section);

// ---- Seeds as tabs
const articles = [...document.querySelectorAll("article.seed")];
function choose(name) {
  for (const article of articles) article.hidden = article.id !== name;
  for (const button of document.querySelectorAll("[data-tab]")) button.setAttribute("aria-pressed", button.dataset.tab === name);
}
if (articles.length) {
  document.querySelector("nav.tabs").hidden = false;
  for (const button of document.querySelectorAll("[data-tab]")) button.addEventListener("click", () => choose(button.dataset.tab));
  const follow = () => {
    const wanted = articles.find((article) => location.hash === `#${article.id}` || location.hash.startsWith(`#${article.id}-`));
    if (!wanted) return;
    choose(wanted.id);
    document.getElementById(location.hash.slice(1).split("/")[0])?.scrollIntoView();
  };
  choose(articles[0].id);
  addEventListener("hashchange", follow);
  follow();
}

// ---- The browser of rollouts
const SIGNS = { correct: "✓", wrong: "✗", fault: "!", open: "○" };
const SPECIAL = /(<\|[^|<>]{1,60}\|>|<\/?(?:think|tool_call|tool_response|tools)>)/;

/** Append text with its special tokens dimmed; `kind` styles the rest. */
function say(node, text, kind) {
  for (const part of text.split(SPECIAL)) {
    if (part) node.append(make("span", SPECIAL.test(part) ? "token" : kind, part));
  }
}

/** A response: reasoning up to the last `</think>`, then the answer. `open`: the prompt ends inside the thinking block. */
function response(mate, open) {
  const node = make("p", "said");
  for (const [index, [role, text]] of mate.t.entries()) {
    if (mate.t.length > 1) node.append(make("span", "turn", `${index ? "\n" : ""}${role}\n`));
    const end = text.lastIndexOf("</think>");
    if (role !== "model") say(node, text, "");
    else if (end >= 0) {
      say(node, text.slice(0, end), "think");
      say(node, text.slice(end), "answer");
    } else say(node, text, (open && index === 0) || text.includes("<think>") ? "think" : "answer");
  }
  return node;
}

function card(mate, open) {
  const node = make("article", "mate"), head = make("header"), foot = make("footer");
  head.append(make("span", `v-${mate.v}`, `${SIGNS[mate.v]} ${mate.v}`));
  head.append(make("span", "", `reward ${fixed(mate.r, 2)}`));
  const lines = mate.w.map(([name, status, score, reason]) => `${name}: ${status} (${fixed(score, 2)})${reason ? `, ${reason}` : ""}`);
  if (mate.x.length) lines.push(`gates not passed: ${mate.x.join(", ")}`);
  if (mate.q !== null) lines.push(`reward model: beats ${fixed(100 * mate.q, 0)} % of its group`);
  lines.push(`advantage ${fixed(mate.a, 2)}; ${mate.n} tokens${mate.f === "stop" ? "" : `; ended by ${mate.f}`}`);
  for (const line of lines) foot.append(make("div", "", line));
  node.append(head, response(mate, open), foot);
  return node;
}

function group(shown, state) {
  const mates = shown.m.filter((mate) => !state.verdict || mate.v === state.verdict);
  if (!mates.length) return null;
  const node = make("div", "group"), head = make("header"), prompt = make("p", "said"), tally = make("span", "tally"), list = make("div", "mates");
  const name = shown.y.startsWith(`${shown.d}/`) ? shown.y : `${shown.d}/${shown.y}`;
  head.append(make("b", "", name), make("span", "", shown.row), make("span", "", `${mates.length} of ${shown.of} samples`));
  for (const mate of shown.m) tally.append(make("span", `v-${mate.v}`, SIGNS[mate.v]));
  tally.setAttribute("aria-label", `the group: ${shown.m.map((mate) => mate.v).join(", ")}`);
  tally.setAttribute("role", "img");
  head.append(tally);
  say(prompt, shown.p.replace(/\n$/, ""), "");
  const open = shown.p.trimEnd().endsWith("<think>");
  list.append(...mates.map((mate) => card(mate, open)));
  node.append(head, prompt, list);
  return node;
}

function select(label, options, value, changed) {
  const node = make("select");
  for (const [key, words] of options) node.append(new Option(words, key, false, key === value));
  node.addEventListener("change", () => changed(node.value));
  const around = make("label", "", label);
  around.append(node);
  return around;
}

function browse(root) {
  const stages = JSON.parse(document.getElementById(root.dataset.source).textContent);
  const anchor = root.dataset.anchor;
  const state = { stage: stages.length - 1, step: 0, area: "", verdict: "" };
  const controls = make("div", "controls"), list = make("div", "groups");
  list.setAttribute("aria-live", "off");
  root.replaceChildren(controls, list);

  function readHash() {
    const parts = location.hash.slice(1).split("/").map(decodeURIComponent);
    if (parts[0] !== anchor || parts.length < 3) return false;
    const stage = stages.findIndex((one) => one.label === parts[1]);
    if (stage < 0) return false;
    const step = stages[stage].updates.findIndex((one) => one.u >= Number(parts[2]));
    Object.assign(state, { stage, step: step < 0 ? stages[stage].updates.length - 1 : step, area: parts[3] || "", verdict: parts[4] || "" });
    return true;
  }

  function change(next) {
    Object.assign(state, next);
    draw();
    const stage = stages[state.stage], parts = [anchor, stage.label, stage.updates[state.step].u, state.area, state.verdict];
    history.replaceState(null, "", `#${parts.map(encodeURIComponent).join("/")}`);
  }

  function drawControls() {
    const stage = stages[state.stage], update = stage.updates[state.step];
    const areas = [...new Set(stage.updates.flatMap((one) => one.groups.flatMap((each) => [each.d, `${each.d}/${each.y.replace(`${each.d}/`, "")}`])))].sort();
    const focused = controls.contains(document.activeElement) ? document.activeElement.dataset.role : "";
    const slider = make("input"), step = make("label", "step", "Update"), value = make("output", "", `${update.u} of ${stage.updates.at(-1).u}`);
    Object.assign(slider, { type: "range", min: 0, max: stage.updates.length - 1, value: state.step });
    slider.dataset.role = "step";
    slider.setAttribute("aria-valuetext", `update ${update.u}`);
    slider.addEventListener("input", () => change({ step: Number(slider.value) }));
    step.append(slider, value);
    const chips = make("div", "chips");
    for (const verdict of ["", "correct", "wrong", "fault", "open"]) {
      const count = update.groups.flatMap((each) => each.m).filter((mate) => !verdict || mate.v === verdict).length;
      if (verdict === "open" && !count && state.verdict !== "open") continue;
      const chip = make("button", "", `${verdict ? `${SIGNS[verdict]} ${verdict}` : "all"} ${count}`);
      chip.dataset.role = `verdict-${verdict}`;
      chip.setAttribute("aria-pressed", state.verdict === verdict);
      chip.addEventListener("click", () => change({ verdict }));
      chips.append(chip);
    }
    const which = select("Stage", stages.map((one, index) => [String(index), one.label]), String(state.stage), (next) =>
      change({ stage: Number(next), step: 0, area: "" }));
    const where = select("Domain", [["", "all"], ...areas.map((area) => [area, area.replace("/", " · ")])], state.area, (area) => change({ area }));
    which.querySelector("select").dataset.role = "stage";
    where.querySelector("select").dataset.role = "area";
    // The slider that is being dragged must stay the same element.
    const held = focused === "step" && controls.querySelector("[data-role=step]");
    if (held && Number(held.max) === stage.updates.length - 1) {
      const output = controls.querySelector("output");
      output.textContent = value.textContent;
      held.setAttribute("aria-valuetext", `update ${update.u}`);
      controls.querySelector(".chips").replaceWith(chips);
      return;
    }
    controls.replaceChildren(which, where, step, chips);
    if (focused) controls.querySelector(`[data-role="${focused}"]`)?.focus();
  }

  function draw() {
    drawControls();
    const { groups } = stages[state.stage].updates[state.step];
    const wanted = groups.filter((each) => !state.area || each.d === state.area || `${each.d}/${each.y.replace(`${each.d}/`, "")}` === state.area);
    const nodes = wanted.map((each) => group(each, state)).filter(Boolean);
    list.replaceChildren(...(nodes.length ? nodes : [make("p", "empty", "No rollout of this kind among those shown of this update.")]));
  }

  const given = readHash();
  if (!given) state.step = stages[state.stage].updates.length - 1;
  draw();
  if (given) document.getElementById(anchor).scrollIntoView();
  addEventListener("hashchange", () => {
    if (!readHash()) return;
    draw();
    document.getElementById(anchor).scrollIntoView();
  });
}
for (const root of document.querySelectorAll(".browser")) browse(root);
