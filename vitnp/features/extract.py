"""Extract features: one photograph, or photographs of one size in one forward pass of the ViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitnp import kernels, options
from vitnp.cached import cached_property
from vitnp.errors import UsageError
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.io import color, preprocess, resample, source
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """A photograph scaled to the size of the network's input, on the network's device.

    Attributes
    ----------
    photograph : str
        Fingerprint of the file, or of the pixels if there is no file.
    size : (int, int)
        Height and width of the photograph itself in pixels, upright.
    pixels : (height, width, 3) uint8
        Scaled photograph.
    capped : bool
        Whether the patch grid was made coarser to stay within ``max_tokens``.
    """

    photograph: str
    size: tuple[int, int]
    pixels: np.ndarray
    capped: bool

    @cached_property
    def digest(self) -> int:
        """Hash of the pixels: the seed of the photograph, independent of its file name and of other photographs."""
        return int(source.content_hash(kernels.to_host(self.pixels)), 16)


def prepare(
    rgb: np.ndarray, vit: ViT, spec: FeatureSpec, photograph: str = "", *, profile: bytes | None = None
) -> NetworkInput:
    """Scale a photograph to the size of the network's input, and convert its colors to sRGB.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    vit : ViT
    spec : FeatureSpec
    photograph : str
        Fingerprint of the photograph.
    profile : bytes, optional
        ICC profile of the pixels; None if they are sRGB.

    Returns
    -------
    NetworkInput
    """
    scaled, capped = preprocess.network_size(
        *rgb.shape[:2],
        short_side=spec.short_side,
        patch=vit.config.patch,
        stride=spec.stride,
        max_tokens=spec.max_tokens,
    )
    pixels = resample.downscale(kernels.to_device(rgb, vit.device), scaled)
    if profile is not None:
        # After scaling there are a hundred times fewer pixels to convert.
        pixels = kernels.to_device(color.to_srgb(kernels.to_host(pixels), profile), vit.device)
    height, width, _ = rgb.shape
    ready = NetworkInput(photograph, (height, width), pixels, capped)
    if vit.device != "cpu":
        _ = ready.digest  # by this thread, of many that decode, instead of the one that runs the network
    return ready


def extract(rgb: np.ndarray, vit: ViT, spec: FeatureSpec | None = None, **settings: Any) -> FeatureRecord:
    """Return the features of one photograph; its arrays stay on the network's device.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    vit : ViT
    spec : FeatureSpec, optional
        Specification of the features; by default float32 features of the settings below, without CLS tokens of regions.
    **settings
        `short_side`, `facet`, `layer`, `stride` and `max_tokens`, see :class:`vitnp.options.Settings`.

    Returns
    -------
    FeatureRecord

    Raises
    ------
    UsageError
        If the network does not have the layer or the stride, or a value is not allowed.

    Examples
    --------
    >>> features = extract(read_image("photograph.jpg"), load_vit("auto"))     # doctest: +SKIP
    >>> features.keys.shape, features.grid                                     # doctest: +SKIP
    ((540, 192), (20, 27))
    """
    if spec is None:
        spec = FeatureSpec.of(vit, **settings, precision="float32", regions=False, stored=False)
    return extract_batch([prepare(rgb, vit, spec, source.content_hash(rgb))], vit, spec)[0]


def extract_batch(
    inputs: Sequence[NetworkInput],
    vit: ViT,
    spec: FeatureSpec,
    *,
    with_cls: bool = True,
    place: Callable[[np.ndarray], np.ndarray] = lambda array: array,
) -> list[FeatureRecord]:
    """Return the features of photographs of one input size, computed in one forward pass.

    Parameters
    ----------
    inputs : sequence of NetworkInput
    vit : ViT
    spec : FeatureSpec
        Specification made from this network.
    with_cls : bool
        Whether to compute the CLS token, which the image level alone does not need.
    place : callable
        Moves an array to the device where it is kept, such as :func:`vitnp.kernels.to_host`.

    Returns
    -------
    list of FeatureRecord

    Raises
    ------
    UsageError
        If the features exceed the range of ``spec.precision``.
    """
    batch = [preprocess.normalize(one.pixels, vit.config.mean, vit.config.std) for one in inputs]
    stacked = kernels.array_module(batch[0]).stack(batch)
    of_batch = {name: place(array) for name, array in _forward(stacked, vit, spec, with_cls).items()}
    _check_finite(of_batch, spec)
    records = []
    for index, one in enumerate(inputs):
        arrays = {name: kernels.array_module(array).ascontiguousarray(array[index]) for name, array in of_batch.items()}
        height, width, _ = one.pixels.shape
        records.append(
            FeatureRecord(
                photograph=one.photograph,
                grid=vit.grid(height, width, spec.stride),
                pixels=(height, width),
                size=one.size,
                digest=one.digest,
                capped=one.capped,
                arrays=arrays.copy,
            )
        )
    return records


def _forward(batch: np.ndarray, vit: ViT, spec: FeatureSpec, with_cls: bool) -> dict[str, np.ndarray]:
    """Return the arrays of a FeatureRecord for all images of a batch, along the first axis."""
    of_last = (*(("cls",) if with_cls else ()), *(("key", "value", "cls_state") if spec.regions else ()))
    if spec.layer == vit.config.depth - 1:
        features = last = vit(batch, dict.fromkeys((spec.facet, "attention", *of_last)), stride=spec.stride)
    else:
        features = vit(batch, (spec.facet, "attention"), layer=spec.layer, stride=spec.stride)
        last = vit(batch, of_last, stride=spec.stride) if of_last else {}
    arrays = {
        "keys": _as_stored(features[spec.facet], spec),
        "attention": features["attention"].mean(axis=1, dtype=np.float32),
    }
    if spec.attention_heads:
        arrays["attention_heads"] = features["attention"].transpose(0, 2, 1).astype(np.float32)
    if with_cls:
        arrays["cls"] = last["cls"].astype(np.float32, copy=False)
    if spec.regions:
        arrays["cls_state"] = last["cls_state"].astype(np.float32, copy=False)
        arrays["value"] = _as_stored(last["value"], spec)
        if not spec.keys_are_last(vit):
            arrays["last_key"] = _as_stored(last["key"], spec)
    return arrays


def _as_stored(rows: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    with np.errstate(over="ignore"):  # reported by _check_finite
        return rows.astype(spec.precision, copy=False)


def _check_finite(arrays: dict[str, np.ndarray], spec: FeatureSpec) -> None:
    """Raise UsageError if rows contain NaN or infinity."""
    rows = [arrays[name] for name in ("keys", "value", "last_key") if name in arrays]
    if all(kernels.array_module(array).isfinite(array).all() for array in rows):
        return
    if spec.precision == "float16":
        advice = "use another facet or layer, or --dtype float32 of `vitnp features`"
    else:
        advice = "the checkpoint is damaged; fetch it again"
    raise UsageError(f"the features exceed the range of {spec.precision}; {advice}")


def default_spec(vit: ViT, settings: options.Settings) -> FeatureSpec:
    """Return the spec of float32 features without CLS tokens of regions, as the image level alone needs them."""
    return FeatureSpec.of(vit, **settings.of_features, precision="float32", regions=False, stored=False)
