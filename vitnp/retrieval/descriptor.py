"""Describe photographs by one vector each: the CLS token of the photograph, or of its object alone, or the layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from vitnp import kernels, options
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.method.patch_scores import judge_image, score_patches
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline
from vitnp.retrieval.layout import CELLS, LAYOUT_WIDTH, layout_vector
from vitnp.vit.model import ViT

# A patch belongs to the object from this score on, as a pixel does.
_OBJECT = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Describer:
    """Turn features into unit vectors; made by :meth:`create`.

    Attributes
    ----------
    vit : ViT
    spec : FeatureSpec
        Features that are needed.
    of : {"image", "object", "layout"}
        What is described, and how: by the CLS token; by the CLS token of the object's patches alone; or by what is
        where, see :mod:`vitnp.retrieval.layout`.
    parameters : mapping
        Everything that the vectors depend on besides the photograph.
    pipeline : ImagePipeline, optional
        Finds the object.
    """

    vit: ViT
    spec: FeatureSpec
    of: str
    parameters: Mapping[str, object]
    pipeline: ImagePipeline | None = None

    @classmethod
    def create(cls, vit: ViT, of: str, settings: Settings) -> Describer:
        """Return the describer for a network and settings.

        Raises
        ------
        UsageError
            If a value is not allowed, or the checkpoint lacks the final norm, after which CLS tokens are taken.
        """
        options.check("of", of)
        spec = FeatureSpec.of(vit, **settings.of_features, regions=of == "object")
        parameters: dict[str, object] = {"of": of, **spec.as_stored()}
        if of == "layout":
            parameters["layout"] = [CELLS, LAYOUT_WIDTH]
        if of != "object":
            return cls(vit, spec, of, parameters)
        pipeline = ImagePipeline.create(vit, settings)
        collection = None if pipeline.collection is None else pipeline.collection.digest
        return cls(vit, spec, of, {**parameters, "seed": settings.seed, "collection": collection}, pipeline)

    @property
    def width(self) -> int:
        """Length D of the vectors."""
        return LAYOUT_WIDTH if self.of == "layout" else self.vit.config.width

    def __call__(self, features: FeatureRecord) -> np.ndarray:
        """Return the vector of a photograph, (D,) float32 of length 1; zeros if it shows no object."""
        if self.of == "layout":
            return unit(layout_vector(features.unit, features.grid))
        if self.pipeline is None:
            return unit(features.cls)
        pipeline = self.pipeline
        answer = judge_image(features, self.vit.device, pipeline.settings.seed, pipeline.collection)
        score = score_patches(features, answer, self.vit.device, pipeline.collection).score
        patches = kernels.to_host(score).ravel() >= _OBJECT
        if not patches.any():
            return np.zeros(self.width, np.float32)
        (cls,) = self.vit.region_cls(
            features.cls_state, features.last_key, features.value, patches[None], size=features.pixels
        )
        return unit(cls)


def unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector scaled to length 1, float32; zeros stay zeros.

    Examples
    --------
    >>> unit(np.array([3.0, 4.0]))
    array([0.6, 0.8], dtype=float32)
    """
    exact = vector.astype(np.float64)
    length = float(np.sqrt(np.square(exact).sum()))
    return (exact / length if length > 0 else exact).astype(np.float32)
