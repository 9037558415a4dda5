"""``python -m vitnp.weights.train.fit_collection PHOTOS … --out FILE``: a collection for single photographs to be judged by.

Reads photographs, folders of them, and packs, leaves out what a measurement needs to be unseen, draws a sample, and fits the data set's
level and those of its categories with :class:`vitnp.Segmenter`, as it fits any set. Needs no torch.
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
from vitnp.weights.train.data.packs import Picture, pictures_of

from vitnp.checkpoints.registry import collection_temperature
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.io.write import make_folder
from vitnp.method import collection_level
from vitnp.method.collection import Collection
from vitnp.progress import Progress, silent
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

__all__ = ["fit_collection", "main", "sample"]


def sample(
    pictures: Sequence[Picture], exclusion: Deduplication, photographs: int | None = None, seed: int = 0
) -> Iterator[Path | np.ndarray]:
    """Draw photographs in an order of chance, without those excluded; more of them begin with the same ones.

    Parameters
    ----------
    pictures : sequence of Picture
    exclusion : Exclusion
    photographs : int, optional
        How many; by default all.
    seed : int

    Yields
    ------
    Path or (height, width, 3) uint8
        Files by their path, pictures of packs by their pixels.

    Raises
    ------
    ImageError
        When one can't be read.
    """
    left = len(pictures) if photographs is None else photographs
    for index in np.random.default_rng(seed).permutation(len(pictures)):
        if not left:
            return
        picture = pictures[index]
        rgb = picture.read()
        if exclusion.why(picture.name, rgb) is None:
            left -= 1
            yield picture.source if isinstance(picture.source, Path) else rgb


def fit_collection(
    photographs: Sequence[Path | np.ndarray],
    vit: ViT | None = None,
    *,
    categories: int = 20,
    temperature: float | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Collection:
    """Fit the levels that single photographs are to be judged by.

    Parameters
    ----------
    photographs : sequence of path or (height, width, 3) uint8
        Of any size: they are brought to the short side at which the network sees every photograph.
    vit : ViT, optional
        By default the built-in checkpoint.
    categories : int
        Of similar photographs.
    temperature : float, optional
        By which a patch belongs to several clusters, at both levels; by default what the registry says of the checkpoint, else 0.05.
    seed : int
    cache : path, optional
        Folder that keeps the features.
    threads : int, optional
    progress : callable, optional
        As for :class:`vitnp.Segmenter`.

    Returns
    -------
    Collection

    Raises
    ------
    UsageError
        When there is nothing to fit.
    ImageError
        When no photograph could be read.
    """
    options = {"categories": categories, "seed": seed, "cache": cache, "n_threads": threads, "progress": progress}
    # Nobody wants the masks of these photographs, so their edges stay rough; those to come are refined as usual.
    segmenter = Segmenter(vit, refine="none", **options)
    if temperature is None:
        temperature = collection_temperature(segmenter.vit.sha256)
    if temperature is not None:
        soften = functools.partial(dataclasses.replace, temperature=temperature)
        segmenter.dataset_level, segmenter.category_level = map(
            soften, (collection_level.DATASET, collection_level.CATEGORY)
        )
    collection = segmenter.fit(photographs).collection
    return dataclasses.replace(collection, parameters={**collection.parameters, "refine": "solver"})


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = shared.parser(
        "python -m vitnp.weights.train.fit_collection",
        "Fit a collection, without classes, that single photographs can be judged by: `python -m vitnp.segment --collection FILE`.",
        usage="python -m vitnp.weights.train.fit_collection PHOTOS [PHOTOS ...] --out FILE [options]",
    )
    made.add_argument(
        "photographs", nargs="+", type=Path, metavar="PHOTOS", help="photographs, folders of them, or packs (.npz)"
    )
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    made.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="leave out what also occurs there, by name or looks",
    )
    made.add_argument(
        "--photographs", dest="count", type=arguments.positive, metavar="N", help="a sample of so many (all)"
    )
    made.add_argument(
        "--categories", type=arguments.positive, default=20, metavar="N", help="groups of similar photographs (20)"
    )
    made.add_argument("--temperature", type=float, metavar="T", help="of both levels (the registry's, else 0.05)")
    made.add_argument("--seed", type=arguments.natural, default=0, metavar="N", help="same seed, same file (0)")
    made.add_argument("--cache", metavar="DIR", help="folder that keeps features for the next run")
    arguments.add_model_options(made)
    arguments.add_run_options(made)
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
    if args.temperature is not None and not 0 < args.temperature <= 10:
        raise UsageError(f"a temperature of {args.temperature} can't be; choose one above 0, such as 0.05")
    make_folder(args.out.parent)  # what can't be written is known before the long work
    pictures = pictures_of(args.photographs)
    exclusion = Deduplication(args.exclude)
    with shared.stage_progress("photographs", args.count or len(pictures), quiet=args.quiet) as advance:
        photographs = []
        for photograph in sample(pictures, exclusion, args.count, args.seed):
            photographs.append(photograph)
            advance(1)
    if len(photographs) < (args.count or 1):
        raise UsageError(f"there are {len(photographs)} photographs that aren't excluded; ask for fewer, or name more")
    collection = fit_collection(
        photographs, arguments.load_model(args), categories=args.categories, temperature=args.temperature, seed=args.seed,
        cache=args.cache, threads=args.threads, progress=functools.partial(shared.stage_progress, quiet=args.quiet),
    )  # fmt: skip
    collection.save(args.out)
    facts = {
        "file": str(args.out),
        "photographs": len(photographs),
        "categories": len(collection.categories),
        "digest": collection.digest,
    }
    if args.json:
        shared.print_json(facts)
    else:
        print("{photographs} photographs in {categories} categories -> {file}".format(**facts))
    return shared.EXIT_OK


if __name__ == "__main__":
    shared.run(main)
