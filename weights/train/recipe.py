"""Configuration of a distillation run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from vitnp.weights.train import torch_vit
from vitnp.weights.train.data.packs import Picture

from vitnp.errors import UsageError
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run.

    Together with the teacher, the initial student and the photographs they determine the result: exactly for `steps` on
    a CPU; for `minutes` it also depends on the speed of the machine.

    Parameters
    ----------
    minutes : float, optional
        Training time in minutes; the schedules follow the clock. Exactly one of `minutes` and `steps` must be given.
    steps : int, optional
        Number of training steps; the schedules follow the step number. On a CPU the result is then bitwise
        reproducible, also across interruptions.
    depth : int
        Number of blocks of the student; must divide the teacher's.
    batch_size : int
        Number of 224 x 224 crops per batch.
    pool_size : int
        Number of batches that are kept and used three times, see :class:`vitnp.weights.train.targets.TargetPool`.
    optimizer : {"muon", "adamw"}
        Optimizer of the matrices of the blocks; AdamW updates all other weights.
    lr, muon_lr : float
        Peak learning rates of AdamW and Muon.
    n_held_out : int
        Number of photographs that are not trained on, but used to evaluate the student.
    seed : int
        Seed of all random numbers.
    bfloat16 : bool
        Whether matrix products run in bfloat16 (autocast) instead of float32.
    """

    minutes: float | None = None
    steps: int | None = None
    depth: int = 6
    batch_size: int = 16
    pool_size: int = 0
    optimizer: str = "muon"
    lr: float = 1e-3
    muon_lr: float = 0.012
    n_held_out: int = 64
    seed: int = 0
    bfloat16: bool = True

    def progress(self, step: int, seconds: float) -> float:
        """Return the completed fraction of a run after a number of steps and seconds; 1 and above means finished."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None, "check_run() requires minutes or steps"
        return seconds / (60 * self.minutes)


@dataclasses.dataclass(frozen=True)
class RunEnvironment:
    """Settings of a run that do not change its result, except by rounding.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Where to train. On a GPU all photographs are kept in its memory and cropped there.
    compile : bool
        Whether to compile the networks with ``torch.compile``: takes one or two minutes, then trains faster on a GPU.
    n_threads : int
        Number of threads that read photographs.
    save_minutes : float
        Minutes between two saves.
    log_steps : int
        Number of steps between two entries of the log.
    should_stop : callable
        Called before each step; when it returns True the run is saved and ends.
    """

    device: str = "cpu"
    compile: bool = False
    n_threads: int = 1
    save_minutes: float = 5.0
    log_steps: int = 100
    should_stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class StudentInfo:
    """Metadata of the student's file.

    Parameters
    ----------
    name, license : str
        Written to the file as they are.
    previous_crops : int
        Number of crops that the initial student was trained on in earlier runs.
    """

    name: str = "student"
    license: str = "unspecified"
    previous_crops: int = 0


def check_run(
    teacher: ViT, pictures: Sequence[Picture], recipe: Recipe, init: ViT | None, environment: RunEnvironment
) -> None:
    """Check the arguments of a run before anything is read or written.

    Raises
    ------
    UsageError
        If the recipe does not fit the teacher, the initial student or the photographs, or there is no GPU to train on.
    """
    if (recipe.minutes is None) == (recipe.steps is None):
        raise UsageError("the length of a run must be given as either --minutes or --steps; give exactly one of them")
    if teacher.config.depth % recipe.depth:
        raise UsageError(
            f"depth must be a divisor of the {teacher.config.depth} blocks of the teacher {teacher.name}, "
            f"got {recipe.depth}"
        )
    if init and init.config != torch_vit.student_config(teacher.config, recipe.depth):
        raise UsageError(
            f"{init.name} is not a student of {recipe.depth} blocks of {teacher.name}; "
            "give a student of this teacher, or leave out --init"
        )
    if len(pictures) < recipe.batch_size + recipe.n_held_out:
        raise UsageError(
            f"{len(pictures)} photographs are too few for a batch of {recipe.batch_size} and {recipe.n_held_out} held "
            "out; give more photographs"
        )
    if environment.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no GPU; give --device cpu, or install torch with CUDA")
