"""Inference in a fully connected CRF on the GPU: all of it one CUDA graph for shapes that occur again."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitnp.kernels.cuda import crf
from vitnp.kernels.cuda.graphs import Compute, GraphCache, Results
from vitnp.kernels.cuda.loader import require_cupy
from vitnp.kernels.reference.dense_crf import Gaussian, dense_crf_by, feature_ranges, pixel_features, unary_energies

if TYPE_CHECKING:
    import cupy

# Corners of points in the largest lattice whose arrays are as large as they may have to be; in larger ones that would
# take more memory than the number of vertices, which the host then reads, is worth waiting for.
MOST_ENTRIES = 1 << 23

_graphs = GraphCache()


def dense_crf(
    probability: cupy.ndarray, rgb: cupy.ndarray, *, gaussians: Sequence[Gaussian], steps: int
) -> cupy.ndarray:
    """Approximate the marginals of a fully connected CRF by mean field on permutohedral lattices.

    The host reads nothing: the extent of a lattice follows from the size of the photograph, and only the device knows
    the number of vertices. Several photographs of a size are inferred together, by as many launches as one. Photographs
    of more than a megapixel, and standard deviations for which only the features themselves can tell whether the
    lattice is possible, are inferred one by one, and the host waits for them.

    Parameters
    ----------
    probability : array, shape (..., h, w) or (..., h, w, classes), values in 0..1
    rgb : uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
    gaussians : sequence of (float, float, float or None)
    steps : int

    Returns
    -------
    (..., h, w, classes) float32
        The same bits on every run, alone or with other photographs.

    Raises
    ------
    ValueError
        If a standard deviation is too small.
    """
    import cupy

    rgb, probability = cupy.ascontiguousarray(rgb), cupy.ascontiguousarray(probability)
    photographs = rgb.shape[0] if rgb.ndim == 4 else 1
    weights, sigmas = [weight for weight, _, _ in gaussians], [(xy, color) for _, xy, color in gaussians]
    geometries = _geometries(rgb.shape[-3:-1], photographs, sigmas)
    if geometries is None:
        return _one_by_one(probability, rgb, gaussians, steps)

    def prepare(p: cupy.ndarray, pixels: cupy.ndarray) -> Compute:
        def compute() -> Results:
            lattices = [
                crf.normalize_lattice(
                    crf.embed(pixel_features(pixels, xy, color, cupy), geometry, photographs=photographs)
                )
                for (xy, color), geometry in zip(sigmas, geometries)
            ]
            unary = unary_energies(p, pixels.shape, cupy)
            return {"marginals": crf.mean_field(unary, lattices, weights, steps)}

        return compute

    found = _graphs.run((tuple(gaussians), steps), [probability, rgb], prepare)["marginals"]
    return found.reshape(*rgb.shape[:-1], found.shape[1])


def _geometries(
    shape: tuple[int, int], photographs: int, sigmas: Sequence[tuple[float, float | None]]
) -> list[crf.Geometry] | None:
    """Return the geometry of each lattice; None if the photographs have to be inferred one by one."""
    device = require_cupy().cuda.Device().id
    try:
        found = [_geometry(device, shape, xy, color) for xy, color in sigmas]
    except ValueError:
        return None
    points = photographs * math.prod(shape)
    fits = all(points * len(one.stride) <= MOST_ENTRIES and photographs * one.size < 2**62 for one in found)
    return found if fits else None


@functools.lru_cache(maxsize=64)
def _geometry(device: int, shape: tuple[int, int], sigma_xy: float, sigma_rgb: float | None) -> crf.Geometry:
    """Return the geometry of all lattices of photographs of a size, which is kept on the device."""
    return crf.Geometry.of(feature_ranges(shape, sigma_xy, sigma_rgb))


def _one_by_one(
    probability: cupy.ndarray, rgb: cupy.ndarray, gaussians: Sequence[Gaussian], steps: int
) -> cupy.ndarray:
    import cupy

    if rgb.ndim == 4 and len(rgb) > 1:
        return cupy.stack([dense_crf(p, one, gaussians=gaussians, steps=steps) for p, one in zip(probability, rgb)])
    return dense_crf_by(crf, probability, rgb, gaussians, steps, cupy)
