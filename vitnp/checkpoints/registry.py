"""What is known of each checkpoint that has a name: where it is, what it should hash to, how its input is normalized.

The facts are in ``weights/registry.json``; ``null`` stands for what no page records.
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

# The data folder of the package: registry.json and the files that come with vitnp.
FOLDER = pathlib.Path(str(importlib.resources.files("vitnp.weights")))
BUILT_IN = "vitnp_tiny"

# Mean and standard deviation of RGB in 0..1.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Parameters
    ----------
    name, title : str
        What users type; what it is.
    url, revision : str
        Of a safetensors file; url is None for the one that comes with vitnp.
    megabytes : float
        Approximate size of the file, 10^6 bytes.
    sha256 : str or None
        Of the file at url, where a page records it.
    license, note : str
    collection_temperature : float, optional
        By which a patch belongs to several clusters of a fitted collection, where another one than vitnp's 0.05 suits these
        features better.
    normalization : {"imagenet", "half"}
    heads : int
    pos_embed : {"offset", "exact", "antialias"}
        How its authors' code resamples position embeddings.
    original, original_sha256 : str or None
        The authors' own ``.pth`` of the same weights.
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
    pos_embed: str
    original: str | None
    original_sha256: str | None
    note: str
    collection_temperature: float | None = None

    @property
    def file_name(self) -> str:
        """What the file is called in the cache."""
        return f"{self.name}.safetensors"


@functools.cache
def entries() -> dict[str, Entry]:
    """All known checkpoints by name, the built-in one first.

    Examples
    --------
    >>> entries()["dino_vits8"].heads
    6
    """
    facts = json.loads((FOLDER / "registry.json").read_text(encoding="utf-8"))
    return {fact["name"]: Entry(**fact) for fact in facts}


def find(name: str) -> Entry:
    """The entry of a name; "auto" is the built-in one.

    Raises
    ------
    CheckpointError
        Nothing has that name; the sentence suggests one that is close.
    """
    known = entries()
    if name == "auto":
        name = BUILT_IN
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`python -m vitnp.weights list` shows the names"
        raise CheckpointError(f"{name} is neither a file nor the name of a known checkpoint: {hint}")
    return known[name]


def collection_path(name: str) -> pathlib.Path:
    """File of the fitted collection that comes with vitnp for a checkpoint; only the built-in one has any."""
    return FOLDER / f"{name}.segmenter.safetensors"


def collection_temperature(sha256: str) -> float | None:
    """What the entry of a checkpoint says of it; None where it says nothing, or there is no entry."""
    entry = identify("", sha256)
    return None if entry is None else entry.collection_temperature


def identify(stem: str, sha256: str) -> Entry | None:
    """The entry that a local file belongs to, by its content or else by its name without extension.

    Examples
    --------
    >>> identify("dino_deitsmall8_pretrain", "").name
    'dino_vits8'
    """
    for entry in entries().values():
        if sha256 and sha256 in (entry.sha256, entry.original_sha256):
            return entry
    for entry in entries().values():
        if stem == entry.name or (entry.original and stem == pathlib.PurePosixPath(_path_of(entry.original)).stem):
            return entry
    return None


def _path_of(url: str) -> str:
    return urllib.parse.urlsplit(url).path
