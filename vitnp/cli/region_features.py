"""``vitnp features --mask``: one table of the features of all regions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.cli import arguments, shared, streams
from vitnp.errors import UsageError, VitnpError
from vitnp.io.path_text import path_entries
from vitnp.options import OPTIONS

if TYPE_CHECKING:
    from vitnp.export.region_rows import Outcome
    from vitnp.io.find import Photograph

# How masks are made, and divided into regions.
OPTIONS_OF_MASKS = ("regions", "instances", "objects", "collection", "domain")

# Settings of masks that are left at their defaults; `vitnp segment` has them, and --masks takes what it writes.
NOT_OFFERED = ("refine", "seed", "min_confidence", "levels")

# Formats of other programs' tables: a file that --out names so is meant, and no folder.
_OTHER_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".npy", ".safetensors", ".xlsx", ".h5", ".hdf5", ".feather", ".pkl")

# Name of the file in the folder that --out names, without the format.
_NAME = "regions"


def check_options(args: argparse.Namespace) -> None:
    """Check the options of the table, and that others are left out where they have no effect.

    Raises
    ------
    UsageError
        If they cannot be combined.
    """
    given = [OPTIONS[name].long_flag for name in OPTIONS_OF_MASKS if getattr(args, name) != OPTIONS[name].default]
    if not args.mask and args.masks is None:
        if given:
            raise UsageError(f"{given[0]} is for the table of regions; add --mask, or leave it out")
        if args.format == "parquet":
            raise UsageError("--format parquet is for the table of regions; add --mask, or choose npz or safetensors")
        return
    if args.masks is not None and [flag for flag in given if flag != "--regions"]:
        flag = next(flag for flag in given if flag != "--regions")
        raise UsageError(f"{flag} changes vitnp's own masks; leave it out, or leave out --masks")
    if args.regions == "split":
        raise UsageError("--regions must be image or components for the table of regions, got split")
    if args.save != "features" or args.prune:
        flag = "--prune" if args.prune else "--save"
        raise UsageError(f"{flag} is for files of single photographs; leave it out, or leave out --mask")
    _table_path(args)


def write_table(args: argparse.Namespace, photographs: Sequence[Photograph], failures: list[VitnpError]) -> int:
    """Write the table of the regions of photographs, and return the number of photographs done."""
    from vitnp.export.region_rows import RegionFeatures
    from vitnp.export.region_table import check_place, require_pyarrow
    from vitnp.io import write

    path = _table_path(args)
    if path.suffix.lower() == ".parquet":
        require_pyarrow()
    if not args.overwrite:
        check_place(path)
    if args.masks is not None and not args.masks.is_dir():
        raise UsageError(f"--masks must be a folder of masks, got {args.masks}; check the spelling")
    vit = arguments.load_model(args)
    if args.masks is None:
        arguments.load_collection(args, vit)  # for the notice if the built-in one does not fit
    describer = RegionFeatures(
        vit,
        arguments.settings(args),
        collection=args.collection,
        masks=args.masks,
        regions=args.regions,
        cache=args.cache,
    )
    write.prepare_folder(path.parent)
    write.check_names([path])
    finished: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        finished.append(outcome)
        _report(args, outcome)

    outcomes = describer.outcomes(photographs, n_threads=args.n_threads, batch=args.batch)
    shown = shared.progress(outcomes, len(photographs), quiet=args.quiet)
    done = shared.report_outcomes(shown, failures, report, as_json=args.json)
    if not done:
        return 0
    table = describer.table(finished)
    table.save(path, describer.metadata)
    if args.json:
        shared.print_json({"status": "written", "rows": len(table), **path_entries("output", path)})
    elif not args.quiet:
        streams.print_line(f"{len(table)} regions of {done} photographs -> {path}")
    return done


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    """Print one line on stdout for a photograph: JSON for programs, a summary for people."""
    count = 0 if outcome.rows is None else len(outcome.rows)
    if outcome.capped:
        shared.say_capped(outcome.photograph, args.max_tokens, quiet=args.quiet)
    if args.json:
        shared.print_json({**path_entries("photograph", outcome.photograph), "status": "done", "regions": count})
    elif not args.quiet:
        streams.print_line(f"{outcome.photograph}: {count} region{'s' * (count != 1)}")


def _table_path(args: argparse.Namespace) -> Path:
    """Return the file of the table: that which --out names, or regions.npz or .parquet in that folder, or here.

    Raises
    ------
    UsageError
        If the format has no table, or is not that of the file, or --out names a file of another format.
    """
    endings = (".npz", ".parquet")
    if args.format == "safetensors":
        raise UsageError("--format must be npz or parquet for the table of regions, got safetensors")
    out: Path = args.out or Path()
    if out.suffix.lower() in _OTHER_TABLES and not out.is_dir():
        raise UsageError(f"--out must end in .npz or .parquet for the table of regions, or be a folder, got {out}")
    if out.suffix.lower() not in endings or out.is_dir():
        return out / f"{_NAME}.{args.format}"
    if args.format != OPTIONS["format"].default and out.suffix.lower() != f".{args.format}":
        raise UsageError(f"--out {out} is no .{args.format} file; leave out --format, or rename the file")
    return out
