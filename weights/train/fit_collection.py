"""``python -m vitnp.weights.train.fit_collection PHOTOS ... --out FILE``: fit a collection for single photographs.

Reads files, folders and packs, leaves out the photographs of evaluation sets, draws a random sample, and fits the
data set's level and those of its categories with :class:`vitnp.Segmenter`. Does not need torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from vitnp.weights.train.data.dedup import Deduplication
from vitnp.weights.train.data.packs import Picture, list_pictures

from vitnp.checkpoints.registry import collection_temperature
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.io.write import make_folder
from vitnp.method import collection_level
from vitnp.method.agreement import ANY_PHOTOGRAPHS
from vitnp.method.collection import Collection
from vitnp.method.defaults import default_vit
from vitnp.method.readout import ReadoutConfig
from vitnp.progress import Progress, silent
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

__all__ = ["fit_collection", "main", "sample"]


def sample(
    pictures: Sequence[Picture], excluded: Deduplication, n_photographs: int | None = None, seed: int = 0
) -> Iterator[Path | np.ndarray]:
    """Draw photographs in random order, without those excluded; a smaller sample is the beginning of a larger one.

    Parameters
    ----------
    pictures : sequence of Picture
        Photographs to draw from.
    excluded : Deduplication
        Photographs to leave out.
    n_photographs : int, optional
        Size of the sample; by default all.
    seed : int
        Seed of the random order.

    Yields
    ------
    path or (height, width, 3) uint8 array
        The path of a file, or the pixels of a picture in a pack.

    Raises
    ------
    ImageError
        If a photograph cannot be read.
    """
    remaining = len(pictures) if n_photographs is None else n_photographs
    for index in np.random.default_rng(seed).permutation(len(pictures)):
        if not remaining:
            return
        picture = pictures[index]
        rgb = picture.read()
        if excluded.reason(picture.name, rgb) is None:
            remaining -= 1
            yield picture.source if isinstance(picture.source, Path) else rgb


def fit_collection(
    photographs: Sequence[Path | np.ndarray],
    vit: ViT | None = None,
    *,
    n_categories: int = 20,
    temperature: float | None = None,
    short_side: int | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    progress: Progress = silent,
) -> Collection:
    """Fit a collection that is to be applied to single photographs.

    Parameters
    ----------
    photographs : sequence of path or (height, width, 3) uint8 array
        Photographs of any size.
    vit : ViT, optional
        Network; by default the built-in checkpoint.
    n_categories : int
        Number of groups of similar photographs.
    temperature : float, optional
        Softmax temperature of the assignment of a patch to clusters, at both levels; by default the registry's value
        for the checkpoint, else 0.05.
    short_side : int, optional
        Short side of the network's input in pixels; by default that of the checkpoint.
    seed : int
        Seed of the clustering.
    cache : path, optional
        Folder that keeps the features for later runs.
    n_threads : int, optional
        Number of photographs processed at the same time; by default one per core.
    progress : callable, optional
        See :class:`vitnp.Segmenter`.

    Returns
    -------
    Collection
        The fitted collection, for masks refined with the bilateral solver.

    Raises
    ------
    UsageError
        If there is nothing to fit.
    ImageError
        If no photograph could be read.
    """
    vit = default_vit() if vit is None else vit
    dataset, category = collection_level.DATASET, collection_level.CATEGORY
    if temperature is None:
        temperature = collection_temperature(vit.sha256)
    if temperature is not None:
        dataset = dataclasses.replace(dataset, temperature=temperature)
        category = dataclasses.replace(category, temperature=temperature)
    # The masks of these photographs are discarded, so they are not refined.
    segmenter = Segmenter(
        vit,
        n_categories=n_categories,
        short_side=short_side,
        refine="none",
        seed=seed,
        cache=cache,
        n_threads=n_threads,
        progress=progress,
        dataset_level=dataset,
        category_level=category,
        readout=ReadoutConfig(weights=ANY_PHOTOGRAPHS),
    )
    collection = segmenter.fit(photographs).collection
    assert collection is not None, "fit() sets it"
    return dataclasses.replace(collection, parameters={**collection.parameters, "refine": "solver"})


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = shared.parser(
        "python -m vitnp.weights.train.fit_collection",
        "Fit a collection, without classes, to be applied to single photographs with "
        "`python -m vitnp.segment --collection FILE`.",
        usage="python -m vitnp.weights.train.fit_collection PHOTOS [PHOTOS ...] --out FILE [options]",
    )
    add = parser.add_argument
    add("photographs", nargs="+", type=Path, metavar="PHOTOS", help="photographs, folders of them, or packs (.npz)")
    add("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    add(
        "--exclude", type=Path, nargs="+", default=[], metavar="DIR",
        help="leave out photographs that also occur in DIR, by file name or by looks",
    )  # fmt: skip
    add("--photographs", dest="n_photographs", type=arguments.positive, metavar="N", help="size of the sample (all)")
    add(
        "--categories", dest="n_categories", type=arguments.positive, default=20, metavar="N",
        help="groups of similar photographs (20)",
    )  # fmt: skip
    add("--temperature", type=float, metavar="T", help="temperature of both levels (the registry's, else 0.05)")
    arguments.add_options(parser, "features", "short_side")
    add("--seed", type=arguments.natural, default=0, metavar="N", help="same seed, same file (0)")
    add("--cache", metavar="DIR", help="folder that keeps features for later runs")
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "run", "n_threads", "quiet", "json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit status.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default those of the process.
    """
    args = build_parser().parse_args(argv)
    if args.temperature is not None and not 0 < args.temperature <= 10:
        raise UsageError(f"temperature must be above 0 and at most 10, got {args.temperature}; 0.05 is usual")
    make_folder(args.out.parent)  # fails before the long computation if it cannot be written
    photographs = _sample(args)
    collection = fit_collection(
        photographs,
        arguments.load_model(args),
        n_categories=args.n_categories,
        temperature=args.temperature,
        short_side=args.short_side,
        seed=args.seed,
        cache=args.cache,
        n_threads=args.n_threads,
        progress=functools.partial(shared.stage_progress, quiet=args.quiet),
    )
    collection.save(args.out)
    summary = {
        "file": str(args.out),
        "photographs": len(photographs),
        "categories": len(collection.categories),
        "digest": collection.digest,
    }
    if args.json:
        shared.print_json(summary)
    else:
        print("{photographs} photographs in {categories} categories -> {file}".format(**summary))
    return shared.EXIT_OK


def _sample(args: argparse.Namespace) -> list[Path | np.ndarray]:
    """Return the sample of photographs that the options ask for."""
    pictures = list_pictures(args.photographs)
    excluded = Deduplication(args.exclude)
    n_wanted = args.n_photographs or len(pictures)
    photographs: list[Path | np.ndarray] = []
    with shared.stage_progress("photographs", n_wanted, quiet=args.quiet) as advance:
        for photograph in sample(pictures, excluded, args.n_photographs, args.seed):
            photographs.append(photograph)
            advance(1)
    if len(photographs) < (args.n_photographs or 1):
        raise UsageError(
            f"only {len(photographs)} photographs are not excluded, too few for --photographs {n_wanted}; "
            "ask for fewer, or give more"
        )
    return photographs


if __name__ == "__main__":
    shared.run(main)
