"""Tensor names of training checkpoints: nested dicts become dotted names, and what wraps modules is taken out of them.

A training checkpoint is a dict of dicts, and its file isn't trusted: a few kilobytes can describe names that would fill
all memory. So their number, their length and the depth of the nesting are limited.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping

import numpy as np

from vitnp.errors import CheckpointError

MAX_TENSORS = 100_000  # the largest training checkpoints of ViTs have some 10,000
_MAX_NAME = 1000  # characters; the longest of real names has about 100
_MAX_DICTS = 100_000

# Modules that torch puts around others: torch.compile, activation checkpointing and FSDP of torch and of fairscale.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module")
# DistributedDataParallel calls what it wraps "module"; before the backbone's names that is a prefix like any other.
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_WRAPPERS)})\.(?:module\.)?|(?<=[0-9]\.)module\.")


def flatten(tree: object) -> dict[str, np.ndarray]:
    """Return the arrays of a nested checkpoint by their dotted path; anything else in it is left out.

    Parameters
    ----------
    tree : object
        Result of :func:`vitnp.checkpoints.torch_io.read_torch_file`: dicts of dicts of arrays, counters and options.

    Raises
    ------
    CheckpointError
        If there are more tensors, or longer names, than a checkpoint of a ViT has.

    Examples
    --------
    >>> sorted(flatten({"epoch": 3, "teacher": {"cls_token": np.zeros((1, 1, 4))}}))
    ['teacher.cls_token']
    """
    arrays: dict[str, np.ndarray] = {}
    queue: collections.deque[tuple[str, dict[object, object]]] = collections.deque()
    seen = set()

    def visit(path: str, value: object) -> None:
        if isinstance(value, np.ndarray):
            if path in arrays:
                raise CheckpointError(f"tensor {path[:100]!r} is present twice")
            arrays[path] = value
        elif isinstance(value, dict) and id(value) not in seen:  # in a hostile file a dict may contain itself
            seen.add(id(value))
            queue.append((path, value))
        if len(arrays) > MAX_TENSORS or len(seen) > _MAX_DICTS:
            raise CheckpointError(f"it holds more than {MAX_TENSORS:,} tensors, too many for a ViT")

    visit("", tree)
    while queue:
        path, table = queue.popleft()
        for key, value in table.items():
            if type(key) is not str or not isinstance(value, (np.ndarray, dict)):
                continue
            if len(path) + len(key) >= _MAX_NAME:
                raise CheckpointError(f"the name of a tensor in it is longer than {_MAX_NAME:,} characters")
            visit(f"{path}.{key}" if path else key, value)
    return arrays


def unwrap(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors under names without the modules that torch.compile, activation checkpointing, FSDP and DDP add.

    Raises
    ------
    CheckpointError
        If two names are the same without them.

    Examples
    --------
    >>> list(unwrap({"blocks.0._checkpoint_wrapped_module.norm1.weight": np.ones(4)}))
    ['blocks.0.norm1.weight']
    """
    unwrapped: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        bare = _WRAPPED.sub("", name)
        if bare in unwrapped:
            raise CheckpointError(
                f"tensor {bare[:100]!r} is present twice, with and without a wrapper such as {_WRAPPERS[0]}"
            )
        unwrapped[bare] = array
    return unwrapped


def use_fc_norm(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename ``fc_norm`` to ``norm`` in a network that has no ``norm``.

    MAE fine-tuned with average pooling (``global_pool``) drops the final norm and trains ``fc_norm``, which is applied
    to the average of the patches, in its place.

    Examples
    --------
    >>> list(use_fc_norm({"module.cls_token": np.zeros((1, 1, 4)), "module.fc_norm.weight": np.ones(4)}))
    ['module.cls_token', 'module.norm.weight']
    """
    renamed = {}
    for name, array in tensors.items():
        prefix, middle, kind = name.rpartition("fc_norm.")
        of_backbone = bool(middle) and kind in ("weight", "bias") and f"{prefix}cls_token" in tensors
        has_norm = f"{prefix}norm.weight" in tensors or f"{prefix}norm.bias" in tensors
        renamed[f"{prefix}norm.{kind}" if of_backbone and not has_norm else name] = array
    return renamed
