
(() => {
  const get = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(get(id).textContent);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // Equal for names that differ only in Unicode form, case or accents.
  const fold = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toUpperCase().toLowerCase().normalize("NFC");
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

  // --- what is shown ---

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
      ...decisions.roots().map((label) => make("option", { value: label, textContent: `${label}  ${decisions.name(label)}` })),
    );
  }

  // The row in which the chosen class is named and merged.
  function drawEditor() {
    const editor = get("editor"), members = Array.from(decisions.into.keys()).filter((label) => decisions.root(label) === chosen);
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
      (!chosen || classesOf(card).includes(chosen)) && fits(decisions.marks.get(card.index)) && card.folded.includes(text)));
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
    const where = make("span", { textContent: `${(place + 1).toLocaleString("en")} of ${listed.length.toLocaleString("en")}` });
    large.querySelector(".facts").replaceChildren(where, ...facts);
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
      focus(card);
    }
  }

  function focus(card) {
    current = card;
    card.element.querySelector("button").focus();
    card.element.scrollIntoView({ block: "nearest" });
  }

  // --- decisions ---

  // Draw and keep what has changed; without cards, everything.
  function changed(some) {
    unsaved = true;
    (some || cards).forEach(drawCard);
    drawClasses();
    drawProgress();
    drawLarge();
    try {
      localStorage.setItem(storage, JSON.stringify(decisions.record()));
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
      if (listed.includes(card)) (large.open ? enlarge : focus)(card);
    } else {
      show();
    }
  }

  function save() {
    const file = new Blob([JSON.stringify(decisions.record(), null, 1) + "\n"], { type: "application/json" });
    const link = make("a", { href: URL.createObjectURL(file), download: "decisions.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved = false;
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
        if (record && record.vitnp) return decisions.load(record, false);
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
    if (current && listed.includes(current)) focus(current);
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
    if ((event.ctrlKey || event.metaKey) && event.key === "z") follow(event.shiftKey ? decisions.redo() : decisions.undo());
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
})();
