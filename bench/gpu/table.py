"""The table that ``python -m bench gpu`` prints."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence

from bench.gpu import bars
from bench.gpu.ceilings import rates
from bench.table import duration

Record = Mapping[str, object]

TITLES = {
    "stages": "one photograph by itself, from its file to its mask",
    "kmeans": "an iteration of Lloyd's algorithm, rows x 384",
    "image_level": "image level of a batch",
    "collection": "clustering of --levels all from stored features",
    "similarity": "cosine similarity, rows x 384",
    "attention": "attention, 6 heads of 64",
    "network": "a pass of a network in fp16",
    "layers": "layers, 57,616 rows",
    "refinement": "refinement of one map",
    "folder": "files to masks",
}
# Number of kernels in the table of each photograph.
MOST_KERNELS = 12


def text(machine: Mapping[str, object], records: Sequence[Record]) -> str:
    """Return the whole table: device, ceilings, times, checks, targets.

    Parameters
    ----------
    machine : dict
        From :func:`bench.gpu.machine.facts`.
    records : sequence of dict

    Returns
    -------
    str
    """
    parts = [_heading(machine), _ceilings(records)]
    parts += [_times(step, title, records) for step, title in TITLES.items()]
    parts += [_kernels(records), _checks(records), _bars(records)]
    return "\n\n".join(part for part in parts if part)


def wrong(records: Sequence[Record]) -> list[str]:
    """Return the names of failed checks and crashed steps, with details."""
    failed = [record for record in records if record["kind"] == "check" and not record["passed"]]
    return [f"{record['name']}" + (f" ({record['detail']})" if record["detail"] else "") for record in failed]


def _heading(machine: Mapping[str, object]) -> str:
    device = machine["device"]
    return (
        f"{device['name']}, {device['multiprocessors']} multiprocessors, {device['memory_gib']:.0f} GiB, "
        f"{device['l2_mib']:.0f} MiB of cache; driver {device['driver']}, CUDA {device['cuda']}"
    )


def _ceilings(records: Sequence[Record]) -> str:
    found = rates(records)
    copy = [f"copy {found['copy'] / 1e12:.2f} TB/s"] if "copy" in found else []
    products = [f"{name} {found[name] / 1e12:.0f} TFLOP/s" for name in ("fp32", "tf32", "fp16") if name in found]
    return "ceilings: " + "; ".join(copy + products) if copy or products else ""


def _times(step: str, title: str, records: Sequence[Record]) -> str:
    """Return a table with one line per case: our time, the rate, and the relative times of the others."""
    mine = [record for record in records if record["step"] == step and record["kind"] in ("time", "missing")]
    if not mine:
        return ""
    lines = [f"{title}"]
    copy = rates(records).get("copy")
    mine = sorted(mine, key=lambda record: _order(record["case"]))
    for case, group in itertools.groupby(mine, key=lambda record: record["case"]):
        entries = list(group)
        times = {entry["contender"]: entry for entry in entries if entry["kind"] == "time"}
        ours = times.pop("vitnp", None)
        cells = [f"{_label(step, case):<44}"]
        cells.append(
            f"{duration(ours['seconds']):>9}  {_amount(step, ours, copy):<22}" if ours else f"{'-':>9}  {'':<22}"
        )
        for name, entry in times.items():
            base = entry.get("ours") or (ours and ours["seconds"])
            cells.append(f"{name} {entry['seconds'] / base:.2f} x" if base else f"{name} {duration(entry['seconds'])}")
        cells += [f"{entry['contender']} missing" for entry in entries if entry["kind"] == "missing"]
        lines.append("  " + "  ".join(cells).rstrip())
    reasons = {(entry["contender"], entry["why"]) for entry in mine if entry["kind"] == "missing"}
    lines += [f"  {contender} missing: {why}" for contender, why in sorted(reasons)]
    return "\n".join(lines)


def _order(case: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(f"{value:>12}" if isinstance(value, int) else str(value) for value in case.values())


def _label(step: str, case: Mapping[str, object]) -> str:
    if step == "kmeans":
        return f"{case['rows']:>10,}  {case['dtype']}  K = {case['clusters']}"
    if step == "similarity":
        return f"{case['rows']:>10,} x {case['others']:,}  {case['dtype']}  {case['form']}"
    if step == "attention":
        return f"{case['images']:>3} x {case['tokens']:,} tokens  {case['dtype']}  {case.get('form', '')}".rstrip()
    if step == "network":
        return f"{case['model']}  {case['side']} px  batch {case['batch']}  {case['want']}"
    if step == "layers":
        return f"{case['layer']}  width {case['width']}  {case['dtype']}"
    if step == "image_level":
        return f"batch {case['batch']}  up to {case['patches']} patches x {case['width']}"
    if step == "collection":
        return f"{case['collection']:,} photographs  {case['patches']} patches x {case['width']}"
    if step == "refinement":
        return f"{case['refinement']}  {case['size'][0]} x {case['size'][1]} px"
    if step == "stages":
        return f"{case['photograph']}  {case['size'][0]} x {case['size'][1]} px  {case['device']} {case['precision']}"
    return f"{case['size'][0]} x {case['size'][1]} px, on {case['device']}, {case['cores']} cores"


def _amount(step: str, ours: Record, copy: float | None) -> str:
    rate = ours["rate"]
    if step in ("stages", "collection"):
        return "  ".join(f"{stage} {duration(seconds)}" for stage, seconds in ours["stages"].items())
    if step in ("kmeans", "layers"):
        return f"{rate / 1e9:.0f} GB/s" + (f", {rate / copy:.0%} of copy" if copy else "")
    if step in ("attention", "similarity"):
        return f"{rate / 1e12:.0f} TFLOP/s"
    return f"{rate:.1f} images/s"


def _kernels(records: Sequence[Record]) -> str:
    """Return a table of the longest kernels for each photograph, and of all kernels that use local memory."""
    mine = [record for record in records if record["kind"] == "kernel"]
    lines = []
    for within, group in itertools.groupby(mine, key=lambda record: record["within"]):
        found = list(group)
        total = sum(record["seconds"] for record in found)
        lines.append(f"kernels, {within}: {sum(record['launches'] for record in found)} launches, {duration(total)}")
        for index, record in enumerate(found):
            if index < MOST_KERNELS or record["local_bytes"]:
                local = f", {record['local_bytes']} bytes of local memory" if record["local_bytes"] else ""
                lines.append(
                    f"  {record['name']:<24}{record['launches']:>5} launches  {duration(record['seconds']):>9}  "
                    f"{record['registers']} registers, {record['shared_bytes']} bytes of shared memory{local}"
                )
    return "\n".join(lines)


def _checks(records: Sequence[Record]) -> str:
    checks = [record for record in records if record["kind"] == "check"]
    lines = [f"checks: {sum(record['passed'] for record in checks)} of {len(checks)} passed"]
    lines += [f"  {_line(record)}" for record in checks if record["step"] in _NAMED and record["passed"]]
    lines += [f"  not done: {record['name']}: {record['why']}" for record in records if record["kind"] == "skipped"]
    lines += [f"  WRONG: {name}" for name in wrong(records)]
    return "\n".join(lines)


# Steps with few checks, which are all listed.
_NAMED = ("tests", "memcheck", "racecheck", "initcheck", "keys", "masks")


def _line(record: Record) -> str:
    return f"{record['name']}: {record['detail'] or 'passed'}"


def _bars(records: Sequence[Record]) -> str:
    found = bars.bars(records)
    lines = [f"bars: {sum(bar.met is True for bar in found)} of {len(found)} met"]
    measured = [bar for bar in found if bar.measured is not None]
    lines += [
        f"  {bar.what:<72} {bar.measured:>7.3g}, at {'most' if bar.at_most else 'least'} {bar.least:g}: {bar.verdict}"
        for bar in measured
    ]
    others = collections.Counter((bar.step, bars.why_not(bar, records)) for bar in found if bar.measured is None)
    lines += [f"  {count} of {step}: not measured ({why})" for (step, why), count in others.items()]
    return "\n".join(lines)
