"""Pictures of features: principal components as colors, and attention as heat maps over the photograph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from vitnp.errors import UsageError
from vitnp.features.enlarge import PatchPlaces
from vitnp.features.pca import PatchPCA, to_bytes
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.masks.heatmap import heatmap
from vitnp.vit.model import ViT

# Percentile of an attention map that is shown as 1. The few patches in which networks without registers store something
# else (Darcet et al. 2023) have many times the attention of any object, and would leave all others dark.
ATTENTION_PERCENTILE = 95.0

# Pixels per band: the temporary arrays of a band take some tens of megabytes.
_BAND_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class PictureMaker:
    """Draws the features of photographs.

    Attributes
    ----------
    places : PatchPlaces
    basis : PatchPCA, optional
        Basis of the colors; only pictures of attention do without.
    """

    places: PatchPlaces
    basis: PatchPCA | None = None

    @classmethod
    def of(cls, vit: ViT, spec: FeatureSpec, basis: PatchPCA | None = None, *, nearest: bool = False) -> PictureMaker:
        """Return the maker for features of a network.

        Parameters
        ----------
        vit : ViT
        spec : FeatureSpec
        basis : PatchPCA, optional
        nearest : bool
            Show each patch in one color, instead of interpolating between patches.

        Raises
        ------
        UsageError
            If the basis was fitted to other features, or has not three components.
        """
        if basis is not None:
            basis.check_colors()
            mismatch = basis_mismatch(basis, spec, vit.config.width)
            if mismatch:
                raise UsageError(f"the basis does not fit these features: {mismatch}; fit a new one with --save-basis")
        return cls(PatchPlaces(vit.config.patch, spec.stride, nearest), basis)

    def components(self, features: FeatureRecord) -> np.ndarray:
        """Return the components as they are shown, (rows, columns, 3) float32: 0 to 1, NaN on the background."""
        assert self.basis is not None, "components need a basis"
        values, score = self._scaled(features)
        return np.where(score[..., None] > 0, values, np.float32(np.nan))

    def pca(self, features: FeatureRecord) -> np.ndarray:
        """Draw the components as red, green and blue: (height, width, 3) uint8 in sRGB, black on the background."""
        values, score = self._scaled(features)
        inside = (score > 0)[..., None].astype(np.float32)
        # Colors of the foreground alone, so that at its edge those of the background do not shine through.
        stacked = np.concatenate([values * inside, inside, score[..., None]], axis=-1)

        def draw(rows: slice) -> np.ndarray:
            enlarged = self.places.enlarge(stacked, features, rows)
            colors, weight, above = enlarged[..., :3], enlarged[..., 3:4], enlarged[..., 4:]
            return np.where(above > 0, to_bytes(colors / np.maximum(weight, np.float32(1e-6))), np.uint8(0))

        return in_bands(features.size, draw)

    def attention(self, features: FeatureRecord) -> np.ndarray:
        """Return CLS attention, (1 + H, rows, columns) float32: the mean over heads, then each head."""
        heads = features.attention_heads.T.reshape(-1, *features.grid)
        return np.concatenate([features.attention.reshape(1, *features.grid), heads])

    def heat(self, values: np.ndarray, features: FeatureRecord, rgb: np.ndarray) -> np.ndarray:
        """Draw one attention map (rows, columns) over its photograph (height, width, 3): uint8, of the same shape."""
        top = float(np.percentile(values, ATTENTION_PERCENTILE))
        scaled = values / np.float32(top if top > 0 else 1)

        return in_bands(features.size, lambda rows: heatmap(rgb[rows], self.places.enlarge(scaled, features, rows)))

    def _scaled(self, features: FeatureRecord) -> tuple[np.ndarray, np.ndarray]:
        """Return scaled components (rows, columns, 3), and the score of the foreground (rows, columns), float32."""
        assert self.basis is not None, "components need a basis"
        keys = features.keys
        values = self.basis.scaled(keys).clip(0, 1).reshape(*features.grid, 3)
        return values, self.basis.foreground_score(keys).reshape(features.grid)


def in_bands(size: tuple[int, int], draw: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 that is drawn in bands of rows, to save memory."""
    height, width = size
    picture = np.empty((height, width, 3), np.uint8)
    for rows in _bands(height, width):
        picture[rows] = draw(rows)
    return picture


def _bands(height: int, width: int) -> Iterator[slice]:
    step = max(1, _BAND_PIXELS // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


# What features depend on that makes components comparable. Stride and short side are free: a finer grid of the same
# features has the same colors.
_COMPARABLE = ("facet", "layer", "pos_embed", "mean", "std", "heads", "grid")


def comparable(spec: FeatureSpec) -> dict[str, object]:
    """Return what a basis remembers of the features that it was fitted to."""
    return {"sha256": spec.sha256, **{name: getattr(spec, name) for name in _COMPARABLE}}


def basis_mismatch(basis: PatchPCA, spec: FeatureSpec, width: int) -> str | None:
    """Return why a basis does not fit features: half a sentence, or None.

    Of a basis that was fitted to arrays, without a record of what they were, only the length of a row is compared.
    """
    if basis.n_features_in_ != width:
        return f"it is for rows of {basis.n_features_in_} numbers, not {width}"
    ours = comparable(spec)
    for name, value in basis.features_.items():
        theirs = tuple(value) if isinstance(value, list) else value
        if name in ours and theirs != ours[name]:
            if name == "sha256":
                return "it was fitted with another checkpoint"
            return f"it was fitted with the {name} {theirs}, not {ours[name]}"
    return None
