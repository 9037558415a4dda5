"""``python -m bench composites IMAGES MASKS --out DIR``: photographs side by side, two classes in each.

A region that holds objects of two classes is the method's known weakness. Sets of one object a photograph don't show
it, so this makes a set that does: photographs of two categories are scaled to the same height and put next to each
other, and so are their label maps. Every photograph is used at most once. The same seed and folders give the same
files, bit for bit.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitnp.cli import arguments, shared
from vitnp.errors import OutputError, UsageError
from vitnp.evaluate.data.label_images import read_coseg
from vitnp.evaluate.data.labeled import Sample
from vitnp.io import decode, resample, write
from vitnp.io.label_png import write_labels


def choose_pairs(categories: Sequence[str], count: int | None, seed: int) -> list[tuple[int, int]]:
    """Pairs of photographs of different categories, no photograph twice, as many as there can be or as asked for.

    Parameters
    ----------
    categories : sequence of str
        The category of each photograph.
    count : int, optional
    seed : int

    Returns
    -------
    list of (int, int)
        Left and right photograph.

    Raises
    ------
    UsageError
        When there can't be that many, or any.

    Examples
    --------
    >>> [sorted(pair) for pair in choose_pairs(["cat", "dog", "cat"], None, seed=0)] in ([[0, 1]], [[1, 2]])
    True
    """
    rng = np.random.default_rng(seed)
    left_over = {name: [] for name in sorted(set(categories))}
    for index in rng.permutation(len(categories)):
        left_over[categories[index]].append(int(index))
    pairs = []
    while count is None or len(pairs) < count:
        # The two fullest categories, or the small ones would run out and leave one that has no partner.
        order = rng.permutation(len(left_over))
        names = sorted((list(left_over)[place] for place in order), key=lambda name: -len(left_over[name]))[:2]
        if len(names) < 2 or not left_over[names[1]]:
            break
        pair = [left_over[name].pop() for name in names]
        pairs.append((pair[0], pair[1]) if rng.random() < 0.5 else (pair[1], pair[0]))
    if not pairs or (count is not None and len(pairs) < count):
        raise UsageError(
            f"these photographs make {len(pairs)} pairs of two categories"
            + (f", not {count}; ask for fewer" if count else "; name a folder with two categories or more")
        )
    return [pairs[place] for place in rng.permutation(len(pairs))]


def side_by_side(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Two photographs and their labels in one, as high as the lower of them.

    Parameters
    ----------
    left, right : photograph (H, W, 3) uint8 and labels (H, W) uint8

    Returns
    -------
    photograph, labels
        The photographs are scaled bicubically, labels take the nearest pixel.

    Examples
    --------
    >>> flat = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
    >>> side_by_side(flat, (flat[0][:2], 2 * flat[1][:2]))[1].tolist()
    [[1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 2, 2, 2, 2, 2, 2]]
    """
    height = min(len(left[1]), len(right[1]))
    scaled = [_scaled(photograph, labels, height) for photograph, labels in (left, right)]
    photographs, labels = zip(*scaled)
    return np.concatenate(photographs, axis=1), np.concatenate(labels, axis=1)


def _scaled(photograph: np.ndarray, labels: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    rows, columns = labels.shape
    width = max(1, round(columns * height / rows))
    nearest = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return resample.downscale(photograph, (height, width)), np.asarray(nearest)


def main(argv: list[str] | None = None) -> int:
    """Make the set: DIR/images, DIR/labels and DIR/classes.txt.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    made = shared.parser(
        "python -m bench composites",
        "Put photographs of two categories side by side, with their labels, as a set for the evaluation of classes.",
        epilog="IMAGES and MASKS hold a folder a category. DIR gets images/, labels/ and classes.txt.",
    )
    made.add_argument("images", type=Path, metavar="IMAGES", help="photographs, a folder a category")
    made.add_argument("masks", type=Path, metavar="MASKS", help="their masks, likewise")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; it must not be there yet")
    made.add_argument("--pairs", type=arguments.positive, metavar="N", help="how many (as many as there can be)")
    made.add_argument("--seed", type=arguments.natural, default=0, metavar="N", help="who meets whom (0)")
    made.add_argument("--quiet", action="store_true", help="errors only")
    args = made.parse_args(argv)

    whole = read_coseg(args.images, args.masks)
    pairs = choose_pairs([sample.name.split("/")[0] for sample in whole.samples], args.pairs, args.seed)
    if args.out.exists():
        raise UsageError(f"{args.out}: it is there already; name a new folder")
    with _new_folder(args.out) as out:
        for folder in ("images", "labels"):
            write.make_folder(out / folder)
        for number, pair in enumerate(shared.progress(pairs, len(pairs), quiet=args.quiet, unit="pair"), 1):
            photograph, labels = side_by_side(*(_read(whole.samples[index]) for index in pair))
            _write_photograph(out / "images" / f"{number:04}.png", photograph)
            write_labels(out / "labels" / f"{number:04}.png", labels)
        write.write_text(out / "classes.txt", "\n".join(whole.classes) + "\n")
    shared.say(f"{len(pairs)} composites written to {args.out}", quiet=args.quiet)
    return shared.EXIT_OK


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name at the end, and only when all went well."""
    path = path.absolute()
    write.make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".vitnp-", dir=path.parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            yield made
            made.rename(path)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}; choose another place") from None


def _read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    photograph = decode.read_image(sample.image)
    return photograph, sample.load_truth(photograph.shape[:2])


def _write_photograph(path: Path, photograph: np.ndarray) -> None:
    """A PNG without vitnp's stamp: what carries that is never taken as input."""
    from PIL import Image

    with write.replacing(path) as file:
        Image.fromarray(photograph).save(file, "PNG", compress_level=3)


if __name__ == "__main__":
    shared.run(main)
