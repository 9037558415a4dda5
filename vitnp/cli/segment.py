"""``vitnp segment PHOTO ...``: write masks of photographs, one by one or as a collection."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.cli import arguments, export, shared, streams, video
from vitnp.cli.standard_input import DASH, named_as_given, photograph_from_stdin
from vitnp.errors import UsageError, VitnpError
from vitnp.io.path_text import mapping_entries, path_entries
from vitnp.options import OPTIONS, OUTPUTS, enumerate_words

if TYPE_CHECKING:
    from vitnp.export.outcome import Outcome
    from vitnp.io.find import Photograph
    from vitnp.outputs import ExactFile
    from vitnp.vit.model import ViT


# Options that only matter where photographs are fitted as a set.
SET_OPTIONS = ("n_categories", "consistency", "fit_patches", "cache", "regions", "formats", "polygons")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp segment",
        "Segment photographs and videos: NAME_mask.png and NAME_overlay.png",
        usage="vitnp segment [options] PHOTO [PHOTO ...]",
        examples=(
            "vitnp segment holiday.jpg --save mask,cutout",
            "vitnp segment PHOTOS/ --classes 20 --out OUT/ --cache CACHE/",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(parser, "output", "out", "save", "background", "crop", "overwrite")
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "method", *arguments.METHOD, "instances", "video")
    arguments.add_options(
        parser, "collection", *arguments.COLLECTION, "n_classes", "regions", "formats", "polygons", "save_collection"
    )
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _segment(args: argparse.Namespace) -> int:
    """Segment the photographs of the command line and return the exit status."""
    which = [name for name in dict.fromkeys(args.save.split(",")) if name]
    _check_options(args, which)
    with photograph_from_stdin(args.photographs) as piped:
        args.photographs = [path for path in args.photographs if path != DASH]
        return _segment_all(args, which, piped)


def _segment_all(args: argparse.Namespace, which: list[str], piped: Photograph | None) -> int:
    """Segment the photographs of the command line, and one from standard input."""
    from vitnp import kernels
    from vitnp.export import naming
    from vitnp.kernels.threads import pool

    args.n_threads = pool.resolve_n_threads(args.n_threads)
    clips = video.take_clips(args)
    if clips and not args.photographs and piped is None:
        return shared.conclude(*video.segment_clips(args, which, clips))
    if clips:
        raise UsageError("name videos, or photographs, not both in one call")
    photographs, failures, left_out = arguments.find_photographs(args)
    if piped is not None:
        photographs.append(piped)
        args.out = args.out or Path()
    total, done = len(photographs) + len(failures), 0
    if photographs:
        exact = _exact_file(args, which, len(photographs))
        stems: Sequence[Path | ExactFile] = [exact] if exact else naming.output_stems(photographs, args.out)
        shared.set_verbosity(quiet=args.quiet)
        if kernels.choose_device("cpu" if args.scheduler else args.device) == "cpu":
            kernels.compile_ahead(args.n_threads, args.precision)
        vit = arguments.load_model(args)
        as_a_set = exact is None and (
            args.n_classes or args.save_collection or arguments.fits_a_set(args, len(photographs))
        )
        if args.scheduler and not as_a_set:
            shared.say(
                "so few photographs are segmented one by one, without --scheduler; --levels all fits them as a set",
                quiet=args.quiet,
            )
        segment = _segment_set if as_a_set else _segment_single
        outcomes = named_as_given(segment(args, photographs, stems, vit, which, tuple(failures)), piped)
        done = shared.report_outcomes(outcomes, failures, functools.partial(report, args), as_json=args.json)
    return shared.conclude(failures, total, done, left_out="" if args.quiet else left_out)


def _exact_file(args: argparse.Namespace, which: list[str], n_photographs: int) -> ExactFile | None:
    """Return the file that --out names, as in ``--out mask.png``; None if it is a folder.

    The file gets what --save names, and the mask if that names nothing.

    Raises
    ------
    UsageError
        If several photographs, several outputs, or an output of another format would have to go into it.
    """
    from vitnp.outputs import WRITERS, ExactFile

    # "_mask.png" ends in .png, and ".npz" is an ending by itself.
    endings = {name: f".{writer.suffix.rpartition('.')[2]}" for name, writer in WRITERS.items()}
    if args.out is None or args.out.suffix.lower() not in endings.values() or args.out.is_dir():
        return None
    if n_photographs != 1 or args.n_classes or args.save_collection or args.levels == "all":
        raise UsageError(f"--out {args.out} is one file, for one photograph by itself; name a folder for several")
    if args.save == OPTIONS["save"].default:
        which[:] = [next(name for name, ending in endings.items() if ending == args.out.suffix.lower())]
    if [endings[name] for name in which] != [args.out.suffix.lower()]:
        raise UsageError(
            f"--out {args.out} is one file, and --save {','.join(which)} makes "
            f"{' and '.join(endings[name] for name in which)}; name one output of its kind, or a folder"
        )
    return ExactFile(args.out)


main = shared.Command(build_parser, _segment)
console = main.console


def _check_options(args: argparse.Namespace, which: Sequence[str]) -> None:
    """Check that the options can be combined, before any work.

    Raises
    ------
    UsageError
        If they cannot.
    """
    unknown = [name for name in which if name not in OUTPUTS]
    if unknown or not which:
        given = ", ".join(unknown) or "nothing"
        raise UsageError(f"--save must list some of {enumerate_words(OUTPUTS)}, got {given}")
    if "objects" in which and not (args.instances or args.objects):
        raise UsageError("--save objects needs separated objects; give --instances, or --objects N")
    if arguments.formats(args) and args.out is None:
        raise UsageError("--format writes folders into the output folder; give --out DIR")
    arguments.check_cutout_options(args, which)
    fits = args.n_classes or args.save_collection
    if arguments.names_collection(args) and (fits or args.levels in ("all", "image")):
        raise UsageError(
            "--collection applies a saved collection to single photographs; leave out --classes, --save-collection, "
            "--levels all and --levels image"
        )
    if fits and args.levels in ("image", "single"):
        raise UsageError(f"--classes and --save-collection fit photographs as a set; leave out --levels {args.levels}")
    if args.scheduler and (arguments.names_collection(args) or args.levels in ("image", "single")):
        raise UsageError(
            "--scheduler fits photographs as a set; leave out --collection, --levels image and --levels single"
        )


def _segment_single(
    args: argparse.Namespace,
    photographs: Sequence[Photograph],
    stems: Sequence[Path | ExactFile],
    vit: ViT,
    which: Sequence[str],
    unread: Sequence[VitnpError],
) -> Generator[Outcome, None, None]:
    """Segment photographs one by one, by themselves or with a fitted collection."""
    from vitnp.export.per_image import segment_files

    names = SET_OPTIONS if vit.device == "cuda" else (*SET_OPTIONS, "batch")
    unused = [OPTIONS[name].long_flag for name in names if getattr(args, name) != OPTIONS[name].default]
    if unused:
        shared.say(
            f"{', '.join(unused)}: no effect on photographs segmented one by one; --levels all fits them as a set",
            quiet=args.quiet,
        )
    outcomes = segment_files(
        photographs,
        stems,
        vit,
        which,
        settings=arguments.settings(args),
        collection=arguments.load_collection(args, vit),
        overwrite=args.overwrite,
        n_threads=args.n_threads,
        batch=args.batch,
        cutout=arguments.cutout_options(args),
    )
    yield from shared.progress(outcomes, len(photographs), quiet=args.quiet)


def _segment_set(
    args: argparse.Namespace,
    photographs: Sequence[Photograph],
    stems: Sequence[Path | ExactFile],
    vit: ViT,
    which: Sequence[str],
    unread: Sequence[VitnpError],
) -> Generator[Outcome, None, None]:
    """Segment all photographs as one collection."""
    from vitnp.export.collection_run import CollectionRun
    from vitnp.segmenter import Segmenter

    if args.out is None:
        shared.say("give --out DIR to get the gallery, the contact sheet and annotations.json too", quiet=args.quiet)
    with arguments.workers(args) as workers:
        segmenter = Segmenter(
            vit, args.n_classes, regions=args.regions, **arguments.segmenter_arguments(args), **workers
        )
        run = CollectionRun(
            segmenter,
            photographs,
            [Path(stem) for stem in stems],
            which,
            out=args.out,
            polygons=args.polygons,
            overwrite=args.overwrite,
            unread=unread,
            save_collection=args.save_collection,
            cutout=arguments.cutout_options(args),
        )
        try:
            yield from run.outcomes()
        except (KeyboardInterrupt, GeneratorExit):  # the latter for an interrupt while an outcome is reported
            shared.say(run.progress_so_far, quiet=args.quiet)
            raise
    if run.unchanged:
        shared.say("nothing has changed since the last run; --overwrite redoes everything", quiet=args.quiet)
    elif not run.finished:
        return
    if args.out is not None:
        export.write_formats(args.out, arguments.formats(args), args, tolerance=args.polygons)
    if args.save_collection:
        shared.say(
            f"the collection is in {args.save_collection}; --collection {args.save_collection} applies it",
            quiet=args.quiet,
        )
    if args.out is not None:
        shared.say(f"look at {args.out / 'gallery.html'} and {args.out / 'contact-sheet.png'}", quiet=args.quiet)


def report(args: argparse.Namespace, outcome: Outcome) -> None:
    """Print one line on stdout for a photograph: JSON for programs, a summary for people."""
    if outcome.capped:
        shared.say_capped(outcome.photograph, args.max_tokens, quiet=args.quiet)
    facts = outcome.facts
    if args.json:
        shared.print_json(
            {
                **path_entries("photograph", outcome.photograph),
                "status": outcome.status,
                **mapping_entries("outputs", outcome.outputs),
                **({} if facts is None else facts.as_dict()),
            }
        )
    elif not args.quiet:
        files = _files_in_words(list(outcome.outputs.values()))
        if facts is None:
            streams.print_line(f"{outcome.photograph}: done before -> {files}")
            return
        classes = "".join(f", class {label}" for label in facts.classes or ())
        count = len(facts.objects or ())
        objects = "" if facts.objects is None else f", {count} object{'s' * (count != 1)}"
        streams.print_line(
            f"{outcome.photograph}: foreground {facts.share:.0%}{objects}{classes}, "
            f"confidence {facts.confidence:.2f}, {sum(facts.seconds.values()):.2f} s -> {files}"
        )


def _files_in_words(files: Sequence[Path]) -> str:
    """Return the files of a photograph for people: the folder once, if it is the same for all.

    Examples
    --------
    >>> _files_in_words([Path("out/a_mask.png"), Path("out/a_overlay.png")])
    'out/a_mask.png, a_overlay.png'
    """
    same_folder = len({path.parent for path in files}) == 1
    return ", ".join(str(path) if index == 0 or not same_folder else path.name for index, path in enumerate(files))
