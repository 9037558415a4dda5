"""``vitnp duplicates PHOTO ...``: group near duplicates, and name the one of each group to keep."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vitnp.cli import arguments, searching, shared, streams
from vitnp.errors import VitnpError

if TYPE_CHECKING:
    from vitnp.io.find import Photograph
    from vitnp.retrieval.groups import Duplicate, DuplicateGroup, Duplicates


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp duplicates",
        "Group near duplicates among photographs (files or folders): copies saved again,\n"
        "resized, cropped, mirrored or brightened. Nothing is deleted.",
        usage="vitnp duplicates [options] PHOTO [PHOTO ...]",
        examples=(
            "vitnp duplicates PHOTOS/ --out FOUND/",
            "vitnp duplicates PHOTOS/ --threshold 0.98 --index photos.index",
            "vitnp duplicates PHOTOS/ --exact",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(
        parser,
        "search",
        "threshold",
        "exact",
        "of",
        "index",
        "cache",
        of={"default": "layout", "help": "what to compare: image, object, layout (layout)"},
    )
    arguments.add_options(
        parser, "output", "out", "overwrite",
        out={"help": "write duplicates.png and duplicates.json to it"},
        overwrite={"help": "replace files that vitnp did not write"},
    )  # fmt: skip
    arguments.add_options(parser, "network", *arguments.NETWORK, *searching.FEATURES)
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _duplicates(args: argparse.Namespace) -> int:
    """Compare, report what was found, and return the exit status."""
    photographs, failures, left_out = arguments.find_photographs(args)
    total = len(photographs) + len(failures)
    done = _compare(args, photographs, failures) if photographs else 0
    return shared.conclude(failures, total, done, left_out="" if args.quiet else left_out)


main = shared.Command(build_parser, _duplicates)


def _compare(args: argparse.Namespace, photographs: list[Photograph], failures: list[VitnpError]) -> int:
    """Compare, print and write what was found, and return the number of photographs compared."""
    from vitnp.export.findings import FindingsWriter
    from vitnp.export.neighbor_sheet import duplicates_sheet

    writer = (
        None if args.out is None else FindingsWriter(args.out / "duplicates", "duplicates", overwrite=args.overwrite)
    )
    found = _find(args, photographs)
    searching.report_left_out(args, photographs, found.failures, found.without_object, failures)
    for group in found.groups:
        _report(args, group)
    members = sum(len(group.members) for group in found.groups)
    shared.say(
        f"photographs: {found.n_compared}, near duplicates: {members}, groups: {len(found.groups)}", quiet=args.quiet
    )
    if writer is not None and found.n_compared:
        writer.write(duplicates_sheet(found), found.to_dict())
        shared.say(f"written to {writer.picture} and {writer.data.name}", quiet=args.quiet)
    return found.n_compared


def _find(args: argparse.Namespace, photographs: list[Photograph]) -> Duplicates:
    from vitnp.retrieval.duplicates import find_duplicates

    vit = None if args.exact else arguments.load_model(args)
    with shared.stage_progress("photographs", len(photographs), quiet=args.quiet) as progress:
        return find_duplicates(
            photographs, vit, threshold=args.threshold, exact=args.exact, progress=progress,
            **searching.search_arguments(args),
        )  # fmt: skip


def _report(args: argparse.Namespace, group: DuplicateGroup) -> None:
    """Print a group: one line of JSON for programs, a list for people."""
    if args.json:
        shared.print_json({"status": "done", **group.to_dict()})
        return
    from vitnp.retrieval.sources import described_as

    streams.print_line(f"{described_as(group.representative.photograph)}:")
    for one in group.members:
        streams.print_line(f"  {_likeness(one)}  {described_as(one.photograph)}")


def _likeness(one: Duplicate) -> str:
    return "same  " if one.identical else f"{one.similarity:.4f}"
