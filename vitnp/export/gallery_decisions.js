"use strict";

// What a person decides about a run, with undo. Nothing here knows the page.
//
// names: class -> new name. into: class -> class that it is merged into. marks: photograph, by its place on the page ->
// "checked", "wrong" (its mask), "empty" (no object), or the number of the class of its regions.
class Decisions {
  constructor(run) {
    this.run = run;
    this.names = new Map();
    this.into = new Map();
    this.marks = new Map();
    this.others = [];  // entries for photographs that are not on the page
    this.done = [];
    this.undone = [];
  }

  // The class that a class has become.
  root(label) {
    while (this.into.has(label)) label = this.into.get(label);
    return label;
  }

  name(label) {
    label = this.root(label);
    return this.names.has(label) ? this.names.get(label) : this.run.classes[label - 1];
  }

  // The classes that are left.
  roots() {
    return this.run.classes.map((_, index) => index + 1).filter((label) => !this.into.has(label));
  }

  // Make changes [map, key, value] as one step of undo; without a value the key is removed. Return whether there was any.
  change(changes, undoable = true) {
    const step = changes
      .map(([map, key, value]) => ({ map, key, value, before: this[map].get(key) }))
      .filter((part) => part.value !== part.before);
    if (step.length === 0) return false;
    step.forEach((part) => this.put(part, part.value));
    if (undoable) {
      this.done.push(step);
      this.undone = [];
    }
    return true;
  }

  undo() {
    const step = this.done.pop();
    if (step) {
      step.slice().reverse().forEach((part) => this.put(part, part.before));
      this.undone.push(step);
    }
    return step;
  }

  redo() {
    const step = this.undone.pop();
    if (step) {
      step.forEach((part) => this.put(part, part.value));
      this.done.push(step);
    }
    return step;
  }

  put(part, value) {
    if (value === undefined) this[part.map].delete(part.key);
    else this[part.map].set(part.key, value);
  }

  // Content of decisions.json.
  record() {
    const classes = Array.from(this.names, ([id, name]) => ({ id, name }));
    this.into.forEach((into, id) => classes.push({ id, into }));
    const photographs = Array.from(this.marks, ([index, mark]) => {
      const [id, name, bytes] = this.run.photographs[index];
      const photograph = bytes === undefined ? { id, name } : { id, name, name_bytes: bytes };
      return { ...photograph, ...(typeof mark === "number" ? { decision: "class", class: mark } : { decision: mark }) };
    });
    photographs.push(...this.others);
    const order = (a, b) => a.id - b.id;
    return {
      vitnp: "decisions",
      version: 1,
      run: this.run.run,
      saved: new Date().toISOString(),
      classes: classes.sort(order),
      photographs: photographs.sort(order),
    };
  }

  // Replace everything by a record, as one step of undo; throw an error with a sentence for people if it doesn't fit.
  load(record, undoable = true) {
    const check = (fits, message) => { if (!fits) throw new Error(message); };
    check(record && record.vitnp === "decisions" && record.version === 1, "this file holds no decisions");
    check(!record.run || record.run === this.run.run, "these decisions are about another run");
    const known = (label) => Number.isInteger(label) && label >= 1 && label <= this.run.classes.length;
    const fresh = { names: new Map(), into: new Map(), marks: new Map() };
    const others = [];
    for (const entry of record.classes || []) {
      check(known(entry.id) && (!("into" in entry) || known(entry.into)), "it names a class that the run lacks");
      if (typeof entry.name === "string") fresh.names.set(entry.id, entry.name);
      if ("into" in entry) fresh.into.set(entry.id, entry.into);
    }
    fresh.into.forEach((_, start) => {
      for (let label = start, steps = 0; fresh.into.has(label); label = fresh.into.get(label)) {
        check(++steps <= fresh.into.size, "it merges a class into itself");
      }
    });
    const places = new Map();
    this.run.photographs.forEach(([id, name], index) => {
      places.set(`${id} ${name}`, index);
      places.set(name, places.has(name) ? null : index);  // names alone count where they are unique
    });
    for (const entry of record.photographs || []) {
      const index = places.get("id" in entry ? `${entry.id} ${entry.name}` : entry.name);
      const mark = entry.decision === "class" ? entry.class : entry.decision;
      check(known(mark) || ["checked", "wrong", "empty"].includes(mark), "it holds an unknown decision");
      if (Number.isInteger(index)) fresh.marks.set(index, mark);
      else others.push(entry);
    }
    const changes = [];
    for (const map of ["names", "into", "marks"]) {
      this[map].forEach((_, key) => { if (!fresh[map].has(key)) changes.push([map, key]); });
      fresh[map].forEach((value, key) => changes.push([map, key, value]));
    }
    this.others = others;
    return this.change(changes, undoable);
  }
}
