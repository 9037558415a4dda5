"""Groups of options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitnp.errors import UsageError

if TYPE_CHECKING:
    from vitnp.method.collection import Collection
    from vitnp.vit.model import ViT
from vitnp.cli.shared import say, stage_progress

# Repeated here so that --help and wrong options are answered before anything heavy is imported.
FACETS = ("key", "query", "value", "token")
METHODS = ("solver", "crf", "guided", "none")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
REGIONS = ("image", "components", "split")
CONSISTENCY = ("mean", "majority", "intersection")

# Photographs from which on a set teaches more than it costs.
ENOUGH_FOR_A_SET = 30


def add_model_options(to: argparse.ArgumentParser) -> None:
    """The network: --model, --heads, --pos-embed, --normalize, --device, --precision."""
    group = to.add_argument_group("network")
    group.add_argument(
        "--model", default="auto", metavar="NAME|FILE", help="registered name or checkpoint file (built-in)"
    )
    group.add_argument("--heads", type=positive, metavar="N", help="attention heads, where the file doesn't say")
    group.add_argument(
        "--pos-embed",
        choices=("offset", "exact", "antialias"),
        metavar="HOW",
        help="offset, exact or antialias (as the file says)",
    )
    group.add_argument(
        "--normalization",
        "--normalise",
        choices=("imagenet", "half"),
        metavar="HOW",
        help="imagenet or half (as the file says)",
    )
    group.add_argument(
        "--device", choices=DEVICES, metavar="D", default="auto", help="cpu, cuda, or auto: cuda where it works (auto)"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        metavar="HOW",
        default="auto",
        help="fp32, tf32, bf16, fp16; auto: fp32, on cuda fp16",
    )


def load_model(args: argparse.Namespace) -> ViT:
    """The ViT that the options name; a notice on stderr when it's the built-in one.

    Workers of --scheduler have CPUs, so that is what "auto" means beside it.
    """
    from vitnp import kernels
    from vitnp.checkpoints import registry
    from vitnp.checkpoints.download import address_of, place_of
    from vitnp.checkpoints.load import load_vit

    kernels.quiet = args.quiet
    scheduler = getattr(args, "scheduler", None)
    if scheduler and args.device == "cuda":
        raise UsageError("--scheduler has the work done by CPUs; leave out --device cuda, or --scheduler")
    device = kernels.choose_device("cpu" if scheduler else args.device)  # before anything is fetched
    entry = registry.entries().get(str(args.model))
    if entry is not None and entry.url and not place_of(entry).is_file():
        say(f"fetching {entry.name}, {entry.megabytes:g} MB, from {address_of(entry)}", quiet=args.quiet)
    if args.model == "auto":
        say(
            "using the built-in checkpoint; `python -m vitnp.weights fetch dino_vits8` brings a larger one, --model dino_vits8 uses it",
            quiet=args.quiet,
        )
    return load_vit(args.model, heads=args.heads, pos_embed=args.pos_embed, normalization=args.normalization).to(
        device=device, precision=args.precision
    )


def add_method_options(to: argparse.ArgumentParser) -> None:
    """The method: --size, --facet, --layer, --stride, --refine, --seed, --max-tokens, --max-pixels, --min-confidence."""
    group = to.add_argument_group("method")
    group.add_argument("--size", type=positive, metavar="PX", help="short side the network sees (320)")
    group.add_argument(
        "--facet", choices=FACETS, default="key", metavar="NAME", help="key, query, value or token (key)"
    )
    group.add_argument("--layer", type=int, default=-1, metavar="N", help="block to read, from 0 or back from -1 (-1)")
    group.add_argument("--stride", type=positive, metavar="PX", help="pixels between patches (the patch)")
    group.add_argument(
        "--refine", choices=METHODS, default="solver", metavar="HOW", help="solver, crf, guided or none (solver)"
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="same seed, same masks (0)")
    group.add_argument("--max-tokens", type=positive, default=4096, metavar="N", help="cap of the patch grid (4096)")
    group.add_argument(
        "--max-pixels", type=positive, default=120_000_000, metavar="N", help="refuse larger photographs (120e6)"
    )
    group.add_argument(
        "--min-confidence", type=share, default=0.0, metavar="C", help="below it an empty mask; 0..1 (0, off)"
    )


def method_options(args: argparse.Namespace) -> dict:
    """The method's options as keywords of :func:`vitnp.segment_image`."""
    names = ("size", "facet", "layer", "stride", "refine", "seed", "max_tokens", "max_pixels", "min_confidence")
    return {name: getattr(args, name) for name in names}


def add_collection_options(to: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The collection: --levels, --collection, --categories, --consistency, --fit-patches, --cache, --scheduler."""
    group = to.add_argument_group("collection")
    group.add_argument(
        "--levels", choices=("auto", "image", "each", "all"), default="auto", metavar="L",
        help="image; each; all: fit the set; auto: all from 30 on",
    )  # fmt: skip
    group.add_argument(
        "--collection", default="auto", metavar="FILE", help="judges each: of --fit-to, or none (the built-in one)"
    )
    group.add_argument("--categories", type=positive, metavar="N", help="groups of similar photographs (one for 20)")
    group.add_argument(
        "--consistency",
        choices=CONSISTENCY,
        default="mean",
        metavar="HOW",
        help="mean, majority or intersection (mean)",
    )
    group.add_argument("--fit-patches", type=patches, metavar="N", help="patches fitted on, or all (60000)")
    group.add_argument("--cache", metavar="DIR", help="folder that keeps features for the next run")
    group.add_argument("--scheduler", metavar="URL", help="dask workers fit the set: tcp://HOST:PORT, or local")
    return group


def segmenter_options(args: argparse.Namespace) -> dict:
    """The collection's and the method's options as keywords of :class:`vitnp.Segmenter`."""
    names = ("categories", "consistency", "fit_patches", "cache")
    return {
        **method_options(args), **{name: getattr(args, name) for name in names},
        "n_threads": args.threads, "batch": args.batch, "progress": functools.partial(stage_progress, quiet=args.quiet),
        "notice": functools.partial(say, quiet=args.quiet),
    }  # fmt: skip


@contextlib.contextmanager
def workers(args: argparse.Namespace) -> Iterator[dict]:
    """Who computes, as keywords of :class:`vitnp.Segmenter`: the workers of --scheduler, as long as the context lasts; else nobody else."""
    if args.scheduler is None:
        yield {}
        return
    from vitnp.distributed import connected

    with connected(args.scheduler, cache=args.cache, workers=args.threads) as cluster:
        yield {"mapper": cluster.map, "extractor": cluster.extract_to_store}


def wants_all_levels(args: argparse.Namespace, photographs: int) -> bool:
    """Whether the photographs are fitted as a set: as asked, by default when there are enough of them and no collection is named."""
    return args.levels == "all" or (
        args.levels == "auto" and not names_collection(args) and photographs >= ENOUGH_FOR_A_SET
    )


def names_collection(args: argparse.Namespace) -> bool:
    """Whether --collection names a file."""
    return args.collection not in ("auto", "none")


def chosen_collection(args: argparse.Namespace, vit: ViT, *, quiet: bool = False) -> Collection | None:
    """What photographs, each by itself, are judged by beside their own patches; a notice where the built-in collection can't be that."""
    if args.levels == "image":
        return None
    from vitnp.pipeline import resolve_collection

    options = {name: value for name, value in method_options(args).items() if name != "max_pixels"}
    collection, reason = resolve_collection(args.collection, vit, **options)
    if reason:
        say(
            f"the built-in collection doesn't apply, {reason}: image level alone, or --collection FILE",
            quiet=args.quiet or quiet,
        )
    return collection


def add_run_options(to: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The run: --threads, --quiet, --json."""
    group = to.add_argument_group("run")
    group.add_argument("--threads", type=positive, metavar="N", help="photographs in flight (all cores)")
    group.add_argument("--quiet", action="store_true", help="errors only")
    group.add_argument("--json", action="store_true", help="JSON on stdout")
    return group


def add_batch_option(group: argparse._ArgumentGroup) -> None:
    """--batch, for what takes features of many photographs."""
    group.add_argument("--batch", type=positive, metavar="N", help="photographs in the network at once (by memory)")


def positive(text: str) -> int:
    """Argparse type: a whole number from 1 on."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} isn't a whole number from 1 on")
    return value


def natural(text: str) -> int:
    """Argparse type: a whole number from 0 on."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} isn't a whole number from 0 on")
    return value


def patches(text: str) -> int | str:
    """Argparse type: a whole number from 1 on, or "all"."""
    return text if text == "all" else positive(text)


def share(text: str) -> float:
    """Argparse type: a number in 0..1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} isn't a number from 0 to 1")
    return value


def _whole(text: str) -> int:
    """A whole number, also written like 120e6."""
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} isn't a whole number")
    return int(text) if text.isdecimal() else int(value)
