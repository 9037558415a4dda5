"""Make a data set of pictures that show two categories side by side, for measuring ``--regions split``.

A region that contains objects of two classes is a known weakness of the method, which sets with one object per
photograph do not reveal. Here photographs of two categories are scaled to the same height and joined, and so are their
label maps. Each photograph is used at most once. The same seed and folders give the same files, bit for bit.
"""

from __future__ import annotations

import argparse
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
    """Choose pairs of photographs of different categories, without using a photograph twice.

    Parameters
    ----------
    categories : sequence of str
        The category of each photograph.
    count : int, optional
        Number of pairs; by default as many as possible.
    seed : int

    Returns
    -------
    list of (int, int)
        Indices of the left and the right photograph.

    Raises
    ------
    UsageError
        If there are not enough photographs for `count` pairs, or even for one.

    Examples
    --------
    >>> [sorted(pair) for pair in choose_pairs(["cat", "dog", "cat"], None, seed=0)] in ([[0, 1]], [[1, 2]])
    True
    """
    rng = np.random.default_rng(seed)
    unused: dict[str, list[int]] = {name: [] for name in sorted(set(categories))}
    for index in rng.permutation(len(categories)):
        unused[categories[index]].append(int(index))
    pairs: list[tuple[int, int]] = []
    while count is None or len(pairs) < count:
        # Take the two largest categories: otherwise the small ones run out, and a large one is left without partner.
        # They are shuffled before they are sorted, so that chance decides between categories of the same size.
        order = rng.permutation(len(unused))
        names = sorted((list(unused)[index] for index in order), key=lambda name: -len(unused[name]))[:2]
        if len(names) < 2 or not unused[names[1]]:
            break
        pair = [unused[name].pop() for name in names]
        pairs.append((pair[0], pair[1]) if rng.random() < 0.5 else (pair[1], pair[0]))
    if not pairs or (count is not None and len(pairs) < count):
        raise UsageError(
            f"these photographs make {len(pairs)} pairs of two categories"
            + (f", not {count}; ask for fewer" if count else "; name a folder with two categories or more")
        )
    return [pairs[index] for index in rng.permutation(len(pairs))]


def side_by_side(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Join two photographs and their labels, scaled to the smaller height.

    Parameters
    ----------
    left, right : tuple of arrays
        Photograph (height, width, 3) uint8, and labels (height, width) uint8.

    Returns
    -------
    photograph, labels
        Arrays as in the parameters. Photographs are downscaled with antialiasing, labels by nearest neighbor.

    Examples
    --------
    >>> flat = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
    >>> side_by_side(flat, (flat[0][:2], 2 * flat[1][:2]))[1].tolist()
    [[1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 2, 2, 2, 2, 2, 2]]
    """
    height = min(len(left[1]), len(right[1]))
    scaled = [_scale(photograph, labels, height) for photograph, labels in (left, right)]
    photographs, labels = zip(*scaled)
    return np.concatenate(photographs, axis=1), np.concatenate(labels, axis=1)


def _scale(photograph: np.ndarray, labels: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    rows, columns = labels.shape
    width = max(1, round(columns * height / rows))
    nearest = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return resample.downscale(photograph, (height, width)), np.asarray(nearest)


def main(argv: list[str] | None = None) -> int:
    """Write the set to DIR/images, DIR/labels and DIR/classes.txt."""
    args = _parse(argv)
    coseg = read_coseg(args.images, args.masks)
    pairs = choose_pairs([sample.name.split("/")[0] for sample in coseg.samples], args.pairs, args.seed)
    if args.out.exists():
        raise UsageError(f"{args.out}: this folder exists already; name a new one")
    with _new_folder(args.out) as out:
        for folder in ("images", "labels"):
            write.make_folder(out / folder)
        for number, pair in enumerate(shared.progress(pairs, len(pairs), quiet=args.quiet, unit="pair"), 1):
            photograph, labels = side_by_side(*(_read(coseg.samples[index]) for index in pair))
            _write_photograph(out / "images" / f"{number:04}.png", photograph)
            write_labels(out / "labels" / f"{number:04}.png", labels)
        write.write_text(out / "classes.txt", "\n".join(coseg.classes) + "\n")
    shared.say(f"{len(pairs)} composites written to {args.out}", quiet=args.quiet)
    return shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = shared.parser(
        "python -m bench composites",
        "Join photographs of two categories, with their labels, into a set for the evaluation of classes.",
        epilog="IMAGES and MASKS contain one folder per category. DIR gets images/, labels/ and classes.txt.",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="photographs, in one folder per category")
    parser.add_argument("masks", type=Path, metavar="MASKS", help="their masks, likewise")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--pairs", type=arguments.number(1), metavar="N", help="number of pairs (as many as possible)")
    parser.add_argument(
        "--seed", type=arguments.number(0), default=0, metavar="N", help="seed of the choice of pairs (0)"
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    return parser.parse_args(argv)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Create a folder under a temporary name, and rename it once it has been filled without error."""
    path = path.absolute()
    write.make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".vitnp-", dir=path.parent) as temporary:
            folder = Path(temporary, "folder")
            folder.mkdir()
            yield folder
            folder.rename(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder") from None


def _read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    photograph = decode.read_image(sample.image)
    return photograph, sample.load_truth(photograph.shape[:2])


def _write_photograph(path: Path, photograph: np.ndarray) -> None:
    """Write a PNG without vitnp's stamp, since stamped files are never read as input."""
    from PIL import Image

    with write.replacing(path) as file:
        Image.fromarray(photograph).save(file, "PNG", compress_level=3)


if __name__ == "__main__":
    shared.run(main)
