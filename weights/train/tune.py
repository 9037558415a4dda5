"""Training of one round of self-training: a network learns from labeled photographs without forgetting what it was.

The folder of a round contains::

    tuned.safetensors   the network so far, averaged over the last steps, float16
    log.jsonl           training curves (vitnp.weights.train.log)
    state.pt            state for resuming after an interruption; removed at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vitnp.weights.train import loop, schedule, torch_vit
from vitnp.weights.train.data.crops import Normalizer
from vitnp.weights.train.data.labeled import LabeledBatch, LabeledCropLoader
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.log import RunLog
from vitnp.weights.train.selftrain_losses import (
    READOUT_BIAS,
    READOUT_WEIGHT,
    Features,
    LossWeights,
    selftraining_losses,
    sharpen,
)
from vitnp.weights.train.selftrain_recipe import SelftrainEnvironment, SelftrainRecipe
from vitnp.weights.train.student import Student
from vitnp.weights.train.training_state import load_state, save_state

from vitnp.errors import VitnpError
from vitnp.io.write import make_folder
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

logger = logging.getLogger(__name__)

_READOUT_LR = 100.0  # relative to the last block's: unit keys are short, so the readout is long
_AVERAGE_DECAY = 0.996
# The anchors are measured on this part of each batch, because the original network takes a quarter of the time.
_ANCHORED = 0.5


@dataclasses.dataclass(frozen=True)
class TunedInfo:
    """Metadata of the file.

    ``name`` and ``license`` are written as they are; ``previous_crops`` is the number of crops that the network to
    start from was trained on in earlier runs.
    """

    name: str = "selftrained"
    license: str = "unspecified"
    previous_crops: int = 0


class Tuning:
    """One round of training.

    Parameters
    ----------
    start : ViT
        Network to start from.
    anchor : ViT
        Network whose keys and CLS tokens are to be kept; of the same architecture.
    pictures, maps : sequence of Picture, sequence of (h, w) uint8 array
        Photographs, and the soft map of each.
    readout : ((D,) array, float)
        Weights and bias of the readout to start from.
    folder : path
        Folder of the round. If it contains a ``state.pt``, training resumes there.
    recipe : SelftrainRecipe
    info : TunedInfo
    inputs : mapping of str to object
        Everything that must stay the same when the run is resumed.
    environment : SelftrainEnvironment
    seed : tuple of int
        Seeds of this round.
    """

    def __init__(
        self,
        start: ViT,
        anchor: ViT,
        pictures: Sequence[Picture],
        maps: Sequence[np.ndarray],
        readout: tuple[np.ndarray, float],
        folder: Path,
        recipe: SelftrainRecipe,
        info: TunedInfo,
        inputs: Mapping[str, object],
        environment: SelftrainEnvironment,
        seed: int,
    ) -> None:
        self.recipe, self.info, self.inputs, self.environment = recipe, info, dict(inputs), environment
        self.config, self.device = start.config, torch.device(environment.device)
        self.anchor_name = anchor.name
        self.anchor = torch_vit.to_torch(anchor, self.device)
        self.normalize = Normalizer(start.config, self.device)
        weights = torch_vit.to_torch(start, self.device)
        weights[READOUT_WEIGHT] = torch.tensor(readout[0], dtype=torch.float32, device=self.device)
        weights[READOUT_BIAS] = torch.tensor([readout[1]], dtype=torch.float32, device=self.device)
        self.student = Student(
            weights,
            "adamw",
            recipe.lr,
            lr_factors=layerwise_lr_factors(weights, start.config, recipe.layer_decay),
            weight_decay=0.0,
            average_decay=_AVERAGE_DECAY,
        )
        self.loader = LabeledCropLoader(
            pictures,
            maps,
            batch_size=recipe.batch_size,
            patch=start.config.patch,
            seed=seed,
            n_threads=environment.n_threads,
        )
        self.path, self.state_path = folder / "tuned.safetensors", folder / "state.pt"
        self.log = RunLog(folder / "log.jsonl")
        self.counters = loop.Counters()

    def run(self) -> bool:
        """Train from the beginning or the saved state; return whether the training is finished, or was asked to stop.

        Raises
        ------
        UsageError
            If the saved state is damaged, or of another run.
        OutputError
            If the folder cannot be written.
        VitnpError
            If the loss becomes infinite or NaN. The last save is kept.
        """
        make_folder(self.path.parent)
        if self.state_path.is_file():
            self._resume()
        self.log.rewind(self.counters.step)
        with contextlib.closing(self.loader.prefetch(self.counters.step)) as batches:
            finished = loop.train(
                self.counters,
                self.recipe.progress,
                self.environment,
                lambda progress: self._train_step(batches, progress),
                self._log_progress,
                self._save_state,
            )
        if not finished:
            self._save_state()
            return False
        self._write()
        self.log.write({"step": self.counters.step, "crops": self.counters.crops, "finished": True})
        self.state_path.unlink(missing_ok=True)
        return True

    def _train_step(
        self, batches: Generator[LabeledBatch, None, None], progress: float
    ) -> tuple[dict[str, Tensor], int]:
        """Update the network once; return the losses before the update, and the number of crops."""
        batch = next(batches)
        losses = self._losses(batch)
        factor = schedule.lr_factor(progress, self.counters.step, self.recipe.steps)
        self.student.step(losses["loss"], factor)
        return {name: value.detach() for name, value in losses.items()}, len(batch.crops)

    def _losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        weights, recipe = self.student.weights, self.recipe
        crops = self.normalize(batch.crops)
        targets = sharpen(batch.targets.to(self.device), recipe.sharpness)
        n_anchored = math.ceil(_ANCHORED * len(crops))
        foreground = targets[:n_anchored] > 0.5
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            features = Features.compute(weights, self.config, crops, foreground)
            with torch.no_grad():
                anchor = Features.compute(self.anchor, self.config, crops[:n_anchored], foreground)
        readout = weights[READOUT_WEIGHT], weights[READOUT_BIAS]
        return selftraining_losses(
            features, anchor, readout, targets, LossWeights(recipe.key_weight, recipe.cls_weight)
        )

    def _log_progress(self, losses: dict[str, float], progress: float, crops_per_second: float) -> None:
        counters = self.counters
        if not math.isfinite(losses["loss"]):
            raise VitnpError(f"the loss is infinite or NaN at step {counters.step}; train again with a lower --rate")
        self.log.write(
            {
                "step": counters.step,
                "minutes": counters.seconds / 60,
                "progress": progress,
                "crops": counters.crops,
                "crops_per_second": crops_per_second,
                "lr_factor": schedule.lr_factor(progress, counters.step, self.recipe.steps),
                **losses,
            }
        )
        message = "%.0f%%, step %d, %.0f crops/s, mask loss %.3f, key cosine %.3f, CLS cosine %.3f"
        cosines = 1 - losses["key"], 1 - losses["cls"]
        logger.info(message, 100 * progress, counters.step, crops_per_second, losses["mask"], *cosines)

    def _save_state(self) -> None:
        """Save the state to resume from, and then the network so far: without a state it would count as finished."""
        counters, student = dataclasses.asdict(self.counters), self.student.state_dict()
        save_state(self.state_path, {"inputs": self.inputs, **counters, "student": student})
        self._write()

    def _write(self) -> None:
        """Write the averaged network."""
        from vitnp.weights.train.export import write_checkpoint

        average = {name: value for name, value in self.student.average.items() if not name.startswith("readout.")}
        weights = torch_vit.to_numpy(average)
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise VitnpError(
                f"the weights contain NaN or infinity at step {self.counters.step}; train again with a lower --rate"
            )
        info = self.info
        metadata = {
            "name": info.name,
            "license": info.license,
            "adapted_from": self.anchor_name,
            "crops": str(info.previous_crops + self.counters.crops),
        }
        write_checkpoint(self.path, weights, self.config, metadata)

    def _resume(self) -> None:
        """Restore the saved state."""
        state = load_state(self.state_path, self.inputs, self.device)
        self.counters = loop.Counters(state["step"], state["crops"], state["seconds"])
        self.student.load_state_dict(state["student"])
        message = "resuming %s after step %d, %.1f minutes"
        logger.info(message, self.state_path.parent, self.counters.step, self.counters.seconds / 60)


def layerwise_lr_factors(names: Mapping[str, object], config: ViTConfig, decay: float) -> dict[str, float]:
    """Return the learning rate of each weight relative to that of the last block.

    Each block has `decay` times the rate of the block after it, and the embedding that of one more block. The final
    norm has the rate of the last block, the readout a hundred times that.

    References
    ----------
    Clark et al. 2020, ELECTRA, arXiv 2003.10555; Bao et al. 2022, BEiT, arXiv 2106.08254.

    Examples
    --------
    >>> from vitnp.vit.config import ViTConfig
    >>> config = ViTConfig(width=4, depth=3, heads=1, patch=16, grid=(14, 14), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> layerwise_lr_factors(dict.fromkeys(["pos_embed", "blocks.1.norm1.bias", "norm.bias"]), config, 0.5)
    {'pos_embed': 0.125, 'blocks.1.norm1.bias': 0.5, 'norm.bias': 1.0}
    """

    def factor(name: str) -> float:
        if name.startswith("readout."):
            return _READOUT_LR
        if name.startswith("blocks."):
            return decay ** (config.depth - 1 - int(name.split(".")[1]))
        return 1.0 if name.startswith("norm.") else decay**config.depth

    return {name: factor(name) for name in names}
