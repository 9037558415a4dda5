"""``vitnp export OUT --format LIST``: write a finished run in the formats of other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.io.path_text import path_entries


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp export",
        "Write a finished run in other formats, without segmenting again.\n"
        "OUT is the folder that `vitnp segment PHOTOS/ --levels all --out OUT/` made.",
        usage="vitnp export [options] OUT",
        examples=(
            "vitnp export OUT/ --format coco,yolo --copy",
            "vitnp export OUT/ --polygons 2 --names classes.txt",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help=argparse.SUPPRESS)
    arguments.add_options(
        parser,
        "output",
        "formats",
        "polygons",
        "copy",
        "validation",
        "names",
        "seed",
        "quiet",
        "json",
        formats={"help": "coco,yolo,voc,labelme,labelstudio: folders in OUT"},
        names={"help": "file of class names, one per line, for all outputs"},
        seed={"help": "seed of the split (0)"},
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    """Export a run and return the exit status."""
    formats = arguments.formats(args)
    if not formats and args.polygons is None and args.names is None:
        raise UsageError("there is nothing to do; give --format, --polygons or --names")
    shared.set_verbosity(quiet=args.quiet)
    if args.polygons is not None or args.names is not None:
        from vitnp.export.rewrite import recorded_polygons, rewrite

        tolerance = recorded_polygons(args.out) if args.polygons is None else args.polygons
        rewrite(
            args.out,
            tolerance=tolerance,
            names=None if args.names is None else _class_names(args.names, args.out),
            only=("annotations.json",) if args.names is None else None,
        )
    layout = {"copy": args.copy, "split": args.validation, "seed": args.seed}
    write_formats(args.out, formats, args, tolerance=args.polygons, **layout)
    return shared.EXIT_OK


main = shared.Command(build_parser, _export)
console = main.console


def write_formats(out: Path, formats: Sequence[str], args: argparse.Namespace, **settings: Any) -> None:
    """Write a finished run in other formats, with settings of `export_formats`, and say where they are."""
    if not formats:
        return
    from vitnp.export.formats.table import export_formats

    folders = export_formats(out, formats, **settings)
    if args.json:
        for name, folder in zip(formats, folders):
            shared.print_json({"format": name, "status": "done", **path_entries("folder", folder)})
    else:
        shared.say(f"exported to {', '.join(map(str, folders))}", quiet=args.quiet)


def _class_names(path: Path, out: Path) -> list[str]:
    """Read the names of the classes of a run.

    Raises
    ------
    UsageError
        If the file cannot be read, or its number of names is not that of the classes.
    """
    from vitnp.evaluate.data.files import read_lines
    from vitnp.export.results_file import Results

    names = [line for _, line in read_lines(path)]
    count = len(Results.read(out).names)
    if len(names) != count:
        raise UsageError(
            f"{path}: the run has {count} classes, so {count} names are needed, one per line; got {len(names)}"
        )
    if len(set(names)) != len(names):
        raise UsageError(f"{path}: the names of classes must differ; `vitnp apply` merges classes")
    return names
