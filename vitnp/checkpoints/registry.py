"""The registry of checkpoints that have a name: where they are, their SHA-256, their preprocessing.

Its content is ``weights/registry.json``, where ``null`` stands for what isn't published.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import json
import pathlib
import urllib.parse

from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

# Data folder of the package: registry.json and the files that come with vitnp.
FOLDER = pathlib.Path(str(importlib.resources.files("vitnp.weights")))
BUILT_IN = "vitnp_tiny"

MeanAndStd = tuple[tuple[float, float, float], tuple[float, float, float]]

# Mean and standard deviation of RGB in 0..1.
NORMALIZATIONS: dict[str, MeanAndStd] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "sat493m": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),  # satellite photographs of DINOv3
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint of the registry.

    Attributes
    ----------
    name : str
        Name to load it by.
    title : str
        Architecture and training in a few words.
    url : str or None
        Address of a safetensors file; None for the one that comes with vitnp.
    revision : str
        Revision of the file at `url`.
    megabytes : float
        Approximate size of the file in 10^6 bytes.
    sha256 : str or None
        SHA-256 of the file at `url`, where it is published.
    license : str
        SPDX identifier of its license, or its name if it has none.
    normalization : {"imagenet", "half", "sat493m"}
        Mean and standard deviation of its input, a key of :data:`NORMALIZATIONS`.
    heads : int
        Number of attention heads.
    width, depth, patch, registers : int
        Its architecture, see :class:`vitnp.vit.config.ViTConfig`.
    pos_embed : {"offset", "exact", "antialias"}
        Interpolation of position embeddings in the official code.
    original, original_sha256 : str or None
        Address and SHA-256 of the ``.pth`` file in which the authors published the same weights.
    note : str
        Advice for its use; may be empty.
    collection_temperature : float, optional
        Temperature at which a patch belongs to several clusters of a fitted collection, if these features need another
        one than the default of 0.05.
    short_side : int, optional
        Short side of the network's input in pixels at which this checkpoint's masks are best, if not 320.
    license_url : str, optional
        Address of a license that must be accepted before the file is downloaded.
    gate : str, optional
        Page where the authors give the file to those who accept its license.
    original_sha256_start : str, optional
        First digits of the SHA-256 of the original file, where no more is published.
    """

    name: str
    title: str
    url: str | None
    revision: str
    megabytes: float
    sha256: str | None
    license: str
    normalization: str
    heads: int
    width: int
    depth: int
    patch: int
    registers: int
    pos_embed: str
    original: str | None
    original_sha256: str | None
    note: str
    collection_temperature: float | None = None
    short_side: int | None = None
    license_url: str | None = None
    gate: str | None = None
    original_sha256_start: str | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return f"{self.name}.safetensors"

    def check_architecture(self, config: ViTConfig) -> None:
        """Check that a network is of this entry's architecture.

        Raises
        ------
        CheckpointError
            If it is another one; the message names the first difference.
        """
        for name in ("width", "depth", "patch", "registers"):
            actual, expected = getattr(config, name), getattr(self, name)
            if actual != expected:
                raise CheckpointError(f"it has {name} {actual}, but {self.name} has {name} {expected}")


@functools.cache
def entries() -> dict[str, Entry]:
    """Return all entries by name, the built-in checkpoint first.

    Examples
    --------
    >>> entries()["dino_vits8"].heads
    6
    """
    content = json.loads((FOLDER / "registry.json").read_text(encoding="utf-8"))
    return {fields["name"]: Entry(**fields) for fields in content}


def find(name: str) -> Entry:
    """Return the entry of a name; "auto" is the built-in checkpoint.

    Raises
    ------
    CheckpointError
        If there is no such name; the message suggests a similar one.

    Examples
    --------
    >>> find("auto").name
    'vitnp_tiny'
    """
    known = entries()
    if name == "auto":
        name = BUILT_IN
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "`python -m vitnp.weights list` shows the names"
        raise CheckpointError(f"{name} is neither a file nor the name of a known checkpoint: {hint}")
    return known[name]


def identify(stem: str, sha256: str) -> Entry | None:
    """Return the entry that a local file belongs to, by its SHA-256 or else by its name without extension.

    Examples
    --------
    >>> identify("dino_deitsmall8_pretrain", "").name
    'dino_vits8'
    """
    for entry in entries().values():
        start = entry.original_sha256_start
        if sha256 and (sha256 in (entry.sha256, entry.original_sha256) or (start and sha256.startswith(start))):
            return entry
    for entry in entries().values():
        if stem == entry.name or (entry.original and stem == _stem_of_url(entry.original)):
            return entry
    return None


def collection_path(name: str) -> pathlib.Path:
    """Return the path of the fitted collection that comes with a checkpoint; only the built-in one has such a file."""
    return FOLDER / f"{name}.segmenter.safetensors"


def collection_temperature(sha256: str) -> float | None:
    """Return the collection temperature of the checkpoint with this SHA-256; None if it is unknown or has none."""
    entry = identify("", sha256)
    return None if entry is None else entry.collection_temperature


def short_side(sha256: str) -> int | None:
    """Return the short side of the checkpoint with this SHA-256; None if it is unknown or has none of its own."""
    entry = identify("", sha256)
    return None if entry is None else entry.short_side


def _stem_of_url(url: str) -> str:
    return pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).stem
