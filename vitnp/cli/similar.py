"""``vitnp similar PHOTO ... --query PHOTO``: find the photographs that are most similar to others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vitnp.cli import arguments, searching, shared, streams
from vitnp.errors import VitnpError

if TYPE_CHECKING:
    from vitnp.io.find import Photograph
    from vitnp.retrieval.search import Ranking


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp similar",
        "Find the photographs (files or folders) that are most similar to others, by the\ncosine of their CLS tokens.",
        usage="vitnp similar [options] PHOTO [PHOTO ...] --query PHOTO",
        examples=(
            "vitnp similar PHOTOS/ --query cat.jpg -k 12 --out FOUND/",
            "vitnp similar PHOTOS/ --query a.jpg --query b.jpg --index photos.index",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(
        parser, "search", "query", "k", "of", "index", "cache", query={"action": "append", "required": True}
    )
    arguments.add_options(
        parser, "output", "out", "overwrite",
        out={"help": "write similar.png and similar.json to this folder"},
        overwrite={"help": "replace files that vitnp did not write"},
    )  # fmt: skip
    arguments.add_options(parser, "network", *arguments.NETWORK, *searching.FEATURES)
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _similar(args: argparse.Namespace) -> int:
    """Search, report what was found, and return the exit status."""
    photographs, failures, left_out = arguments.find_photographs(args)
    queries, failed_queries, _ = arguments.find_photographs(args, args.query)
    total, n_queries = len(photographs) + len(failures), len(queries) + len(failed_queries)
    done = _search(args, photographs, queries, failures, failed_queries) if photographs and queries else 0
    status = shared.conclude(failures, total, done, left_out="" if args.quiet else left_out)
    if not failed_queries:
        return status
    shared.list_failures(failed_queries, n_queries, "queries")
    return shared.EXIT_SOME_FAILED if done else shared.EXIT_USAGE


main = shared.Command(build_parser, _similar)


def _search(
    args: argparse.Namespace,
    photographs: list[Photograph],
    queries: list[Photograph],
    failures: list[VitnpError],
    failed_queries: list[VitnpError],
) -> int:
    """Search, print and write what was found, and return the number of queries with an answer."""
    from vitnp.export.findings import FindingsWriter
    from vitnp.export.neighbor_sheet import similar_sheet
    from vitnp.retrieval.search import search_similar

    writer = None if args.out is None else FindingsWriter(args.out / "similar", "similar", overwrite=args.overwrite)
    vit = arguments.load_model(args)
    with shared.stage_progress("photographs", len(photographs), quiet=args.quiet) as progress:
        found = search_similar(
            photographs, queries, vit, k=args.k, progress=progress, **searching.search_arguments(args)
        )
    searching.report_left_out(args, photographs, found.failures, found.without_object, failures)
    for ranking in found.rankings:
        if ranking.error is None:
            _report(args, ranking)
        else:
            failed_queries.append(ranking.error)
            shared.report_failure(ranking.error, as_json=args.json, photograph=ranking.error.path)
    answered = sum(bool(ranking.neighbors) for ranking in found.rankings)
    if writer is not None and answered:
        writer.write(similar_sheet(found), found.to_dict())
        shared.say(f"written to {writer.picture} and {writer.data.name}", quiet=args.quiet)
    return answered


def _report(args: argparse.Namespace, ranking: Ranking) -> None:
    """Print the answer to a query: one line of JSON for programs, a list for people."""
    if args.json:
        shared.print_json({"status": "done", **ranking.to_dict()})
        return
    from vitnp.retrieval.sources import described_as

    streams.print_line(f"{described_as(ranking.query)}:")
    for one in ranking.neighbors:
        streams.print_line(f"  {one.similarity:.4f}  {described_as(one.photograph)}")
