"""``python -m vitnp.features PHOTOS/ --out keys/``: keys of photographs, for other programs."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from vitnp.cli import arguments, shared
from vitnp.errors import UsageError, VitnpError


def build_parser() -> argparse.ArgumentParser:
    """The command's options; each group is one question a user may have."""
    made = shared.parser(
        "python -m vitnp.features",
        "Write the ViT features of photographs: one file each with keys (rows, columns, D), attention, cls, metadata.",
        usage="python -m vitnp.features [options] PHOTO [PHOTO ...]",
        epilog="exit status: 0 done, 3 some failed, 2 wrong usage or nothing done, 130 interrupted",
    )
    made.add_argument("photographs", nargs="+", metavar="PHOTO", help="picture file, or folder to walk")
    group = made.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (each photograph's own)")
    group.add_argument(
        "--format", choices=("npz", "safetensors"), default="npz", metavar="KIND", help="npz or safetensors (npz)"
    )
    group.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        metavar="TYPE",
        help="float16 or float32 (float16)",
    )
    group.add_argument("--overwrite", action="store_true", help="do anew what is done; replace files in the way")
    group.add_argument("--cache", type=Path, metavar="DIR", help="keep features here, and take them from here")
    group.add_argument("--prune", action="store_true", help="only rid the cache of what these photographs don't need")
    arguments.add_model_options(made)
    group = made.add_argument_group("features")
    group.add_argument(
        "--facet", choices=arguments.FACETS, default="key", metavar="NAME", help="key, query, value or token (key)"
    )
    group.add_argument("--layer", type=int, default=-1, metavar="N", help="block to read, from 0 or back from -1 (-1)")
    group.add_argument("--size", type=arguments.positive, metavar="PX", help="short side the network sees (320)")
    group.add_argument("--stride", type=arguments.positive, metavar="PX", help="pixels between patches (the patch)")
    group.add_argument(
        "--max-tokens", type=arguments.positive, default=4096, metavar="N", help="cap of the patch grid (4096)"
    )
    group.add_argument(
        "--max-pixels",
        type=arguments.positive,
        default=120_000_000,
        metavar="N",
        help="refuse larger photographs (120e6)",
    )
    arguments.add_batch_option(arguments.add_run_options(made))
    return made


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
        raise UsageError("--prune needs the folder to empty; give --cache DIR")

    from vitnp.io import find
    from vitnp.kernels.threads import pool

    count = pool.resolve_n_threads(args.threads)
    failures: list[VitnpError] = []
    found = find.find_photographs(args.photographs, failures=failures)
    total, done = len(found) + len(failures), 0
    for error in failures:
        shared.report_failure(error, as_json=args.json)
    if args.prune:
        done += _prune(args, found, complete=not failures, count=count)
    elif found:
        for outcome in _outcomes(args, found, count):
            if outcome.error:
                failures.append(outcome.error)
                shared.report_failure(outcome.error, as_json=args.json, photograph=outcome.photograph)
                continue
            done += 1
            _report(outcome, args)
    return shared.conclude(failures, total, done)


def _outcomes(args: argparse.Namespace, found: list, count: int):
    """Outcomes of all photographs, with a progress bar around them."""
    from vitnp import kernels
    from vitnp.export import naming
    from vitnp.features.export import write_features
    from vitnp.features.spec import FeatureSpec
    from vitnp.features.store import FeatureStore

    stems = naming.output_stems(found, args.out)
    vit = arguments.load_model(args)
    args.ran_on = kernels.name_of(vit.device)
    spec = FeatureSpec.of(
        vit, size=args.size, facet=args.facet, layer=args.layer, stride=args.stride, max_tokens=args.max_tokens,
        precision=args.dtype, regions=False,
    )  # fmt: skip
    store = None if args.cache is None else FeatureStore(args.cache, spec, notice=shared.say)
    outcomes = write_features(
        found, stems, vit, spec, form=args.format, store=store, overwrite=args.overwrite,
        n_threads=count, batch=args.batch, max_pixels=args.max_pixels,
    )  # fmt: skip
    with contextlib.closing(outcomes):
        yield from shared.progress(outcomes, len(found), quiet=args.quiet)


def _prune(args: argparse.Namespace, found: list, *, complete: bool, count: int) -> bool:
    """Empty the cache of all photographs but those found; whether that was done."""
    from vitnp.features.store import prune
    from vitnp.kernels.threads import pool

    if not complete:
        # A folder that isn't there now (another disk, say) may hold photographs by the thousand.
        shared.say("nothing was pruned, because not all of the photographs could be found")
        return False
    keep = set(pool.map_ordered(_fingerprint, found, count))
    freed = prune(args.cache, keep, notice=shared.say)
    shared.say(f"the cache {args.cache} is {freed / 1e6:.1f} MB smaller", quiet=args.quiet)
    return True


def _fingerprint(photograph) -> str | None:
    """None for what can't be read: no store has features of it."""
    from vitnp.errors import ImageError
    from vitnp.io.source import fingerprint

    with contextlib.suppress(ImageError):
        return fingerprint(photograph)


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


if __name__ == "__main__":
    shared.run(main)
