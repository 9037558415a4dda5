"""``python -m vitnp.segment PHOTO …``: masks of photographs, by themselves or as a collection."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.cli import arguments, shared
from vitnp.errors import UsageError, VitnpError

if TYPE_CHECKING:
    from vitnp.export.per_image import Outcome
    from vitnp.io.find import Photograph
    from vitnp.vit.model import ViT


# Options that mean something only where photographs are fitted as a set, and what they are when nobody asks.
FOR_SETS = {
    "categories": None, "consistency": "mean", "fit_patches": None, "cache": None, "regions": "image", "polygons": False,
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command's options; each group is one question a user may have."""
    made = shared.parser(
        "python -m vitnp.segment",
        "Masks of photographs (files, or folders): NAME_mask.png and NAME_overlay.png",
        usage="python -m vitnp.segment [options] PHOTO [PHOTO ...]",
        epilog="exit status: 0 done, 3 some failed, 2 nothing done, 130 interrupted",
    )
    made.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    group = made.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (each photograph's own)")
    group.add_argument(
        "--save",
        default="mask,overlay",
        metavar="LIST",
        help="of mask,overlay,cutout,soft,score,keys,npz (mask,overlay)",
    )
    group.add_argument("--overwrite", action="store_true", help="do anew what is done; replace files in the way")
    arguments.add_model_options(made)
    arguments.add_method_options(made)
    group = arguments.add_collection_options(made)
    group.add_argument("--classes", type=arguments.positive, metavar="N", help="find N classes too: NAME_labels.png")
    group.add_argument(
        "--regions",
        choices=arguments.REGIONS,
        default="image",
        metavar="R",
        help="get a class: image, components or split (image)",
    )
    group.add_argument("--polygons", action="store_true", help="polygons in annotations.json, not run lengths")
    group.add_argument("--fit-to", type=Path, metavar="FILE", help="keep what was learnt; --levels all")
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
    which = [kind for kind in dict.fromkeys(args.save.split(",")) if kind]
    if not which:
        raise UsageError("--save names nothing; choose among mask, overlay, cutout, soft, score, keys, npz")
    if arguments.names_collection(args) and (args.classes or args.fit_to or args.levels in ("all", "image")):
        raise UsageError(
            "--collection applies what was fitted before; leave out --classes, --fit-to, --levels all and --levels image"
        )
    if (args.classes or args.fit_to) and args.levels in ("image", "each"):
        raise UsageError(f"--classes and --fit-to need the levels of a collection; leave out --levels {args.levels}")
    if args.scheduler and (arguments.names_collection(args) or args.levels in ("image", "each")):
        raise UsageError(
            "--scheduler is for fitting a set of photographs; leave out --collection, --levels image and --levels each"
        )

    from vitnp.export import naming
    from vitnp.io import find
    from vitnp.io.outputs import output_paths
    from vitnp.kernels.threads import pool

    output_paths("", which)  # unknown kinds are wrong usage, found before any work
    args.threads = pool.resolve_n_threads(args.threads)
    failures: list[VitnpError] = []
    found = find.find_photographs(args.photographs, failures=failures)
    total, done = len(found) + len(failures), 0
    for error in failures:
        shared.report_failure(error, as_json=args.json)
    if found:
        stems = naming.output_stems(found, args.out)
        vit = arguments.load_model(args)
        as_a_set = args.classes or args.fit_to or arguments.wants_all_levels(args, len(found))
        if args.scheduler and not as_a_set:
            shared.say(
                "so few photographs are segmented here, one by one; --levels all fits them by --scheduler",
                quiet=args.quiet,
            )
        run = _together if as_a_set else _each
        with contextlib.closing(run(args, found, stems, vit, which, tuple(failures))) as outcomes:
            for outcome in outcomes:
                if outcome.error:
                    failures.append(outcome.error)
                    shared.report_failure(outcome.error, as_json=args.json, photograph=outcome.photograph)
                    continue
                done += 1
                if outcome.capped:
                    shared.say(
                        f"{outcome.photograph}: the patch grid was made coarser to stay within --max-tokens {args.max_tokens}",
                        quiet=args.quiet,
                    )
                _report(outcome, as_json=args.json, quiet=args.quiet)
    return shared.conclude(failures, total, done)


def _each(
    args: argparse.Namespace, found: Sequence[Photograph], stems: Sequence[Path], vit: ViT, which: Sequence[str],
    unread: Sequence[VitnpError],
) -> Iterator[Outcome]:  # fmt: skip
    """Each photograph by itself, or with a collection fitted before."""
    from vitnp.export.per_image import segment_files

    usual = FOR_SETS if vit.device == "cuda" else {**FOR_SETS, "batch": None}
    idle = [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(args, name) != value]
    if idle:
        shared.say(
            f"{', '.join(idle)}: without effect on photographs one by one; --levels all fits them as a set",
            quiet=args.quiet,
        )
    options = {**arguments.method_options(args), "collection": arguments.chosen_collection(args, vit)}
    outcomes = segment_files(
        found, stems, vit, which, overwrite=args.overwrite, count=args.threads, batch=args.batch, **options
    )
    with contextlib.closing(outcomes):
        yield from shared.progress(outcomes, len(found), quiet=args.quiet)


def _together(
    args: argparse.Namespace, found: Sequence[Photograph], stems: Sequence[Path], vit: ViT, which: Sequence[str],
    unread: Sequence[VitnpError],
) -> Iterator[Outcome]:  # fmt: skip
    """All photographs as one collection."""
    from vitnp.export.collection_run import FolderRun
    from vitnp.segmenter import Segmenter

    if args.out is None:
        shared.say("give --out DIR for the gallery, the contact sheet and annotations.json too", quiet=args.quiet)
    with arguments.workers(args) as workers:
        segmenter = Segmenter(vit, args.classes, regions=args.regions, **arguments.segmenter_options(args), **workers)
        run = FolderRun(
            segmenter, found, stems, which, out=args.out, polygons=args.polygons, overwrite=args.overwrite, unread=unread,
            fit_to=args.fit_to,
        )  # fmt: skip
        try:
            yield from run.outcomes()
        except (KeyboardInterrupt, GeneratorExit):  # the latter when it comes while an outcome is reported
            shared.say(run.kept, quiet=args.quiet)
            raise
    if run.unchanged:
        shared.say("nothing has changed since the last run; --overwrite does everything anew", quiet=args.quiet)
    elif not run.finished:
        return
    if args.fit_to:
        shared.say(f"what was learnt is in {args.fit_to}; --collection {args.fit_to} applies it", quiet=args.quiet)
    if args.out is not None:
        shared.say(f"look at {args.out / 'gallery.html'} and {args.out / 'contact-sheet.png'}", quiet=args.quiet)


def _report(outcome: Outcome, *, as_json: bool, quiet: bool) -> None:
    """One photograph's line on stdout: JSON for programs, a summary for people."""
    if as_json:
        shared.print_json(
            {
                "photograph": str(outcome.photograph),
                "status": outcome.status,
                "outputs": {kind: str(path) for kind, path in outcome.outputs.items()},
                **(outcome.facts or {}),
            }
        )
    elif not quiet:
        files = ", ".join(str(path) for path in outcome.outputs.values())
        if outcome.facts is None:
            print(f"{outcome.photograph}: done before -> {files}", flush=True)
        else:
            facts = outcome.facts
            classes = "".join(f", class {label}" for label in facts.get("classes", ()))
            print(
                f"{outcome.photograph}: foreground {facts['share']:.0%}{classes}, confidence {facts['confidence']:.2f}, "
                f"{sum(facts['seconds'].values()):.2f} s -> {files}",
                flush=True,
            )


def console() -> None:
    """Entry point of the console script."""
    shared.run(main)


if __name__ == "__main__":
    console()
