"""Every operation in plain NumPy: the specification of the kernels, the oracle of their tests, and the fallback.

All functions accept float32 or float64 and keep the type. Stacked matrix products run one product per image, so that a
result never depends on the other images of a batch.

Examples
--------
>>> import numpy as np
>>> from vitnp.kernels import reference
>>> reference.linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
array([[11.]])
"""

from __future__ import annotations

from vitnp.kernels.reference.attention import QUERY_BLOCK, KVCache, attention, attention_row, rotate
from vitnp.kernels.reference.bilateral_grid import BilateralGrid
from vitnp.kernels.reference.bilateral_solver import bilateral_solver
from vitnp.kernels.reference.dense_crf import dense_crf
from vitnp.kernels.reference.foreground import foreground_sweeps
from vitnp.kernels.reference.guided import box_mean, linear_in_color
from vitnp.kernels.reference.image_level import ImageLevelRule, ImageLevels, image_levels, n_candidates, n_draws
from vitnp.kernels.reference.int8 import (
    QuantizedRows,
    QuantizedWeight,
    layernorm_int8,
    product_int8,
    quantize_rows,
    quantize_weight,
)
from vitnp.kernels.reference.kmeans import (
    Step,
    kmeans_assign,
    kmeans_closer,
    kmeans_plusplus,
    kmeans_rows,
    kmeans_step,
)
from vitnp.kernels.reference.lattice import (
    Lattice,
    lattice_filter,
    lattice_geometry,
    mean_field,
    normalize_lattice,
    permutohedral_lattice,
)
from vitnp.kernels.reference.lloyd import Moves, kmeans_move, kmeans_moves
from vitnp.kernels.reference.overlay import paint_overlay
from vitnp.kernels.reference.resize import resize
from vitnp.kernels.reference.similarity import normalize_rows, similarity, similarity_top
from vitnp.kernels.reference.transformer import (
    BLOCK,
    gelu,
    layernorm,
    linear,
    pack_linear,
    patch_embedding,
    precisions,
    softmax,
    swiglu,
    temporary,
)

__all__ = [
    "BLOCK",
    "QUERY_BLOCK",
    "BilateralGrid",
    "ImageLevelRule",
    "ImageLevels",
    "KVCache",
    "Lattice",
    "Moves",
    "QuantizedRows",
    "QuantizedWeight",
    "Step",
    "attention",
    "attention_row",
    "bilateral_solver",
    "box_mean",
    "dense_crf",
    "foreground_sweeps",
    "gelu",
    "image_levels",
    "kmeans_assign",
    "kmeans_closer",
    "kmeans_move",
    "kmeans_moves",
    "kmeans_plusplus",
    "kmeans_rows",
    "kmeans_step",
    "lattice_filter",
    "lattice_geometry",
    "layernorm",
    "layernorm_int8",
    "linear",
    "linear_in_color",
    "mean_field",
    "n_candidates",
    "n_draws",
    "normalize_lattice",
    "normalize_rows",
    "pack_linear",
    "paint_overlay",
    "patch_embedding",
    "permutohedral_lattice",
    "precisions",
    "product_int8",
    "quantize_rows",
    "quantize_weight",
    "resize",
    "rotate",
    "similarity",
    "similarity_top",
    "softmax",
    "swiglu",
    "temporary",
]
