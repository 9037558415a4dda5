"""Build parsers from the table of options, and turn parsed options into arguments of the library."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitnp.cli import shared
from vitnp.errors import ImageError, UsageError, VitnpError
from vitnp.options import EXPORT_FORMATS, MIN_PHOTOGRAPHS_FOR_A_SET, OPTIONS, Option, Settings, enumerate_words

if TYPE_CHECKING:
    from vitnp.io.find import Photograph
    from vitnp.masks.cutout_options import CutoutOptions
    from vitnp.method.collection import Collection
    from vitnp.vit.model import ViT

# Groups of options that several commands take.
CHECKPOINT = ("heads", "pos_embed", "normalization", "grid")
NETWORK = ("model", *CHECKPOINT, "device", "precision")
FEATURES = ("short_side", "facet", "layer", "stride", "max_tokens", "max_pixels", "alpha")
METHOD = (*FEATURES, "domain", "refine", "seed", "min_confidence", "objects")
COLLECTION = ("levels", "collection", "n_categories", "consistency", "fit_patches", "cache", "scheduler")
RUN = ("n_threads", "batch", "quiet", "json")


def add_options(parser: argparse.ArgumentParser, title: str, *names: str, **changes: Any) -> None:
    """Add a group of options from the table.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    title : str
        Heading of the group in ``--help``.
    *names : str
        Keys of :data:`vitnp.options.OPTIONS`.
    **changes : dict
        Arguments of ``add_argument`` that this command changes, by name of the option: "help" or "default".
    """
    group = parser.add_argument_group(title)
    for name in names:
        option = OPTIONS[name]
        keywords = {
            "dest": name,
            "default": option.default,
            "help": option.help.replace("%", "%%"),
            **changes.get(name, {}),
        }
        if option.type is bool:
            keywords["action"] = "store_true"
        else:
            keywords |= {"type": _converter(option), "metavar": option.metavar}
        if option.const is not None:
            keywords |= {"nargs": "?", "const": option.const}
        group.add_argument(option.long_flag, **keywords)
        if option.old_flags:
            hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            group.add_argument(*option.old_flags, **{**keywords, **hidden})


def number(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least `minimum`."""
    return _converter(Option("value", "", int, minimum=minimum))


def _converter(option: Option) -> Callable[[str], Any]:
    """Return the argparse type of an option: it converts the text and checks the value."""

    def convert(text: str) -> Any:
        value: Any = option.old_values.get(text, text)
        if option.type in (int, float) and value not in option.words:
            value = _to_number(value, option.type)
        if value is None or not option.accepts(value):
            raise argparse.ArgumentTypeError(f"must be {option.allowed}, got {text!r}")
        return Path(text) if option.type is Path else value

    return convert


def _to_number(text: str, kind: type) -> int | float | None:
    """Return the number that a text stands for, None if it is not a number; 120e6 is a whole number."""
    try:
        if kind is int and text.lstrip("+-").isdecimal():
            return int(text)
        value = float(text)
        if kind is float:
            return value
        return int(value) if value.is_integer() else None
    except (ValueError, OverflowError):
        return None


# Argparse types for parsers without a table of options.
positive = number(1)
natural = number(0)


def settings(args: argparse.Namespace) -> Settings:
    """Return the settings of the method."""
    return Settings(**{name: getattr(args, name) for name in METHOD}, instances=_instances(args))


def _instances(args: argparse.Namespace) -> bool:
    """Return --instances, which only commands that list objects have."""
    return bool(getattr(args, "instances", False))


def cutout_options(args: argparse.Namespace) -> CutoutOptions:
    """Return the options of cutouts.

    Raises
    ------
    UsageError
        If the background is neither a color nor one of the words.
    """
    from vitnp.masks.cutout_options import CutoutOptions

    return CutoutOptions(args.background, args.crop)


def check_cutout_options(args: argparse.Namespace, which: Sequence[str]) -> None:
    """Check that --background and --crop are allowed, and that cutouts are written if they are given.

    Raises
    ------
    UsageError
        If not.
    """
    if cutout_options(args).stamp and "cutout" not in which:
        raise UsageError("--background and --crop change cutouts; add cutout to the list of --save, or leave them out")


def n_threads(args: argparse.Namespace) -> int:
    """Return the number of threads, all cores by default."""
    from vitnp.kernels.threads import pool

    return pool.resolve_n_threads(args.n_threads)


def formats(args: argparse.Namespace) -> list[str]:
    """Return the formats that --format lists.

    Raises
    ------
    UsageError
        If one is unknown.
    """
    listed = [] if args.formats is None else [name for name in dict.fromkeys(args.formats.split(",")) if name]
    unknown = [name for name in listed if name not in EXPORT_FORMATS]
    if unknown or (args.formats is not None and not listed):
        given = ", ".join(unknown) or "nothing"
        raise UsageError(f"--format must list some of {enumerate_words(EXPORT_FORMATS)}, got {given}")
    return listed


def load_model(args: argparse.Namespace) -> ViT:
    """Load the network that the options name, with a notice if it is the built-in one.

    With --scheduler the device "auto" means the CPU, where the workers compute.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be found, downloaded or read.
    DeviceError
        If the device cannot be used.
    UsageError
        If --scheduler and --device cuda are combined.
    """
    from vitnp import kernels
    from vitnp.checkpoints import registry
    from vitnp.checkpoints.download import address_of, is_to_be_fetched
    from vitnp.checkpoints.load import load_vit
    from vitnp.io import libtiff

    libtiff.silence()
    shared.set_verbosity(quiet=args.quiet)
    scheduler = getattr(args, "scheduler", None)
    if scheduler and args.device == "cuda":
        raise UsageError("--scheduler computes on CPUs; leave out --device cuda or --scheduler")
    device = kernels.choose_device("cpu" if scheduler else args.device)  # before anything is fetched
    entry = registry.entries().get(str(args.model))
    if entry is not None and is_to_be_fetched(entry):
        shared.say(f"fetching {entry.name}, {entry.megabytes:g} MB, from {address_of(entry)}", quiet=args.quiet)
    if args.model == "auto":
        shared.say(
            "using the built-in checkpoint; --model dino_vits8 downloads a larger one, `vitnp weights list` shows all",
            quiet=args.quiet,
        )
    vit = load_vit(args.model, **checkpoint_arguments(args))
    return vit.to(device=device, precision=args.precision)


def checkpoint_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that take precedence over what a checkpoint says, as arguments of :func:`vitnp.load_vit`."""
    return {name: getattr(args, name) for name in CHECKPOINT}


def segmenter_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the method and the collection as arguments of :class:`vitnp.Segmenter`."""
    names = (*METHOD, "n_categories", "consistency", "fit_patches", "cache", "n_threads", "batch")
    return {
        **{name: getattr(args, name) for name in names},
        "instances": _instances(args),
        "progress": functools.partial(shared.stage_progress, quiet=args.quiet),
        "notice": functools.partial(shared.say, quiet=args.quiet),
    }


@contextlib.contextmanager
def workers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Connect to --scheduler: yield the arguments of :class:`vitnp.Segmenter` for it, none without the option.

    Raises
    ------
    ClusterError
        If the scheduler cannot be reached.
    """
    if args.scheduler is None:
        yield {}
        return
    from vitnp.distributed import connected

    with connected(args.scheduler, cache=args.cache, workers=args.n_threads) as cluster:
        yield {"mapper": cluster.map, "extractor": cluster.extract_to_store}


class Found(NamedTuple):
    """What the paths of the command line hold.

    Attributes
    ----------
    photographs : list of Photograph
    failures : list of VitnpError
        One for each path that holds no photographs, and for each part of a folder that cannot be read.
    left_out : str
        Pictures of other kinds in words, such as "12 camera raw, 1 PDF"; empty if there are none.
    """

    photographs: list[Photograph]
    failures: list[VitnpError]
    left_out: str


def find_photographs(args: argparse.Namespace, paths: Sequence[str] | None = None) -> Found:
    """List the photographs of the command line, or of some paths; with --json the errors are printed at once."""
    from vitnp.io import find

    failures: list[ImageError] = []
    left_out: Counter[str] = Counter()
    photographs = find.find_photographs(
        args.photographs if paths is None else paths, failures=failures, left_out=left_out
    )
    for error in failures:
        shared.report_failure(error, as_json=args.json, photograph=error.path)
    return Found(photographs, list(failures), find.describe(left_out))


def fits_a_set(args: argparse.Namespace, n_photographs: int) -> bool:
    """Tell whether the photographs are fitted as a set.

    ``--levels all`` asks for it; with ``--levels auto`` a set is fitted if there are at least
    `MIN_PHOTOGRAPHS_FOR_A_SET` photographs and --collection names no file.
    """
    return args.levels == "all" or (
        args.levels == "auto" and not names_collection(args) and n_photographs >= MIN_PHOTOGRAPHS_FOR_A_SET
    )


def names_collection(args: argparse.Namespace) -> bool:
    """Tell whether --collection names a file."""
    return args.collection not in ("auto", "none")


def load_collection(args: argparse.Namespace, vit: ViT, *, quiet: bool = False) -> Collection | None:
    """Return the collection to apply to single photographs, with a notice if the built-in one does not fit."""
    if args.levels == "image":
        return None
    from vitnp.method.defaults import resolve_collection

    collection, reason = resolve_collection(args.collection, vit, settings(args))
    if reason:
        shared.say(
            f"the built-in collection does not apply, {reason}; using the image level alone without --collection FILE",
            quiet=args.quiet or quiet,
        )
    return collection
