"""The record of everything that a photograph's answer depends on."""

from __future__ import annotations

from vitnp import __version__
from vitnp.errors import UsageError
from vitnp.features.spec import short_side_of
from vitnp.method.collection import Collection
from vitnp.options import Settings
from vitnp.vit.model import ViT


def run_parameters(vit: ViT, settings: Settings, collection: Collection | None = None) -> dict[str, object]:
    """Return everything that a photograph's answer depends on besides the photograph.

    The record goes into files and collections; comparing two tells whether a result is still good.

    Parameters
    ----------
    vit : ViT
    settings : Settings
    collection : Collection, optional
        The fitted collection that is applied.

    Returns
    -------
    dict
        Names as files have them: ``size`` is the short side in pixels.

    Raises
    ------
    UsageError
        If the network does not have the layer or the stride, or the collection was fitted on other features.
    """
    config = vit.config
    parameters: dict[str, object] = {
        "version": __version__,
        "model": vit.name,
        "sha256": vit.sha256,
        "precision": vit.numerics,
        "heads": config.heads,
        "pos_embed": config.pos_embed,
        "mean": list(config.mean),
        "std": list(config.std),
        "size": short_side_of(vit, settings.short_side),
        "facet": settings.facet,
        "layer": config.resolve_layer(settings.layer),
        "stride": config.resolve_stride(settings.stride),
        "refine": settings.refine,
        "seed": settings.seed,
        "max_tokens": settings.max_tokens,
        "min_confidence": settings.min_confidence,
        "alpha": settings.alpha,
    }
    if settings.domain != "photo":
        parameters["domain"] = settings.domain
    if config.oblong_grid is not None:
        parameters["grid"] = list(config.oblong_grid)
    if settings.instances:  # without it, results are those of versions that did not know it
        parameters |= {"instances": True, "objects": settings.objects}
    if collection is not None:
        reason = collection.mismatch(parameters)
        if reason:
            raise UsageError(
                f"the collection does not fit: {reason}; use the options it was fitted with, or fit another"
            )
        parameters["collection"] = collection.digest
    return parameters
