
// What a person does: decisions, their keeping, and the events that lead to them.

// Draw and keep what has changed; without cards, everything.
function changed(some) {
  unsaved = true;
  (some || cards).forEach(drawCard);
  drawClasses();
  drawProgress();
  drawLarge();
  keep(decisions.record());
}

function keep(record) {
  try {
    localStorage.setItem(storage, JSON.stringify(record));
  } catch {
    say("This browser doesn't keep decisions; save them before you close the page.");
  }
}

function decide(card, mark) {
  const before = decisions.marks.get(card.index);
  if (decisions.change([["marks", card.index, before === mark ? "checked" : mark]])) changed([card]);
  current = card;
}

function setClass(card, label) {
  if (card.classes.length === 0) return say("There is no mask that could have a class.");
  const same = card.classes.every((own) => decisions.root(own) === decisions.root(label));
  if (decisions.change([["marks", card.index, same ? "checked" : label]])) changed([card]);
  current = card;
}

function digit(card, key) {
  const more = typed && typed.card === card && performance.now() - typed.time < 900;
  let text = (more ? typed.text : "") + key;
  if (Number(text) > run.classes.length) text = key;
  else if (more) undo(false);  // 1 and 2 make one decision, for class 12
  const steps = decisions.done.length;
  if (Number(text) === 0) decide(card, "empty");
  else if (Number(text) <= run.classes.length) setClass(card, Number(text));
  typed = decisions.done.length > steps ? { card, text, time: performance.now() } : null;
}

// Name a class; a name that another class has merges the two.
function rename(label, text) {
  const name = text.replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, " ").replace(/\p{Cs}/gu, "").trim();
  const other = decisions.roots().find((root) => root !== label && decisions.name(root) === name);
  if (other) return merge(label, other);
  const plain = !name || name === run.classes[label - 1];
  if (decisions.change([["names", label, plain ? undefined : name]])) changed();
  drawEditor();
}

function merge(label, target) {
  const name = decisions.name(label);
  if (decisions.change([["into", label, target]])) {
    changed();
    show();
    say(`${name} is now part of ${decisions.name(target)}; u undoes it.`);
  }
}

function part(label) {
  const members = Array.from(decisions.into).filter(([, target]) => target === label);
  if (decisions.change(members.map(([member]) => ["into", member]))) {
    changed();
    show();
  }
}

function undo(visibly = true) {
  follow(decisions.undo(), visibly);
}

// Show what undo or redo has changed.
function follow(step, visibly = true) {
  if (!step) return;
  changed();
  const marked = step.filter((part) => part.map === "marks");
  if (!visibly) return;
  if (marked.length === 1) {
    const card = cards[marked[0].key];
    if (!listed.includes(card)) show();
    if (listed.includes(card)) (large.open ? enlarge : goTo)(card);
  } else {
    show();
  }
}

function save() {
  const record = decisions.record();
  const file = new Blob([JSON.stringify(record, null, 1) + "\n"], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(file), download: "decisions.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = false;
  keep(record);
  drawProgress();
  say("Saved decisions.json. Now: vitnp apply decisions.json OUT");
}

async function load(file) {
  try {
    decisions.load(JSON.parse(await file.text()));
    changed();
    show();
    say(`Loaded ${plural(decisions.marks.size)}.`);
  } catch (error) {
    say(`Not loaded: ${error instanceof SyntaxError ? "this file is no JSON" : error.message}.`);
  }
}

// Begin with what this browser has kept, or with what was applied after that.
function restore() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(storage));
  } catch { /* nothing was kept */ }
  const newer = applied && (!kept || (applied.saved || "") > (kept.saved || ""));
  for (const record of newer ? [applied, kept] : [kept, applied]) {
    try {
      if (!record || !record.vitnp) continue;
      const any = decisions.load(record, false);
      unsaved = any && !(applied && applied.saved === record.saved);
      return;
    } catch { /* damaged, or of another version */ }
  }
}

// --- events ---

grid.addEventListener("click", (event) => {
  const element = event.target.closest(".card");
  if (element) enlarge(cards.find((card) => card.element === element));
});
grid.addEventListener("focusin", (event) => {
  const element = event.target.closest(".card");
  current = cards.find((card) => card.element === element) || current;
});
get("chips").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose(Number(button.dataset.k) === chosen ? 0 : Number(button.dataset.k));
});
get("search").addEventListener("input", show);
get("state").addEventListener("change", show);
get("order").addEventListener("change", show);
get("masks").addEventListener("change", (event) => masks(event.target.checked));
get("naming").addEventListener("change", (event) => rename(chosen, event.target.value));
get("naming").addEventListener("focus", (event) => event.target.select());
get("naming").addEventListener("keydown", (event) => { if (event.key === "Escape") drawEditor(); });
get("merge").addEventListener("change", (event) => merge(chosen, Number(event.target.value)));
get("part").addEventListener("click", () => part(chosen));
get("undo").addEventListener("click", () => undo());
get("save").addEventListener("click", save);
get("load").addEventListener("click", () => get("file").click());
get("file").addEventListener("change", (event) => {
  if (event.target.files.length) load(event.target.files[0]);
  event.target.value = "";
});
get("begin").addEventListener("click", () => {
  const open = listed.find((card) => !decisions.marks.has(card.index)) || listed[0];
  if (open) enlarge(open);
});
get("keys").addEventListener("click", () => get("help").showModal());
get("help").addEventListener("click", (event) => {
  if (event.target === get("help") || event.target.closest("button")) get("help").close();
});
get("class").addEventListener("change", (event) => setClass(current, Number(event.target.value)));
const acts = {
  wrong: () => decide(current, "wrong"),
  empty: () => decide(current, "empty"),
  back: () => turn(-1),
  next: () => turn(1),
  close: () => large.close(),
};
large.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (button) acts[button.dataset.act]();
});
large.addEventListener("close", () => {
  show();
  document.body.append(get("note"));
  if (current && listed.includes(current)) goTo(current);
});
let touch = null;
large.querySelector(".stage").addEventListener("touchstart", (event) => {
  touch = event.touches.length === 1 ? event.touches[0].clientX : null;
}, { passive: true });
large.querySelector(".stage").addEventListener("touchend", (event) => {
  const way = touch === null ? 0 : event.changedTouches[0].clientX - touch;
  if (Math.abs(way) > 60) turn(way < 0 ? 1 : -1);
});

// A menu that was used by mouse gives the keyboard back; one that was reached by keyboard keeps it.
let pointed = false;
document.addEventListener("mousedown", () => { pointed = true; }, true);
document.addEventListener("keydown", () => { pointed = false; }, true);
document.addEventListener("change", (event) => { if (pointed && event.target.matches("select")) event.target.blur(); });

const keys = {
  j: () => turn(1),
  k: () => turn(-1),
  ArrowRight: () => turn(1),
  ArrowLeft: () => turn(-1),
  x: () => current && decide(current, "wrong"),
  m: () => masks(!get("masks").checked),
  u: () => undo(),
  U: () => follow(decisions.redo()),
  s: save,
  "?": () => get("help").showModal(),
  "/": () => large.open || get("search").focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=checkbox]), select") || get("help").open) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (/^[0-9]$/.test(event.key)) { if (current) digit(current, event.key); }
  else if (Object.hasOwn(keys, event.key)) keys[event.key]();
  else return;
  event.preventDefault();
});

// Without scripts there is still everything to see, and nothing to press in vain.
for (const id of ["saving", "tools", "chips", "progress"]) get(id).hidden = false;
restore();
cards.filter((card) => decisions.marks.has(card.index)).forEach(drawCard);
if (decisions.names.size || decisions.into.size) cards.forEach(drawCard);
drawClasses();
show();
