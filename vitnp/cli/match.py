"""``vitnp match A.jpg B.jpg``: corresponding points of the objects in two photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitnp.cli import arguments, shared, streams
from vitnp.io.path_text import path_entries


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp match",
        "Find corresponding points of the objects in two photographs, and draw them:\n"
        "A_B_match.png and A_B_match.json with pixel coordinates.",
        usage="vitnp match [options] A B",
        examples=(
            "vitnp match cat.jpg kitten.jpg --out FOUND/",
            "vitnp match left.jpg right.jpg --whole --short-side 480 --matches all",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs=2, metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(parser, "matching", "n_matches", "whole", "seed")
    arguments.add_options(
        parser, "output", "out", "overwrite",
        out={"help": "output folder (that of A)"},
        overwrite={"help": "replace files of others, or about other photographs"},
    )  # fmt: skip
    arguments.add_options(parser, "network", *arguments.NETWORK, *arguments.FEATURES)
    arguments.add_options(parser, "run", "n_threads", "quiet", "json")
    return parser


def _match(args: argparse.Namespace) -> int:
    """Match, write and print what was found, and return the exit status."""
    from vitnp.export.findings import FindingsWriter
    from vitnp.kernels.threads import pool
    from vitnp.matching.match import match_patches

    first, second = map(Path, args.photographs)
    folder = first.parent if args.out is None else args.out
    writer = FindingsWriter(
        folder / f"{first.stem}_{second.stem}_match",
        "match",
        overwrite=args.overwrite,
        photographs={"first": first, "second": second},
    )
    vit = arguments.load_model(args)
    options = {name: getattr(args, name) for name in (*arguments.FEATURES, "seed", "whole", "n_matches")}
    with pool.thread_limit(arguments.n_threads(args)):
        found = match_patches(first, second, vit, **options)
    writer.write(found.picture(), found.to_dict())
    if args.json:
        shared.print_json({"status": "done", **path_entries("output", writer.picture), **found.to_dict()})
    elif not args.quiet:
        streams.print_line(f"{first}, {second}: {len(found)} of {found.n_mutual} correspondences -> {writer.picture}")
    return shared.EXIT_OK


main = shared.Command(build_parser, _match)
