"""Correspondences between two photographs: patches of their objects that are each other's nearest neighbor."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp import kernels, options
from vitnp.errors import ImageError
from vitnp.features.record import FeatureRecord, unit_rows
from vitnp.io.decode import DecodedImage
from vitnp.io.inputs import as_photograph
from vitnp.io.path_text import path_entries
from vitnp.io.source import fingerprint, path_of
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas
from vitnp.matching.mutual import mutual_neighbors, spread_out
from vitnp.matching.picture import Side, draw_matches
from vitnp.method.defaults import resolve_vit
from vitnp.method.regions import region_patches
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline, image_memory_error
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from PIL import Image

    from vitnp.io.inputs import Photo


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Result of :func:`match_patches`: M correspondences, the most similar one first.

    Attributes
    ----------
    first_points, second_points : (M, 2) float64
        Centers of the patches in pixels of the upright photographs: x to the right, y down, from the top left corner.
    similarities : (M,) float32
        Cosine of the two patches.
    first_patches, second_patches : (M,) int64
        Numbers of the patches, row by row in the grids.
    grids : pair of (int, int)
        Rows and columns of patches of each photograph.
    n_mutual : int
        Number of mutual nearest neighbors before the limit.
    sides : pair of Side
        The photographs, and the objects that were matched.
    parameters : mapping
        Everything that the result depends on besides the photographs.
    """

    first_points: np.ndarray
    second_points: np.ndarray
    similarities: np.ndarray
    first_patches: np.ndarray
    second_patches: np.ndarray
    grids: tuple[tuple[int, int], tuple[int, int]]
    n_mutual: int
    sides: tuple[Side, Side]
    parameters: Mapping[str, object]

    def __len__(self) -> int:
        return len(self.similarities)

    def __repr__(self) -> str:
        return f"Matches({len(self)} of {self.n_mutual})"

    def picture(self) -> Image.Image:
        """Return both photographs side by side, with a line in a color of its own for each correspondence."""
        return draw_matches(self.sides, self.first_points, self.second_points)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can represent it.

        Returns
        -------
        dict
            "first" and "second" (photograph, width, height), "matches" (the points "first" and "second" as [x, y], and
            their "similarity"), "mutual" and "parameters".
        """
        rows = zip(self.first_points, self.second_points, self.similarities)
        return {
            "first": self.sides[0].to_dict(),
            "second": self.sides[1].to_dict(),
            "matches": [
                {
                    "first": first.round(2).tolist(),
                    "second": second.round(2).tolist(),
                    "similarity": round(float(similarity), 6),
                }
                for first, second, similarity in rows
            ],
            "mutual": self.n_mutual,
            "parameters": dict(self.parameters),
        }


def match_patches(
    first: Any,
    second: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    whole: bool = False,
    n_matches: int | str = options.N_MATCHES,
    short_side: int | None = None,
    facet: str = "key",
    layer: int | None = None,
    stride: int | None = None,
    max_tokens: int = options.MAX_TOKENS,
    max_pixels: int = options.MAX_PIXELS,
    alpha: str = "background",
    seed: int = 0,
) -> Matches:
    """Find corresponding points of the objects in two photographs.

    A correspondence is a pair of patches that are each other's nearest neighbor by the cosine of their features, among
    the patches of the two objects as :func:`vitnp.segment_image` finds them.

    Parameters
    ----------
    first, second : path, file object, bytes, PIL image, (height, width, 3) uint8 array, or row of a data set
        See :func:`vitnp.io.inputs.as_photograph`.
    vit : ViT, name or path, optional
        A network, or what :func:`vitnp.load_vit` takes; the built-in network by default.
    whole : bool
        Match all patches of both photographs, not only those of objects.
    n_matches : int or "all"
        Maximum number of correspondences: similar ones that are spread over the first photograph
        (:func:`vitnp.matching.mutual.spread_out`).
    short_side, facet, layer, stride, max_tokens, max_pixels, alpha, seed
        As for :func:`vitnp.segment_image`. A larger `short_side` or a smaller `stride` gives more patches.

    Returns
    -------
    Matches

    Raises
    ------
    ImageError
        If a photograph cannot be read, or no object is found in it.
    CheckpointError
        If the network cannot be read.
    DeviceError
        If the GPU's memory is too small for a photograph.
    UsageError
        If a value is not allowed.

    Examples
    --------
    >>> matches = vitnp.match_patches("cat.jpg", "kitten.jpg")                      # doctest: +SKIP
    >>> matches.first_points[0], matches.second_points[0], matches.similarities[0]  # doctest: +SKIP
    (array([208., 88.]), array([152., 120.]), 0.87)
    """
    count = options.check("n_matches", n_matches)
    settings = Settings(short_side, facet, layer, stride, max_tokens, max_pixels, seed=seed, alpha=alpha)
    pipeline = ImagePipeline.create(resolve_vit(vit), settings)
    photographs = [as_photograph(first), as_photograph(second)]
    decoded = [pipeline.decode(photograph) for photograph in photographs]
    one, other = (_View.of(photograph, image, pipeline, whole) for photograph, image in zip(photographs, decoded))
    x, y, cosines = mutual_neighbors(one.keys, other.keys)
    points = one.centers(one.patches[x], pipeline.vit.config.patch, pipeline.spec.stride)
    chosen = spread_out(points, cosines, len(points) if count == "all" else count)
    x, y = one.patches[x[chosen]], other.patches[y[chosen]]
    patch, stride = pipeline.vit.config.patch, pipeline.spec.stride
    return Matches(
        one.centers(x, patch, stride),
        other.centers(y, patch, stride),
        cosines[chosen],
        x,
        y,
        (one.features.grid, other.features.grid),
        len(points),
        (one.side, other.side),
        {**pipeline.parameters, "whole": whole, "n_matches": count},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """What is matched of one photograph.

    Attributes
    ----------
    side : Side
    features : FeatureRecord
    patches : (n,) int64
        Numbers of the patches to match.
    keys : (n, D) float32
        Their features, of length 1.
    """

    side: Side
    features: FeatureRecord
    patches: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(cls, photograph: Photo, image: DecodedImage, pipeline: ImagePipeline, whole: bool) -> _View:
        clock = Stopwatch(pipeline.vit.device)
        with blas.one_blas_thread(), image_memory_error(pipeline.vit.device):
            (features,) = pipeline.extract([pipeline.preprocess(image, fingerprint(photograph, image))])
            mask = None if whole else pipeline.segment(image, features, clock).mask
        patches = np.arange(features.patches) if mask is None else _object_patches(mask, features.grid, photograph)
        keys = unit_rows(np.asarray(kernels.to_host(features.keys), np.float32)[patches])
        return cls(_side(photograph, image, mask), features, patches, keys)

    def centers(self, patches: np.ndarray, patch: int, stride: int) -> np.ndarray:
        """Return the centers of patches in pixels of the photograph, (n, 2): x and y."""
        rows, columns = np.divmod(patches, self.features.grid[1])
        (height, width), (input_height, input_width) = self.features.size, self.features.pixels
        x = (columns * stride + patch / 2) * (width / input_width)
        y = (rows * stride + patch / 2) * (height / input_height)
        return np.stack([x, y], axis=1)


def _object_patches(mask: np.ndarray, grid: tuple[int, int], photograph: Photo) -> np.ndarray:
    """Return the patches that the mask of a photograph covers."""
    if not mask.any():
        path = _path_of(photograph)
        raise ImageError(
            f"{path or 'the photograph'}: no object was found in it; match all patches (--whole, whole=True)", path=path
        )
    return np.flatnonzero(region_patches(mask.astype(np.uint16), grid)[0])


def _side(photograph: Photo, image: DecodedImage, mask: np.ndarray | None) -> Side:
    path = _path_of(photograph)
    entries = {"photograph": None} if path is None else path_entries("photograph", path)
    return Side(image.rgb, image.profile, mask, entries)


def _path_of(photograph: Photo) -> str | None:
    path = None if isinstance(photograph, bytes) else path_of(photograph)
    return None if path is None else os.fspath(path)
