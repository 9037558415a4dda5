"""Self-training: a network learns from the masks that its own features give of unlabeled photographs, in rounds.

A round fits a collection on some of the photographs, segments all of them with it, and trains the network until its
keys tell the foreground of these masks by one linear readout, while keys and CLS tokens stay near those of the original
network (:mod:`vitnp.weights.train.selftrain_losses`). The next round begins with the network of this one. Masks are
better than the features they come from, because they combine levels and follow the edges of the photograph; this is
what there is to learn. No label, mask or box made by a person is read.

The folder of a run contains::

    selftrained.safetensors   the network of the last round, float16, once the run is finished
    run.json                  what must stay the same when the run is resumed
    round-1/                  and so on: collection.safetensors, labels/ (vitnp.weights.train.pseudo_labels), and what
                              vitnp.weights.train.tune writes: tuned.safetensors, log.jsonl, state.pt until its end

References
----------
Lee 2013, Pseudo-Label; Xie et al. 2020, Self-training with Noisy Student improves ImageNet classification, arXiv
1911.04252; Shin et al. 2022, Unsupervised salient object detection with spectral cluster voting, arXiv 2203.12614.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.fit_collection import fit_collection
from vitnp.weights.train.pseudo_labels import PseudoLabels, make_pseudo_labels
from vitnp.weights.train.selftrain_recipe import SelftrainEnvironment, SelftrainRecipe, check_selftrain
from vitnp.weights.train.tune import TunedInfo, Tuning

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.io.write import make_folder, replacing, write_json
from vitnp.method.collection import Collection
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline
from vitnp.progress import Progress, silent
from vitnp.vit.model import ViT

logger = logging.getLogger(__name__)

_FIT_STREAM, _LABEL_STREAM = 6, 7  # random streams, distinct from those of the other modules


def selftrain(
    vit: ViT,
    pictures: Sequence[Picture],
    folder: Path,
    recipe: SelftrainRecipe,
    info: TunedInfo,
    *,
    start: ViT | None = None,
    environment: SelftrainEnvironment | None = None,
    progress: Progress = silent,
) -> Path | None:
    """Train a network on its own masks, or resume an interrupted run.

    Parameters
    ----------
    vit : ViT
        The original network, near which features are kept.
    pictures : sequence of Picture
        Photographs without labels.
    folder : path
        Folder of the run; created if needed. If it contains an unfinished run, that run is resumed.
    recipe : SelftrainRecipe
        Hyperparameters.
    info : TunedInfo
        Metadata of the file.
    start : ViT, optional
        Network that makes the labels of the first round and is trained first, such as the result of an earlier run;
        by default `vit`.
    environment : SelftrainEnvironment, optional
        Device, threads and intervals.
    progress : callable, optional
        See :mod:`vitnp.progress`.

    Returns
    -------
    path or None
        The finished network; None if `environment.should_stop` ended the run early.

    Raises
    ------
    UsageError
        If the recipe does not fit the photographs or differs from that of the run in the folder, if the networks have
        different architectures, if too few photographs are usable, or if there is no GPU to train on.
    OutputError
        If the folder contains a finished run, or cannot be written.
    VitnpError
        If the loss becomes infinite or NaN. The last save is kept.
    """
    start = vit if start is None else start
    environment = environment or SelftrainEnvironment()
    check_selftrain(recipe, len(pictures))
    if start.config != vit.config:
        raise UsageError(f"{start.name} and {vit.name} have different architectures; start from a network like it")
    if environment.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no GPU; give --device cpu, or install torch with CUDA")
    result = folder / "selftrained.safetensors"
    if result.exists():
        raise OutputError(f"{result} exists and is finished; choose another folder, or remove it to train again")
    inputs = _inputs(vit, start, pictures, recipe)
    make_folder(folder)
    _check_inputs(folder / "run.json", inputs)
    network = start
    for number in range(1, recipe.rounds + 1):
        logger.info("round %d of %d", number, recipe.rounds)
        one = _Round(vit, network, pictures, folder / f"round-{number}", recipe, info, inputs, environment, number)
        if not one.run(progress):
            return None
        network = load_vit(one.path)
        info = dataclasses.replace(info, previous_crops=int(read_safetensors(one.path)[1]["crops"]))
    with replacing(result) as file, open(one.path, "rb") as source:
        shutil.copyfileobj(source, file)
    return result


@dataclasses.dataclass(frozen=True)
class _Round:
    """One round: from a network to a better one. The other parameters are those of :func:`selftrain`."""

    anchor: ViT
    network: ViT
    pictures: Sequence[Picture]
    folder: Path
    recipe: SelftrainRecipe
    info: TunedInfo
    inputs: dict[str, object]
    environment: SelftrainEnvironment
    number: int

    @property
    def path(self) -> Path:
        """The file of the network that results."""
        return self.folder / "tuned.safetensors"

    def run(self, progress: Progress) -> bool:
        """Fit, label and train, each only if it was not done before; return whether the round is finished."""
        if self.path.exists() and not (self.folder / "state.pt").exists():
            return True
        make_folder(self.folder)
        collection = self._collection(progress)
        pictures = self._draw(_LABEL_STREAM, self.recipe.n_labels)
        labels = make_pseudo_labels(
            pictures,
            ImagePipeline.create(self.network, Settings(), collection),
            self.folder / "labels",
            n_threads=self.environment.n_threads,
            progress=progress,
            should_stop=self.environment.should_stop,
        )
        if labels is None:
            return False
        usable = self._usable(labels)
        assert collection.readout is not None, "fit() makes one"
        tuning = Tuning(
            self.network,
            self.anchor,
            [pictures[index] for index in usable],
            [labels.maps[index] for index in usable],
            (collection.readout.weights, collection.readout.bias),
            self.folder,
            self.recipe,
            self.info,
            self.inputs,
            self.environment,
            seed=self.recipe.seed + self.number,
        )
        return tuning.run()

    def _collection(self, progress: Progress) -> Collection:
        """Fit the collection that labels are made with, or read it."""
        path = self.folder / "collection.safetensors"
        if path.exists():
            return Collection.load(path)
        photographs: list[Path | np.ndarray] = []
        for picture in self._draw(_FIT_STREAM, self.recipe.n_fit):
            try:
                # Files are read when they are needed, since large photographs do not fit into memory together.
                photographs.append(picture.source if isinstance(picture.source, Path) else picture.read())
            except ImageError as error:
                logger.warning("%s", error)
        fitted = fit_collection(
            photographs,
            self.network,
            seed=self.recipe.seed,
            n_threads=self.environment.n_threads,
            progress=progress,
        )
        fitted.save(path)
        return Collection.load(path)

    def _draw(self, stream: int, count: int | None) -> list[Picture]:
        """Return so many of the photographs in random order, each round others; all of them if None."""
        rng = np.random.default_rng([self.recipe.seed, stream, self.number])
        return [self.pictures[index] for index in rng.permutation(len(self.pictures))[:count]]

    def _usable(self, labels: PseudoLabels) -> np.ndarray:
        usable = labels.usable(self.recipe.min_confidence)
        logger.info("%d of %d labels are usable", len(usable), len(labels.maps))
        if len(usable) < self.recipe.batch_size:
            raise UsageError(
                f"only {len(usable)} photographs have a mask of confidence {self.recipe.min_confidence} or more, "
                f"too few for a batch of {self.recipe.batch_size}; give more photographs, or a lower --min-confidence"
            )
        return usable


def _inputs(vit: ViT, start: ViT, pictures: Sequence[Picture], recipe: SelftrainRecipe) -> dict[str, object]:
    """Return what must stay the same when a run is resumed."""
    names = hashlib.sha256("\n".join(picture.name for picture in pictures).encode()).hexdigest()
    hashes = {"checkpoint": vit.sha256, "start": start.sha256, "photographs": names}
    return {**dataclasses.asdict(recipe), **hashes}


def _check_inputs(path: Path, inputs: dict[str, object]) -> None:
    """Write the inputs of a new run, or compare them with those of the run in the folder."""
    if not path.exists():
        write_json(path, inputs)
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in inputs if inputs[name] != saved.get(name)]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{path} is damaged; choose another folder") from None
    if different:
        raise UsageError(
            f"the run in {path.parent} was started with different values of {', '.join(different)}; "
            "give the same values, or choose another folder"
        )
