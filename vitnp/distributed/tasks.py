"""Tasks: the functions that workers run."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp import __version__, kernels
from vitnp.checkpoints.load import load_vit
from vitnp.clustering.chunks import Chunk
from vitnp.errors import CheckpointError, ClusterError, UsageError
from vitnp.features.shared import open_shared
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import SPEC_FILE
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the last bit of a result: decoding, scaling, products."""
    import PIL

    return {"vitnp": __version__, "numpy": np.__version__, "Pillow": PIL.__version__, "kernels": kernels.describe()}


def version_error(name: str, theirs: dict[str, str] | Exception, ours: dict[str, str]) -> ClusterError:
    """Return the error for a machine whose versions differ, or that cannot import vitnp.

    Parameters
    ----------
    name : str
        The machine in words, such as "a worker".
    theirs : dict of str to str, or Exception
        Its :func:`versions`, or the exception that these raised there.
    ours : dict of str to str
    """
    if isinstance(theirs, Exception):
        return ClusterError(f"{name} cannot run vitnp ({theirs}); install vitnp {ours['vitnp']} there")
    different = next(key for key in ours if theirs[key] != ours[key])
    return ClusterError(
        f"{name} has {different} {theirs[different]}, not {ours[different]} as here; "
        "install the same version everywhere"
    )


def run_checked(expected: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function if the versions here are as expected, because workers may join at any time.

    Raises
    ------
    ClusterError
        If a version differs.
    """
    if (own := versions()) != expected:
        raise version_error("a worker", own, expected)
    return function(*arguments)


@dataclasses.dataclass(frozen=True)
class NetworkReference:
    """What a worker needs to load the same network.

    Attributes
    ----------
    path, name : str
        Absolute path of the checkpoint, and its name in the registry if it has one.
    sha256 : str
        Checksum of the checkpoint.
    config : ViTConfig
    precision : str
    """

    path: str
    name: str
    sha256: str
    config: ViTConfig
    precision: str

    @classmethod
    def of(cls, vit: ViT) -> NetworkReference:
        """Return the reference to a network.

        Raises
        ------
        UsageError
            If the network was not loaded from a file.
        """
        if vit.source is None or vit.sha256 is None:
            raise UsageError(
                "workers load the network from its file, but this one was made in memory; "
                "save it, and load it with load_vit"
            )
        return cls(os.path.abspath(vit.source), vit.name, vit.sha256, vit.config, vit.precision)

    def load(self) -> ViT:
        """Load the network on a worker.

        Raises
        ------
        CheckpointError
            If the checkpoint cannot be loaded there, or is another one.
        """
        # Built-in and registered checkpoints may be in another folder on this machine.
        source = self.path if os.path.exists(self.path) else self.name
        try:
            # The configuration below replaces what these options set: they spare guesses and doubts.
            vit = load_vit(
                source,
                heads=self.config.heads,
                pos_embed=self.config.pos_embed,
                normalization="imagenet",
                grid=self.config.grid,
            )
        except CheckpointError as error:
            raise CheckpointError(f"a worker cannot load the network: {error}") from None
        if vit.sha256 != self.sha256:
            raise CheckpointError(
                f"on a worker {source} is another checkpoint; put the same one into a folder that all machines share"
            )
        return ViT(
            self.config, vit.weights, name=self.name, source=vit.source, sha256=self.sha256, precision=self.precision
        )


_load_lock = threading.Lock()
_load_once = functools.lru_cache(maxsize=2)(NetworkReference.load)


def extract(
    paths: list[str], network: NetworkReference, folder: str, spec: FeatureSpec, max_pixels: int
) -> tuple[Extraction, list[int]]:
    """Extract the features of some photographs to a store.

    Returns
    -------
    extraction : Extraction
    missing : list of int
        Positions of photographs that do not exist on this machine.

    Raises
    ------
    ClusterError
        If the store does not exist on this machine.
    CheckpointError
        See :meth:`NetworkReference.load`.
    """
    store = open_shared(folder, spec)
    if not (store.folder / SPEC_FILE).exists():
        raise ClusterError(
            f"a worker does not see {folder}; give --cache a folder that all machines share under the same path"
        )
    with _load_lock:  # a worker may have several threads
        vit = _load_once(network)
    extraction = extract_to_store(paths, vit, store, n_threads=1, max_pixels=max_pixels)
    return extraction, [index for index in extraction.failures if not os.path.exists(paths[index])]


def return_chunk(chunk: Chunk) -> Chunk:
    """Return a chunk: the task that keeps rows on a worker."""
    return chunk


def call_with_tuple(function: Callable[[Any], Any], *item: Any) -> Any:
    """Call a function with a tuple whose items were sent one by one."""
    return function(item)
