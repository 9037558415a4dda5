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

__version__ = "0.1.0"

# kernels/ and weights/ stand beside vitnp/ in a checkout and inside it once installed; this makes a bare checkout, or one
# that shadows an installed copy, find them too.
_parent = pathlib.Path(__file__).resolve().parent.parent
if (_parent / "setup.cfg").is_file() and (_parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_parent))

_PUBLIC = {
    "segment_image": "vitnp.pipeline",
    "Segmentation": "vitnp.result",
    "Segmenter": "vitnp.segmenter",
    "Collection": "vitnp.method.collection",
    "KMeans": "vitnp.clustering.kmeans",
    "load_vit": "vitnp.checkpoints.load",
    "ViT": "vitnp.vit.model",
    "ViTConfig": "vitnp.vit.config",
    "read_image": "vitnp.io.decode",
    "VitnpError": "vitnp.errors",
    "ImageError": "vitnp.errors",
    "CheckpointError": "vitnp.errors",
    "OutputError": "vitnp.errors",
    "ClusterError": "vitnp.errors",
    "DeviceError": "vitnp.errors",
    "UsageError": "vitnp.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vitnp' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
