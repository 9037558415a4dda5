
// What the page shows of a run and of what was decided about it.

const get = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(get(id).textContent);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
// Equal for names that differ only in Unicode form, case or accents.
const fold = (text) => (
  text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toUpperCase().toLowerCase().normalize("NFC"));
const plural = (count) => `${count.toLocaleString("en")} photograph${count === 1 ? "" : "s"}`;

const run = parsed("run"), applied = parsed("decisions"), decisions = new Decisions(run);
const storage = `vitnp gallery ${run.run}`;
const grid = get("grid"), large = get("large"), summary = get("count").textContent;
const cards = Array.from(grid.children, (element, index) => ({
  element,
  index,
  name: element.querySelector(".name").textContent,
  folded: fold(run.photographs[index][1]) + "\n" + fold(element.querySelector(".name").textContent),
  classes: element.dataset.k.split(" ").filter(Boolean).map(Number),
  confidence: Number(element.dataset.c),
}));
const compare = new Intl.Collator(undefined, { numeric: true }).compare;
const orders = {
  name: (a, b) => compare(a.name, b.name),
  high: (a, b) => b.confidence - a.confidence || compare(a.name, b.name),
  low: (a, b) => a.confidence - b.confidence || compare(a.name, b.name),
};
const states = {
  all: () => true,
  open: (mark) => mark === undefined,
  wrong: (mark) => mark === "wrong",
  empty: (mark) => mark === "empty",
  moved: (mark) => typeof mark === "number",
};
let chosen = 0;  // class of the filter, 0 for all
let listed = cards;  // what the grid shows, in its order
let current = null;  // card of the last decision or look
let unsaved = false;
let typed = null;  // digits typed for one photograph in quick succession

// Classes of a photograph after the decisions.
function classesOf(card) {
  const mark = decisions.marks.get(card.index);
  if (mark === "wrong" || mark === "empty") return [];
  const labels = typeof mark === "number" ? [mark] : card.classes;
  return Array.from(new Set(labels.map((label) => decisions.root(label))));
}

function chip(label) {
  return make("span", {}, make("i", { className: `k${label}` }), make("bdi", { textContent: decisions.name(label) }));
}

function drawCard(card) {
  const mark = decisions.marks.get(card.index), { dataset, style } = card.element;
  if (mark === undefined) delete dataset.mark;
  else dataset.mark = typeof mark === "number" ? "moved" : mark;
  style.setProperty("--own", typeof mark === "number" ? `var(--c${decisions.root(mark)})` : "");
  card.element.querySelector(".classes").replaceChildren(...classesOf(card).map(chip));
}

function drawClasses() {
  const merged = Array.from(decisions.into.keys(), (label) => `.k${label}{--k:var(--c${decisions.root(label)})}`);
  get("merged").textContent = merged.join("");
  const counts = new Map();
  cards.forEach((card) => classesOf(card).forEach((label) => counts.set(label, (counts.get(label) || 0) + 1)));
  if (chosen) chosen = decisions.root(chosen);
  const button = (label, ...content) => {
    const element = make("button", { type: "button" }, ...content);
    element.dataset.k = label;
    element.setAttribute("aria-pressed", String(label === chosen));
    return element;
  };
  const all = button(0, "all ", make("small", { textContent: cards.length.toLocaleString("en") }));
  get("chips").replaceChildren(all, ...decisions.roots().map((label) => button(
    label,
    make("i", { className: `k${label}` }),
    make("bdi", { textContent: decisions.name(label) }), " ",
    make("small", { textContent: (counts.get(label) || 0).toLocaleString("en") }),
  )));
  drawEditor();
  get("class").replaceChildren(
    make("option", { value: "", textContent: "class…", disabled: true }),
    ...decisions.roots().map((label) => (
      make("option", { value: label, textContent: `${label}  ${decisions.name(label)}` }))),
  );
}

// The row in which the chosen class is named and merged.
function drawEditor() {
  const editor = get("editor");
  const members = Array.from(decisions.into.keys()).filter((label) => decisions.root(label) === chosen);
  editor.hidden = !chosen;
  editor.querySelector("i").className = `k${chosen}`;
  get("naming").value = chosen ? decisions.name(chosen) : "";
  const others = decisions.roots().filter((label) => label !== chosen);
  get("merge").hidden = others.length === 0;
  get("merge").replaceChildren(
    make("option", { value: 0, textContent: "merge into…" }),
    ...others.map((label) => make("option", { value: label, textContent: decisions.name(label) })),
  );
  get("part").hidden = members.length === 0;
  get("part").title = members.map((label) => run.classes[label - 1]).join(", ");
}

function drawProgress() {
  const done = cards.filter((card) => decisions.marks.has(card.index)).length, bar = get("progress");
  bar.firstElementChild.style.width = `${100 * done / Math.max(1, cards.length)}%`;
  bar.setAttribute("aria-valuemax", cards.length);
  bar.setAttribute("aria-valuenow", done);
  const fitting = listed.length === cards.length ? summary : `${listed.length.toLocaleString("en")} of ${summary}`;
  get("count").textContent = done ? `${fitting}, ${done.toLocaleString("en")} checked` : fitting;
  get("undo").disabled = decisions.done.length === 0;
  get("save").classList.toggle("primary", unsaved);
}

// What doesn't fit leaves the list: hiding it instead takes browsers several times as long.
function show() {
  const text = fold(get("search").value.trim()), fits = states[get("state").value];
  listed = cards.filter((card) => (
    (!chosen || classesOf(card).includes(chosen))
    && fits(decisions.marks.get(card.index))
    && card.folded.includes(text)));
  listed.sort(orders[get("order").value]);
  grid.replaceChildren(...listed.map((card) => card.element));
  get("none").hidden = listed.length > 0;
  drawProgress();
}

function choose(label) {
  chosen = label;
  drawClasses();
  show();
  scrollTo(0, 0);
}

function masks(on) {
  get("masks").checked = on;
  document.body.classList.toggle("bare", !on);
}

let fading = 0;
function say(text) {
  const note = get("note");
  note.textContent = text;
  note.hidden = false;
  (large.open ? large : document.body).append(note);
  clearTimeout(fading);
  fading = setTimeout(() => { note.hidden = true; }, 4000);
}

// --- the large view ---

function enlarge(card) {
  current = card;
  const shot = large.querySelector(".shot"), source = card.element.dataset.p;
  large.style.setProperty("--r", card.element.style.getPropertyValue("--r"));
  shot.replaceChildren(...card.element.querySelector(".shot").cloneNode(true).childNodes);
  large.querySelector(".name").textContent = card.name;
  large.querySelector(".files").replaceChildren(...card.element.querySelector(".files").cloneNode(true).childNodes);
  if (!large.open) large.showModal();
  drawLarge();
  if (source) {
    const sharp = new Image();
    sharp.addEventListener("load", () => { if (current === card) shot.querySelector("img").src = sharp.src; });
    sharp.src = source;
    const next = listed[listed.indexOf(card) + 1];
    if (next && next.element.dataset.p) new Image().src = next.element.dataset.p;
  }
}

function drawLarge() {
  if (!large.open) return;
  const mark = decisions.marks.get(current.index), place = listed.indexOf(current);
  large.dataset.mark = current.element.dataset.mark || "";
  large.style.setProperty("--own", current.element.style.getPropertyValue("--own"));
  const facts = current.element.querySelector(".facts").cloneNode(true).childNodes;
  const where = `${(place + 1).toLocaleString("en")} of ${listed.length.toLocaleString("en")}`;
  large.querySelector(".facts").replaceChildren(make("span", { textContent: where }), ...facts);
  for (const act of ["wrong", "empty"]) {
    large.querySelector(`[data-act=${act}]`).setAttribute("aria-pressed", String(mark === act));
  }
  large.querySelector("[data-act=back]").disabled = place <= 0;
  const labels = classesOf(current);
  get("class").hidden = current.classes.length === 0 || run.classes.length < 2;
  get("class").value = labels.length === 1 ? labels[0] : "";
}

// Go to the next or the previous photograph. Going on from a photograph in the large view checks it.
function turn(step) {
  const place = current ? listed.indexOf(current) : -1;
  if (large.open && step > 0 && !decisions.marks.has(current.index)) {
    decisions.change([["marks", current.index, "checked"]], false);
    changed([current]);
  }
  const card = listed[place + step];
  if (!card) {
    if (step > 0) say(large.open ? "That was the last one. Save decisions with s." : "This is the last one.");
  } else if (large.open) {
    enlarge(card);
  } else {
    goTo(card);
  }
}

function goTo(card) {
  current = card;
  card.element.querySelector("button").focus();
  card.element.scrollIntoView({ block: "nearest" });
}
