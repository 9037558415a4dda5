"""``vitnp features PHOTO ...``: write features of photographs for other programs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitnp.cli import arguments, shared
from vitnp.errors import UsageError, VitnpError

if TYPE_CHECKING:
    from vitnp.features.export import Outcome
    from vitnp.io.find import Photograph


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; each group of options answers one question of a user."""
    parser = shared.parser(
        "vitnp features",
        "Write the ViT features of photographs, one file each: keys (rows, columns, D), attention, cls, metadata.",
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


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    args = build_parser().parse_args(argv)
    if args.prune and args.cache is None:
        raise UsageError("--prune removes features from a cache; give --cache DIR")

    from vitnp.io import find
    from vitnp.kernels.threads import pool

    args.n_threads = pool.resolve_n_threads(args.n_threads)
    failures: list[VitnpError] = []
    photographs = find.find_photographs(args.photographs, failures=failures)
    total, done = len(photographs) + len(failures), 0
    for error in failures:
        shared.report_failure(error, as_json=args.json)
    if args.prune:
        done += _prune(args, photographs, complete=not failures)
    elif photographs:
        for outcome in _outcomes(args, photographs):
            if outcome.error:
                failures.append(outcome.error)
                shared.report_failure(outcome.error, as_json=args.json, photograph=outcome.photograph)
                continue
            done += 1
            _report(outcome, args)
    return shared.conclude(failures, total, done)


def _outcomes(args: argparse.Namespace, photographs: Sequence[Photograph]) -> Iterator[Outcome]:
    """Yield the outcomes of all photographs, with a progress bar around them."""
    from vitnp import kernels
    from vitnp.export import naming
    from vitnp.features.export import write_features
    from vitnp.features.spec import FeatureSpec
    from vitnp.features.store import FeatureStore

    stems = naming.output_stems(photographs, args.out)
    vit = arguments.load_model(args)
    args.ran_on = kernels.name_of(vit.device)
    spec = FeatureSpec.of(
        vit,
        short_side=args.short_side,
        facet=args.facet,
        layer=args.layer,
        stride=args.stride,
        max_tokens=args.max_tokens,
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
    with contextlib.closing(outcomes):
        yield from shared.progress(outcomes, len(photographs), quiet=args.quiet)


def _prune(args: argparse.Namespace, photographs: Sequence[Photograph], *, complete: bool) -> bool:
    """Remove from the cache the features of all other photographs; tell whether that was done."""
    from vitnp.features.store import prune
    from vitnp.kernels.threads import pool

    if not complete:
        # A folder that cannot be found now (another disk, say) may hold thousands of photographs.
        shared.say("nothing was pruned, because not all of the photographs could be found")
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


def _report(outcome, args: argparse.Namespace) -> None:
    """One photograph's line on stdout: JSON for programs, a summary for people."""
    features = outcome.features
    if features is not None and features.capped:
        shared.say(
            f"{outcome.photograph}: the patch grid was made coarser to stay within --max-tokens {args.max_tokens}",
            quiet=args.quiet,
        )
    if args.json:
        line = {"photograph": str(outcome.photograph), "status": outcome.status, "output": str(outcome.path)}
        if features is not None:
            height, width = features.size
            line |= {"width": width, "height": height, "rows": features.grid[0], "columns": features.grid[1]}
            line["device"] = {"decode": "cpu", "network": args.ran_on, "write": "cpu"}
        shared.print_json(line)
    elif not args.quiet:
        told = "done before" if features is None else f"{features.grid[0]} x {features.grid[1]} patches"
        print(f"{outcome.photograph}: {told} -> {outcome.path}", flush=True)
