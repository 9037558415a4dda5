"""vitnp: unsupervised segmentation with self-supervised vision transformers, in NumPy, without torch.

An independent re-implementation of "A Lightweight Clustering Framework for Unsupervised Semantic Segmentation"
(arXiv 2311.18628). The names below load on first use, so that ``import vitnp`` costs next to nothing.

Examples
--------
>>> import vitnp
>>> result = vitnp.segment_image("photograph.jpg")       # doctest: +SKIP
>>> result.mask.shape, result.mask.dtype                 # doctest: +SKIP
((375, 500), dtype('bool'))
"""

from __future__ import annotations

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors
    from vitnp.checkpoints.load import load_vit as load_vit
    from vitnp.clustering.kmeans import KMeans as KMeans
    from vitnp.errors import CheckpointError as CheckpointError
    from vitnp.errors import ClusterError as ClusterError
    from vitnp.errors import DeviceError as DeviceError
    from vitnp.errors import ImageError as ImageError
    from vitnp.errors import OutputError as OutputError
    from vitnp.errors import UsageError as UsageError
    from vitnp.errors import VitnpError as VitnpError
    from vitnp.export.region_features import region_features as region_features
    from vitnp.export.region_table import RegionTable as RegionTable
    from vitnp.features.pca import PatchPCA as PatchPCA
    from vitnp.io.decode import read_image as read_image
    from vitnp.io.find import find_photographs as find_photographs
    from vitnp.matching.match import match_patches as match_patches
    from vitnp.method.collection import Collection as Collection
    from vitnp.pipeline import segment_image as segment_image
    from vitnp.result import Segmentation as Segmentation
    from vitnp.retrieval.duplicates import find_duplicates as find_duplicates
    from vitnp.retrieval.search import search_similar as search_similar
    from vitnp.segmenter import Segmenter as Segmenter
    from vitnp.video.frames import read_frames as read_frames
    from vitnp.video.segment import segment_video as segment_video
    from vitnp.video.smoothing import SmoothingConfig as SmoothingConfig
    from vitnp.vit.config import ViTConfig as ViTConfig
    from vitnp.vit.model import ViT as ViT

__version__ = "0.1.0"

# vitnp.kernels and vitnp.weights lie beside vitnp/ in a checkout, and inside it once installed.
_parent = pathlib.Path(__file__).resolve().parent.parent
if (_parent / "setup.cfg").is_file() and (_parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_parent))

_PUBLIC = {
    "segment_image": "vitnp.pipeline",
    "segment_video": "vitnp.video.segment",
    "SmoothingConfig": "vitnp.video.smoothing",
    "Segmentation": "vitnp.result",
    "Segmenter": "vitnp.segmenter",
    "Collection": "vitnp.method.collection",
    "search_similar": "vitnp.retrieval.search",
    "find_duplicates": "vitnp.retrieval.duplicates",
    "match_patches": "vitnp.matching.match",
    "KMeans": "vitnp.clustering.kmeans",
    "PatchPCA": "vitnp.features.pca",
    "region_features": "vitnp.export.region_features",
    "RegionTable": "vitnp.export.region_table",
    "load_vit": "vitnp.checkpoints.load",
    "ViT": "vitnp.vit.model",
    "ViTConfig": "vitnp.vit.config",
    "read_image": "vitnp.io.decode",
    "find_photographs": "vitnp.io.find",
    "read_frames": "vitnp.video.frames",
    "VitnpError": "vitnp.errors",
    "ImageError": "vitnp.errors",
    "CheckpointError": "vitnp.errors",
    "OutputError": "vitnp.errors",
    "ClusterError": "vitnp.errors",
    "DeviceError": "vitnp.errors",
    "UsageError": "vitnp.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vitnp' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
