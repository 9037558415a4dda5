"""``vitnp features PHOTO ...``: write features of photographs for other programs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitnp.cli import arguments, shared, streams
from vitnp.errors import UsageError, VitnpError
from vitnp.io.path_text import path_entries

if TYPE_CHECKING:
    from vitnp.features.export import Outcome
    from vitnp.io.find import Photograph


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp features",
        "Write the ViT features of photographs (files or folders), one file each:\n"
        "keys (rows, columns, D), attention, cls and metadata.",
        usage="vitnp features [options] PHOTO [PHOTO ...]",
        examples=(
            "vitnp features PHOTOS/ --out KEYS/",
            "vitnp features cat.jpg --facet token --format safetensors --dtype float32",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(
        parser, "output", "out", "format", "dtype", "overwrite", "cache", "prune",
        cache={"help": "keep features in this folder and reuse them"},
    )  # fmt: skip
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "features", *arguments.FEATURES)
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _features(args: argparse.Namespace) -> int:
    """Write the features of the photographs of the command line and return the exit status."""
    if args.prune and args.cache is None:
        raise UsageError("--prune removes features from a cache; give --cache DIR")

    from vitnp.kernels.threads import pool

    args.n_threads = pool.resolve_n_threads(args.n_threads)
    photographs, failures, left_out = arguments.find_photographs(args)
    total, done = len(photographs) + len(failures), 0
    if args.prune:
        done += _prune(args, photographs, complete=not failures)
    elif photographs:
        done = _write_features(args, photographs, failures)
    return shared.conclude(failures, total, done, left_out="" if args.quiet else left_out)


main = shared.Command(build_parser, _features)


def _write_features(args: argparse.Namespace, photographs: Sequence[Photograph], failures: list[VitnpError]) -> int:
    """Write features, with a progress bar, and return the number of photographs done."""
    from vitnp import kernels
    from vitnp.export import naming
    from vitnp.features.export import write_features
    from vitnp.features.spec import FeatureSpec
    from vitnp.features.store import FeatureStore

    stems = naming.output_stems(photographs, args.out)
    vit = arguments.load_model(args)
    spec = FeatureSpec.of(
        vit,
        short_side=args.short_side,
        facet=args.facet,
        layer=-1 if args.layer is None else args.layer,
        stride=args.stride,
        max_tokens=args.max_tokens,
        alpha=args.alpha,
        precision=args.dtype,
        regions=False,
    )
    store = None if args.cache is None else FeatureStore(args.cache, spec, notice=shared.say)
    outcomes = write_features(
        photographs,
        stems,
        vit,
        spec,
        form=args.format,
        store=store,
        overwrite=args.overwrite,
        n_threads=args.n_threads,
        batch=args.batch,
        max_pixels=args.max_pixels,
    )
    report = functools.partial(_report, args, kernels.name_of(vit.device))
    shown = shared.progress(outcomes, len(photographs), quiet=args.quiet)
    return shared.report_outcomes(shown, failures, report, as_json=args.json)


def _prune(args: argparse.Namespace, photographs: Sequence[Photograph], *, complete: bool) -> bool:
    """Remove the features of all other photographs from the cache; return whether that was done."""
    from vitnp.features.maintenance import prune
    from vitnp.kernels.threads import pool

    if not complete:
        # A folder that cannot be found now (another disk, say) may hold thousands of photographs.
        shared.say("nothing was pruned, because some of the given paths hold no photograph")
        return False
    keep = {name for name in pool.map_ordered(_fingerprint, photographs, args.n_threads) if name is not None}
    freed = prune(args.cache, keep, notice=shared.say)
    shared.say(f"the cache {args.cache} is {freed / 1e6:.1f} MB smaller", quiet=args.quiet)
    return True


def _fingerprint(photograph: Photograph) -> str | None:
    """Return the fingerprint of a photograph; None if it cannot be read, and so is in no store."""
    from vitnp.errors import ImageError
    from vitnp.io.source import fingerprint

    try:
        return fingerprint(photograph)
    except ImageError:
        return None


def _report(args: argparse.Namespace, device: str, outcome: Outcome) -> None:
    """Print one line on stdout for a photograph: JSON for programs, a summary for people."""
    features = outcome.features
    if features is not None and features.capped:
        shared.say_capped(outcome.photograph, args.max_tokens, quiet=args.quiet)
    if args.json:
        line: dict[str, object] = {
            **path_entries("photograph", outcome.photograph),
            "status": outcome.status,
            **path_entries("output", str(outcome.path)),
        }
        if features is not None:
            height, width = features.size
            line |= {"width": width, "height": height, "rows": features.grid[0], "columns": features.grid[1]}
            line["device"] = {"decode": "cpu", "network": device, "write": "cpu"}
        shared.print_json(line)
    elif not args.quiet:
        summary = "done before" if features is None else f"{features.grid[0]} x {features.grid[1]} patches"
        streams.print_line(f"{outcome.photograph}: {summary} -> {outcome.path}")
