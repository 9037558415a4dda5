"""Distillation: a network of few blocks learns what a trained one with more blocks does, from photographs alone.

Each block of the student learns to do what a group of the teacher's does: with 6 and 12, block j learns blocks 2 j and
2 j + 1. It is told, for every crop, the teacher's hidden states after each group, its last keys, and its tokens and CLS
after the final norm (:mod:`vitnp.weights.train.losses`). No label, mask or box is read.

A run has a folder::

    student.safetensors   the student so far, averaged over the last steps, float16
    log.jsonl             how it went (vitnp.weights.train.log)
    state.pt              what it needs to go on after an interruption; removed at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vitnp.weights.train import schedule, torch_vit
from vitnp.weights.train.data.crops import Ahead, DeviceCrops, HostCrops, Normalize
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.data.sampler import plan
from vitnp.weights.train.export import write_student
from vitnp.weights.train.log import RunLog
from vitnp.weights.train.losses import Scales, errors
from vitnp.weights.train.student import Student
from vitnp.weights.train.targets import Batch, Targets

from vitnp.errors import OutputError, UsageError, VitnpError
from vitnp.io.write import make_folder, replacing
from vitnp.vit.model import ViT

_HELD_OUT, _STREAM = 3, 4  # streams of random numbers, beside those of plans and lessons
_HELD_OUT_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run does: with teacher and photographs, and the machine for `minutes`, all that its result depends on.

    Parameters
    ----------
    minutes : float, optional
        Training time; schedules follow the clock.
    steps : int, optional
        Instead: schedules follow the steps, and on a CPU the result is the same in every run, interrupted or not.
    depth : int
        Blocks of the student, a divisor of the teacher's.
    batch : int
        Crops of 224 x 224 in a batch.
    kept : int
        Lessons that are kept and given three times, see :class:`vitnp.weights.train.targets.Targets`.
    optimizer : {"muon", "adamw"}
    rate, muon_rate : float
        Peak learning rates.
    held_out : int
        Photographs that are never learnt from; on them the student is measured.
    seed : int
    bfloat16 : bool
        Whether matrix products are in bfloat16.
    """

    minutes: float | None = None
    steps: int | None = None
    depth: int = 6
    batch: int = 16
    kept: int = 0
    optimizer: str = "muon"
    rate: float = 1e-3
    muon_rate: float = 0.012
    held_out: int = 64
    seed: int = 0
    bfloat16: bool = True


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a run's result doesn't depend on, or only by rounding.

    Parameters
    ----------
    device : str
        "cpu" or "cuda". A GPU keeps all photographs in its memory and cuts crops there.
    compile : bool
        Whether torch compiles the networks: a minute or two, then faster on a GPU.
    workers : int
        Threads that read photographs.
    save_minutes : float
        Between saves.
    log_steps : int
        Between lines of the log.
    notice : callable
        Is told what people should know.
    stop : callable
        Asked after each step whether to save and leave.
    """

    device: str = "cpu"
    compile: bool = False
    workers: int = 1
    save_minutes: float = 5.0
    log_steps: int = 100
    notice: Callable[[str], object] = lambda message: None
    stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the student's file says of it: its name and license, and crops that it had seen before."""

    name: str = "student"
    license: str = "unspecified"
    crops: int = 0


def distill(
    teacher: ViT,
    pictures: Sequence[Picture],
    folder: Path,
    recipe: Recipe,
    *,
    init: ViT | None = None,
    origin: Origin = Origin(),
    around: Surroundings = Surroundings(),
) -> Path | None:
    """Train a student, or go on with a run that was interrupted.

    Parameters
    ----------
    teacher : ViT
        Any network that vitnp runs.
    pictures : sequence of Picture
        At least a batch of them, beside those held out.
    folder : path
        Of the run; made when it isn't there. One with a ``state.pt`` is gone on with.
    recipe : Recipe
    init : ViT, optional
        A student to begin with; by default it begins from nothing.
    origin : Origin
    around : Surroundings

    Returns
    -------
    path or None
        The finished student; None when `around.stop` ended the run before its time.

    Raises
    ------
    UsageError
        For a recipe that doesn't suit the teacher or the photographs, or isn't the one that the run in the folder began
        with.
    OutputError
        When the folder has a finished student, or can't be written.
    VitnpError
        When the loss stops being a number. What was saved last is kept.
    """
    return _Run(teacher, pictures, folder, recipe, init, origin, around).run()


class _Run:
    def __init__(
        self, teacher: ViT, pictures: Sequence[Picture], folder: Path, recipe: Recipe,
        init: ViT | None, origin: Origin, around: Surroundings,
    ):  # fmt: skip
        _check(teacher, pictures, recipe, init, around)
        self.recipe, self.origin, self.around, self.folder = recipe, origin, around, folder
        self.device, self.fresh = torch.device(around.device), init is None
        self.teacher_name, self.teacher_config = teacher.name, teacher.config
        self.teacher = torch_vit.to_torch(teacher, self.device)
        self.config = torch_vit.student_config(teacher.config, recipe.depth)
        begin = torch_vit.to_torch(init) if init else torch_vit.initial_weights(self.config, recipe.seed)
        begin = {name: weight.to(self.device) for name, weight in begin.items()}
        self.learner = Student(begin, recipe.optimizer, recipe.rate, recipe.muon_rate)
        self.identity = _identity(teacher, pictures, recipe, init)
        self.step = self.crops = 0
        self.spent = 0.0  # seconds of training
        self.scales: Scales | None = None

        order = np.random.default_rng([recipe.seed, _HELD_OUT]).permutation(len(pictures))
        self.learnt_from = [pictures[index] for index in sorted(order[recipe.held_out :])]
        self.held_out = [pictures[index] for index in sorted(order[: recipe.held_out])]
        self.normalization = Normalize(self.config, self.device)
        self.stream = torch_vit.compiled_stream() if around.compile else torch_vit.stream

    def run(self) -> Path | None:
        student, state = self.folder / "student.safetensors", self.folder / "state.pt"
        make_folder(self.folder)
        lessons_state = None
        if state.is_file():
            lessons_state = self._resume(state)
        elif student.exists():
            raise OutputError(
                f"{student} is there already, finished: choose another folder, or remove it to train again"
            )
        self.journal = RunLog(self.folder / "log.jsonl")
        self.journal.rewind(self.step)
        with self._lessons(lessons_state) as lessons:
            finished = self._train(lessons)
        self._save(None if finished else lessons)
        if not finished:
            return None
        self.journal.write(
            {"step": self.step, "crops": self.crops, "held_out_cosine": self._held_out_cosine(), "finished": True}
        )
        return student

    def _train(self, lessons: Targets) -> bool:
        """Step by step to the end, or until told to stop; says which."""
        sums: dict[str, Tensor] = {}
        summed = 0
        if self.scales is None:
            # A lesson that nothing is learnt from. Its making also warms everything up before the clock starts.
            first = self._teach(lessons.cut(0))
            self.scales = Scales.of(first, self._final(first))
        saved = logged = time.monotonic()
        before, crops, spent = logged, self.crops, self.spent
        while (share := self._share(spent + time.monotonic() - before)) < 1:
            if self.around.stop():
                self.spent = spent + time.monotonic() - before
                return False
            found = self._learn(lessons(self.step), share)
            self.step += 1
            sums = {name: value + sums[name] if sums else value for name, value in found.items()}
            summed += 1
            now = time.monotonic()
            self.spent = spent + now - before
            if self.step % self.around.log_steps == 0:
                speed = (self.crops - crops) / (now - logged)
                self._log({name: value.item() / summed for name, value in sums.items()}, share, speed)
                sums, summed, crops, logged = {}, 0, self.crops, now
            if now - saved > 60 * self.around.save_minutes:
                self._save(lessons)
                saved = time.monotonic()
        return True

    def _share(self, seconds: float) -> float:
        """How much of the run is done."""
        return self.step / self.recipe.steps if self.recipe.steps else seconds / (60 * self.recipe.minutes)

    def _learn(self, lesson: Batch, share: float) -> dict[str, Tensor]:
        chance = np.random.default_rng([self.recipe.seed, _STREAM, self.step])
        own = chance.random() < schedule.own_stream(share, self.fresh)
        with self._precision():
            states, key = self.stream(
                self.learner.weights, self.config, lesson.crops, feed=None if own else lesson.states
            )
        found = errors(self.learner.weights, self.config, states, key, lesson, self._final(lesson), self.scales)
        self.learner.learn(found["loss"], schedule.rate(share, self.step, self.recipe.steps))
        self.crops += len(lesson.crops)
        return {name: value.detach() for name, value in found.items()}

    def _teach(self, crops: Tensor) -> Batch:
        crops = self.normalize(crops)
        with torch.no_grad(), self._precision():
            every = self.teacher_config.depth // self.recipe.depth
            return Batch(crops, *self.stream(self.teacher, self.teacher_config, crops, every))

    def _final(self, lesson: Batch) -> Tensor:
        return torch_vit.norm(self.teacher, self.teacher_config, lesson.states[-1])

    def _precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16)

    @contextlib.contextmanager
    def _lessons(self, state: dict | None) -> Iterator[Targets]:
        patch, seed = self.config.patch, self.recipe.seed
        if self.device.type == "cpu":
            crops = HostCrops(self.learnt_from, self.around.notice)
        else:
            crops = DeviceCrops(self.learnt_from, self.device, self.around.workers, self.around.notice)

        def cut(number: int) -> Tensor:
            return crops(plan(number, len(self.learnt_from), self.recipe.batch, patch, seed))

        # On a GPU cutting is a matter of microseconds, and torch is better left to one thread.
        workers = self.around.workers if self.device.type == "cpu" else 1
        ahead = Ahead(cut, itertools.count(state["given"] if state else 0), workers)
        lessons = Targets(ahead, cut, self._teach, self.recipe.kept, seed)
        if state:
            lessons.load_state_dict(state)
        try:
            yield lessons
        finally:
            ahead.close()

    def _log(self, means: dict[str, float], share: float, speed: float) -> None:
        if not math.isfinite(means["loss"]):
            raise VitnpError(f"the loss is no number any more at step {self.step}: begin again with lower rates")
        entry = {
            "step": self.step, "minutes": self.spent / 60, "share": share,
            "crops": self.crops, "crops_per_second": speed,
            "rate": schedule.rate(share, self.step, self.recipe.steps), "own": schedule.own_stream(share, self.fresh),
            **means,
        }  # fmt: skip
        self.journal.write(entry)
        self.around.notice(
            f"{share:.0%}, step {self.step}, {speed:.0f} crops/s, "
            f"loss {means['loss']:.3f}, key cosine {means['cosine']:.3f}"
        )

    @torch.no_grad()
    def _held_out_cosine(self) -> float | None:
        """Mean cosine between keys of the averaged student and of the teacher on crops of photographs held out."""
        if not self.held_out:
            return None
        crops = HostCrops(self.held_out, self.around.notice)
        size = min(_HELD_OUT_BATCH, len(self.held_out))
        cosines = []
        for number in range(len(self.held_out) // size):
            lesson = self._teach(crops(plan(number, len(self.held_out), size, self.config.patch, seed=0)))
            with self._precision():
                states, key = self.stream(self.learner.average, self.config, lesson.crops)
            found = errors(self.learner.average, self.config, states, key, lesson, self._final(lesson), self.scales)
            cosines.append(found["cosine"].item())
        return sum(cosines) / len(cosines)

    def _save(self, lessons: Targets | None) -> None:
        """Student and state; without lessons the run is over, and the state goes."""
        weights = torch_vit.to_numpy(self.learner.average)
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise VitnpError(f"the weights are no numbers any more at step {self.step}: begin again with lower rates")
        state = self.folder / "state.pt"
        if lessons is not None:
            content = {
                "identity": self.identity, "step": self.step, "crops": self.crops, "spent": self.spent,
                "scales": tuple(self.scales), "learner": self.learner.state_dict(), "lessons": lessons.state_dict(),
            }  # fmt: skip
            with replacing(state) as file:
                torch.save(content, file)
        write_student(
            self.folder / "student.safetensors", weights, self.config,
            name=self.origin.name, license=self.origin.license, distilled_from=self.teacher_name,
            crops=self.origin.crops + self.crops,
        )  # fmt: skip
        if lessons is None:
            state.unlink(missing_ok=True)

    def _resume(self, path: Path) -> dict:
        """Take up the state of a run; returns that of its lessons."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            identity = state["identity"]
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, TypeError, pickle.UnpicklingError):
            raise UsageError(f"{path} is damaged: remove it, and the run begins anew") from None
        before, now = json.loads(identity), json.loads(self.identity)
        if different := [name for name in now if now[name] != before.get(name)]:
            raise UsageError(
                f"the run in {path.parent} began with another {', '.join(different)}: give what it began with, "
                "or choose another folder"
            )
        self.step, self.crops, self.spent = state["step"], state["crops"], state["spent"]
        self.scales = Scales(*state["scales"])
        self.learner.load_state_dict(state["learner"])
        self.around.notice(f"going on in {path.parent} after step {self.step}, {self.spent / 60:.1f} minutes")
        return state["lessons"]


def _check(teacher: ViT, pictures: Sequence[Picture], recipe: Recipe, init: ViT | None, around: Surroundings) -> None:
    """Refuse what can't work before anything is read or written."""
    if (recipe.minutes is None) == (recipe.steps is None):
        raise UsageError("how long to train is either --minutes or --steps; give one of them")
    if teacher.config.depth % recipe.depth:
        raise UsageError(
            f"{recipe.depth} blocks don't divide the {teacher.config.depth} of the teacher {teacher.name}; "
            "choose a divisor"
        )
    if init and init.config != torch_vit.student_config(teacher.config, recipe.depth):
        raise UsageError(
            f"{init.name} is no student of {recipe.depth} blocks of {teacher.name}; "
            "leave out --init, or give one that is"
        )
    if len(pictures) < recipe.batch + recipe.held_out:
        raise UsageError(
            f"{len(pictures)} photographs are too few for a batch of {recipe.batch} beside {recipe.held_out} "
            "held out; give more of them"
        )
    if around.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no GPU here; give --device cpu, or install a torch with CUDA")


def _identity(teacher: ViT, pictures: Sequence[Picture], recipe: Recipe, init: ViT | None) -> str:
    """What must not change between the parts of a run, as JSON."""
    names = hashlib.sha256("\n".join(picture.name for picture in pictures).encode()).hexdigest()
    inputs = {"teacher": teacher.sha256, "photographs": names, "init": init.sha256 if init else None}
    return json.dumps({**dataclasses.asdict(recipe), **inputs})
