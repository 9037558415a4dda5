"""The state of an interrupted run: what is saved in ``state.pt``, and how a run resumes from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.recipe import Recipe
from vitnp.weights.train.targets import PoolState

from vitnp.errors import UsageError
from vitnp.io.write import replacing
from vitnp.vit.model import ViT


class TrainingState(TypedDict):
    """Contents of ``state.pt`` of a distillation."""

    inputs: dict[str, object]  # see run_inputs()
    step: int
    crops: int
    seconds: float
    scales: tuple[list[Tensor], Tensor, Tensor]
    student: dict[str, Any]
    targets: PoolState


# Keys in files that were written before 0.1 was released, and their present names.
_RENAMED = {
    "identity": "inputs",
    "spent": "seconds",
    "learner": "student",
    "lessons": "targets",
    "given": "next_batch",
    "kept": "pool",
    "means": "averages",
}
_RENAMED_INPUTS = {
    "batch": "batch_size",
    "kept": "pool_size",
    "optimiser": "optimizer",
    "rate": "lr",
    "muon_rate": "muon_lr",
    "held_out": "n_held_out",
}


def run_inputs(teacher: ViT, pictures: Sequence[Picture], recipe: Recipe, init: ViT | None) -> dict[str, object]:
    """Return what must stay the same when a run is resumed: its recipe, and hashes of its networks and photographs."""
    names = hashlib.sha256("\n".join(picture.name for picture in pictures).encode()).hexdigest()
    hashes = {"teacher": teacher.sha256, "photographs": names, "init": init.sha256 if init else None}
    return {**dataclasses.asdict(recipe), **hashes}


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write the state of a run, with its inputs under "inputs"; atomic.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as file:
        torch.save(dict(state), file)


def load_state(path: Path, inputs: dict[str, object], device: torch.device) -> dict[str, Any]:
    """Read the state of a run.

    Parameters
    ----------
    path : path
        A ``state.pt``.
    inputs : dict
        What must be equal to the saved inputs, such as the result of :func:`run_inputs`.
    device : torch.device
        Where to put the tensors.

    Raises
    ------
    UsageError
        If the file is damaged, or was written by a run with other inputs.
    """
    try:
        state = _with_present_names(torch.load(path, map_location=device, weights_only=True))
        saved = state["inputs"]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, TypeError, pickle.UnpicklingError):
        raise UsageError(f"{path} is damaged; remove it to start the run again") from None
    if different := [name for name in inputs if inputs[name] != saved.get(name)]:
        raise UsageError(
            f"the run in {path.parent} was started with different values of {', '.join(different)}; "
            "give the same values, or choose another folder"
        )
    return state


def _with_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the keys of earlier versions renamed; recursive."""
    renamed = {}
    for key, value in state.items():
        key = _RENAMED.get(key, key)
        if key == "inputs" and isinstance(value, str):  # JSON in earlier versions
            value = {_RENAMED_INPUTS.get(name, name): item for name, item in json.loads(value).items()}
        elif isinstance(value, dict):
            value = _with_present_names(value)
        renamed[key] = value
    return renamed
