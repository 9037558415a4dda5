"""Distillation: a network of few blocks learns to reproduce a trained network of more blocks, from images alone.

Each block of the student learns the function of a group of the teacher's blocks: with 6 and 12 blocks, block j learns
blocks 2 j and 2 j + 1. For every crop the targets are the teacher's hidden states after each group, its last keys, and
its tokens and CLS after the final norm (:mod:`vitnp.weights.train.losses`). No label, mask or box is read.

The folder of a run contains::

    student.safetensors   the student so far, averaged over the last steps, float16
    log.jsonl             training curves (vitnp.weights.train.log)
    state.pt              state for resuming after an interruption; removed at the end
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from vitnp.weights.train import loop, schedule, torch_vit
from vitnp.weights.train.data.loader import CropLoader
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.export import write_checkpoint
from vitnp.weights.train.log import RunLog
from vitnp.weights.train.losses import FeatureScales, distillation_losses
from vitnp.weights.train.recipe import Recipe, RunEnvironment, StudentInfo, check_run
from vitnp.weights.train.student import Student
from vitnp.weights.train.targets import PoolState, TargetBatch, TargetPool, Teacher
from vitnp.weights.train.training_state import TrainingState, load_state, run_inputs, save_state

from vitnp.errors import OutputError, VitnpError
from vitnp.io.write import make_folder
from vitnp.vit.model import ViT

logger = logging.getLogger(__name__)

# Random streams, distinct from those of data/sampler.py and targets.py.
_HELD_OUT_STREAM, _FREE_RUNNING_STREAM = 3, 4
_HELD_OUT_BATCH_SIZE = 16


def distill(
    teacher: ViT,
    pictures: Sequence[Picture],
    folder: Path,
    recipe: Recipe,
    *,
    init: ViT | None = None,
    info: StudentInfo | None = None,
    environment: RunEnvironment | None = None,
) -> Path | None:
    """Train a student, or resume an interrupted run.

    Progress is logged at level INFO.

    Parameters
    ----------
    teacher : ViT
        Any network that vitnp runs.
    pictures : sequence of Picture
        Photographs to train on; at least one batch, plus those held out.
    folder : path
        Folder of the run; created if needed. If it contains a ``state.pt``, that run is resumed.
    recipe : Recipe
        Hyperparameters.
    init : ViT, optional
        Initial student; by default its weights are random.
    info : StudentInfo, optional
        Metadata of the student's file.
    environment : RunEnvironment, optional
        Device, threads and intervals.

    Returns
    -------
    path or None
        The finished student; None if `environment.should_stop` ended the run early.

    Raises
    ------
    UsageError
        If the recipe does not fit the teacher or the photographs, or differs from that of the run in the folder.
    OutputError
        If the folder contains a finished student, or cannot be written.
    VitnpError
        If the loss becomes infinite or NaN. The last save is kept.
    """
    info, environment = info or StudentInfo(), environment or RunEnvironment()
    check_run(teacher, pictures, recipe, init, environment)
    return _Run(teacher, pictures, folder, recipe, init, info, environment).run()


class _Run:
    """One training run; the parameters are those of :func:`distill`."""

    def __init__(
        self,
        teacher: ViT,
        pictures: Sequence[Picture],
        folder: Path,
        recipe: Recipe,
        init: ViT | None,
        info: StudentInfo,
        environment: RunEnvironment,
    ) -> None:
        self.recipe, self.info, self.environment = recipe, info, environment
        self.device, self.from_scratch = torch.device(environment.device), init is None
        self.forward = torch_vit.compiled_forward() if environment.compile else torch_vit.forward
        group_size = teacher.config.depth // recipe.depth
        self.teacher = Teacher(teacher, group_size, self.device, self.forward, self._autocast)
        self.config = torch_vit.student_config(teacher.config, recipe.depth)
        weights = torch_vit.to_torch(init) if init else torch_vit.initial_weights(self.config, recipe.seed)
        weights = {name: weight.to(self.device) for name, weight in weights.items()}
        self.student = Student(weights, recipe.optimizer, recipe.lr, recipe.muon_lr)

        order = np.random.default_rng([recipe.seed, _HELD_OUT_STREAM]).permutation(len(pictures))
        self.training_set = [pictures[index] for index in sorted(order[recipe.n_held_out :])]
        self.held_out = [pictures[index] for index in sorted(order[: recipe.n_held_out])]

        self.inputs = run_inputs(teacher, pictures, recipe, init)
        self.student_path, self.state_path = folder / "student.safetensors", folder / "state.pt"
        self.log = RunLog(folder / "log.jsonl")
        self.counters = loop.Counters()
        self.scales: FeatureScales | None = None

    def run(self) -> Path | None:
        """Train from the beginning or the saved state, and return the finished student, or None if stopped early."""
        make_folder(self.student_path.parent)
        pool_state = None
        if self.state_path.is_file():
            pool_state = self._resume()
        elif self.student_path.exists():
            raise OutputError(
                f"{self.student_path} exists and is finished; choose another folder, or remove it to train again"
            )
        self.log.rewind(self.counters.step)
        with self._target_pool(pool_state) as targets:
            finished = self._train(targets)
        self._save(None if finished else targets)
        if not finished:
            return None
        entry = {
            "step": self.counters.step,
            "crops": self.counters.crops,
            "held_out_cosine": self._held_out_cosine(),
            "finished": True,
        }
        self.log.write(entry)
        return self.student_path

    @contextlib.contextmanager
    def _target_pool(self, state: PoolState | None) -> Iterator[TargetPool]:
        """Yield the targets of all steps; measure the feature scales if that was not done before."""
        recipe = self.recipe
        loader = CropLoader(
            self.training_set,
            batch_size=recipe.batch_size,
            patch=self.config.patch,
            seed=recipe.seed,
            device=self.device,
            n_threads=self.environment.n_threads,
        )
        if self.scales is None:
            # Not a training step. Computing this batch also warms everything up before the clock starts.
            batch = self.teacher(loader.batch(0))
            self.scales = FeatureScales.measure(batch, self.teacher.final_tokens(batch))
        with contextlib.closing(loader.prefetch(state["next_batch"] if state else 0)) as batches:
            targets = TargetPool(lambda: next(batches), loader.batch, self.teacher, recipe.pool_size, recipe.seed)
            if state:
                targets.load_state_dict(state)
            yield targets

    def _train(self, targets: TargetPool) -> bool:
        """Train until the run is finished (True) or asked to stop (False)."""
        return loop.train(
            self.counters,
            self.recipe.progress,
            self.environment,
            lambda progress: self._train_step(targets(self.counters.step), progress),
            self._log_progress,
            lambda: self._save(targets),
        )

    def _train_step(self, batch: TargetBatch, progress: float) -> tuple[dict[str, Tensor], int]:
        """Update the student once; return the losses before the update, and the number of crops."""
        step = self.counters.step
        rng = np.random.default_rng([self.recipe.seed, _FREE_RUNNING_STREAM, step])
        free_running = rng.random() < schedule.free_running_probability(progress, self.from_scratch)
        losses = self._losses(self.student.weights, batch, None if free_running else batch.states)
        self.student.step(losses["loss"], schedule.lr_factor(progress, step, self.recipe.steps))
        return {name: value.detach() for name, value in losses.items()}, len(batch.crops)

    def _losses(
        self, weights: torch_vit.Weights, batch: TargetBatch, block_inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of the student, see :func:`vitnp.weights.train.losses.distillation_losses`."""
        assert self.scales is not None, "run() measures or restores them"
        with self._autocast():
            states, key = self.forward(weights, self.config, batch.crops, block_inputs=block_inputs)
        final_tokens = self.teacher.final_tokens(batch)
        return distillation_losses(weights, self.config, states, key, batch, final_tokens, self.scales)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16)

    def _log_progress(self, losses: dict[str, float], progress: float, crops_per_second: float) -> None:
        if not math.isfinite(losses["loss"]):
            raise VitnpError(
                f"the loss is infinite or NaN at step {self.counters.step}; train again with lower learning rates"
            )
        self.log.write(
            {
                "step": self.counters.step,
                "minutes": self.counters.seconds / 60,
                "progress": progress,
                "crops": self.counters.crops,
                "crops_per_second": crops_per_second,
                "lr_factor": schedule.lr_factor(progress, self.counters.step, self.recipe.steps),
                "free_running": schedule.free_running_probability(progress, self.from_scratch),
                **losses,
            }
        )
        message = "%.0f%%, step %d, %.0f crops/s, loss %.3f, key cosine %.3f"
        logger.info(message, 100 * progress, self.counters.step, crops_per_second, losses["loss"], losses["cosine"])

    @torch.no_grad()
    def _held_out_cosine(self) -> float | None:
        """Return the mean cosine between keys of the averaged student and the teacher on photographs held out."""
        if not self.held_out:
            return None
        batch_size = min(_HELD_OUT_BATCH_SIZE, len(self.held_out))
        # Always cropped on the host, so that runs on all devices are evaluated alike.
        loader = CropLoader(self.held_out, batch_size=batch_size, patch=self.config.patch, seed=0)
        cosines = [
            self._losses(self.student.average, self.teacher(loader.batch(index)))["cosine"].item()
            for index in range(len(self.held_out) // batch_size)
        ]
        return sum(cosines) / len(cosines)

    def _save(self, targets: TargetPool | None) -> None:
        """Write the student and, unless the run is finished (None), the state to resume from."""
        weights = torch_vit.to_numpy(self.student.average)
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise VitnpError(
                f"the weights contain NaN or infinity at step {self.counters.step}; "
                "train again with lower learning rates"
            )
        if targets is not None:
            assert self.scales is not None, "run() measures or restores them"
            state: TrainingState = {
                "inputs": self.inputs,
                "step": self.counters.step,
                "crops": self.counters.crops,
                "seconds": self.counters.seconds,
                "scales": (self.scales.states, self.scales.key, self.scales.token),
                "student": self.student.state_dict(),
                "targets": targets.state_dict(),
            }
            save_state(self.state_path, state)
        metadata = {
            "name": self.info.name,
            "license": self.info.license,
            "distilled_from": self.teacher.name,
            "crops": str(self.info.previous_crops + self.counters.crops),
        }
        write_checkpoint(self.student_path, weights, self.config, metadata)
        if targets is None:
            self.state_path.unlink(missing_ok=True)

    def _resume(self) -> PoolState:
        """Restore the saved state, and return that of the target pool."""
        state = cast(TrainingState, load_state(self.state_path, self.inputs, self.device))
        self.counters = loop.Counters(state["step"], state["crops"], state["seconds"])
        self.scales = FeatureScales(*state["scales"])
        self.student.load_state_dict(state["student"])
        message = "resuming the run in %s after step %d, %.1f minutes"
        logger.info(message, self.state_path.parent, self.counters.step, self.counters.seconds / 60)
        return state["targets"]
