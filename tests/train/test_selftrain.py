"""Self-training at toy scale: it learns, resumes when interrupted, and writes a checkpoint that vitnp reads."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toy import network
from vitnp.weights.train import pseudo_labels
from vitnp.weights.train import selftrain as module
from vitnp.weights.train.cli import main
from vitnp.weights.train.data.packs import list_pictures
from vitnp.weights.train.selftrain import selftrain
from vitnp.weights.train.selftrain_losses import Features, LossWeights, selftraining_losses
from vitnp.weights.train.selftrain_recipe import SelftrainEnvironment, SelftrainRecipe
from vitnp.weights.train.tune import TunedInfo, Tuning

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.errors import OutputError, UsageError

TOY = SelftrainRecipe(
    rounds=2, steps=12, n_fit=8, n_labels=16, min_confidence=0.0, batch_size=4, lr=1e-3, bfloat16=False
)
INFO = TunedInfo("toy_selftrained", "CC0-1.0", previous_crops=1000)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_labels, "SHARD_SIZE", 8)
        yield


@pytest.fixture(scope="module")
def pictures(photographs):
    return list_pictures([photographs])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher, pictures):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    selftrain(teacher, pictures, folder, TOY, INFO, environment=SelftrainEnvironment(log_steps=4))
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_masks_are_learned_and_the_features_kept(finished):
    for folder in (finished / "round-1", finished / "round-2"):
        *log, last = read_log(folder)
        assert [entry["step"] for entry in log] == [4, 8, 12]
        assert log[-1]["mask"] < log[0]["mask"]
        assert 0 < log[-1]["key"] < 0.3 and 0 < log[-1]["cls"] < 0.3
        assert last["finished"] and not (folder / "state.pt").exists()


def test_the_result_is_the_network_of_the_last_round(finished, teacher):
    result = finished / "selftrained.safetensors"
    assert result.read_bytes() == (finished / "round-2" / "tuned.safetensors").read_bytes()
    assert result.read_bytes() != (finished / "round-1" / "tuned.safetensors").read_bytes()
    tensors, metadata = read_safetensors(result)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    assert tensors.keys() == teacher.weights.keys()
    crops = sum(read_log(finished / f"round-{number}")[-1]["crops"] for number in (1, 2))
    assert int(metadata["crops"]) == 1000 + crops
    assert (metadata["name"], metadata["license"]) == ("toy_selftrained", "CC0-1.0")
    assert metadata["adapted_from"] == "toy_teacher"
    assert load_vit(result).config == teacher.config


def test_each_round_is_labeled_by_the_network_before(finished, teacher):
    fitted_with = [
        module.Collection.load(finished / f"round-{number}" / "collection.safetensors").parameters["sha256"]
        for number in (1, 2)
    ]
    assert fitted_with == [teacher.sha256, load_vit(finished / "round-1" / "tuned.safetensors").sha256]


@pytest.mark.parametrize("calls", [(1,), (5, 9), (14, 10)])
def test_interruptions_change_nothing(finished, tmp_path, teacher, pictures, calls):
    """Stopped while labeling, in the first and in the second round, a run ends with the same bytes."""
    for n_calls in (*calls, None):
        remaining = iter(range(n_calls or 1000))
        environment = SelftrainEnvironment(
            log_steps=4, n_threads=2, should_stop=lambda remaining=remaining: next(remaining, None) is None
        )
        result = selftrain(teacher, pictures, tmp_path, TOY, INFO, environment=environment)
        assert (result is None) == (n_calls is not None)
    for name in ("selftrained.safetensors", "round-1/tuned.safetensors", "round-1/collection.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert [entry["step"] for entry in read_log(tmp_path / "round-2")][:3] == [4, 8, 12]


def test_a_run_that_was_killed_changes_nothing(finished, tmp_path, teacher, pictures, monkeypatch):
    """It goes on from the last save, whatever was written after it."""
    train_step, steps = Tuning._train_step, itertools.count()

    def killed(self, batches, progress):
        if next(steps) == 12 + 7:
            raise RuntimeError("killed")
        return train_step(self, batches, progress)

    saves = itertools.count()
    save_state = Tuning._save_state
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "_train_step", killed)
        # Every third step; the network in the folder is newer than the state then.
        patch.setattr(Tuning, "_save_state", lambda self: self._write() if next(saves) % 3 else save_state(self))
        with pytest.raises(RuntimeError, match="killed"):
            selftrain(
                teacher, pictures, tmp_path, TOY, INFO, environment=SelftrainEnvironment(save_minutes=1e-9, log_steps=4)
            )
    assert selftrain(teacher, pictures, tmp_path, TOY, INFO, environment=SelftrainEnvironment(log_steps=4))
    name = "selftrained.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert read_log(tmp_path / "round-2")[-1]["crops"] == read_log(finished / "round-2")[-1]["crops"]


def test_a_run_from_another_start(tmp_path, teacher, pictures, finished):
    start = load_vit(finished / "selftrained.safetensors")
    recipe = dataclasses.replace(TOY, rounds=1, steps=1, lr=1e-9)
    result = selftrain(teacher, pictures, tmp_path, recipe, INFO, start=start)
    found, expected = load_vit(result).weights, start.weights
    assert all(np.abs(found[name] - expected[name]).max() < 1e-3 for name in expected)
    with pytest.raises(UsageError, match="different architectures"):
        selftrain(teacher, pictures, tmp_path / "other", TOY, INFO, start=network(depth=2))


def test_another_recipe_or_a_finished_run_is_refused(finished, tmp_path, teacher, pictures):
    with pytest.raises(OutputError, match="exists and is finished"):
        selftrain(teacher, pictures, finished, TOY, INFO)
    stopping = SelftrainEnvironment(should_stop=lambda: True)
    assert selftrain(teacher, pictures, tmp_path, TOY, INFO, environment=stopping) is None
    with pytest.raises(UsageError, match="different values of lr, seed"):
        selftrain(teacher, pictures, tmp_path, dataclasses.replace(TOY, lr=1.0, seed=1), INFO)
    with pytest.raises(UsageError, match="different values of photographs"):
        selftrain(teacher, pictures[1:], tmp_path, TOY, INFO)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        selftrain(teacher, pictures, tmp_path, TOY, INFO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "give exactly one of them"),
        ({"minutes": 1.0}, "give exactly one of them"),
        ({"n_labels": 21}, "20 photographs are too few, 21 are needed"),
        ({"batch_size": 30}, "20 photographs are too few, 30 are needed"),
        ({"n_labels": 3}, "3 labels are too few for a batch of 4"),
        ({"min_confidence": 1.0}, r"only \d+ photographs have a mask of confidence 1.0 or more"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path, teacher, pictures, change, message):
    with pytest.raises(UsageError, match=message):
        selftrain(teacher, pictures, tmp_path, dataclasses.replace(TOY, **change), INFO)
    assert not (tmp_path / "selftrained.safetensors").exists()


def features(seed: int, batch: int = 3) -> Features:
    generator = torch.Generator().manual_seed(seed)
    key, cls, region = (torch.randn(shape, generator=generator) for shape in ((batch, 5, 8), (2, 8), (2, 8)))
    return Features(torch.nn.functional.normalize(key, dim=-1), cls, region)


def test_losses_are_the_terms_of_the_docstring():
    ours, anchor = features(0), features(1)
    anchor = anchor._replace(key=anchor.key[:2])
    weight, bias, targets = torch.arange(8.0), torch.tensor([-1.0]), torch.rand(3, 5)
    losses = selftraining_losses(ours, anchor, (weight, bias), targets, LossWeights(key=0.5, cls=2.0))
    foreground = 1 / (1 + np.exp(-(ours.key.double().numpy() @ weight.double().numpy() - 1)))
    y = targets.double().numpy()
    cross_entropy = -(y * np.log(foreground) + (1 - y) * np.log(1 - foreground)).mean()
    assert losses["mask"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses["key"].item() == pytest.approx(1 - (ours.key[:2] * anchor.key).sum(-1).mean().item(), rel=1e-5)
    total = losses["mask"] + 0.5 * losses["key"] + 2 * (losses["cls"] + losses["region_cls"])
    assert losses["loss"].item() == pytest.approx(total.item())


def test_the_anchor_costs_nothing_where_nothing_changed():
    ours = features(0)
    same = ours._replace(key=ours.key[:2])
    losses = selftraining_losses(ours, same, (torch.zeros(8), torch.zeros(1)), torch.rand(3, 5), LossWeights(1, 1))
    assert all(abs(losses[name].item()) < 1e-6 for name in ("key", "cls", "region_cls"))
    assert losses["loss"].item() == pytest.approx(np.log(2), rel=1e-5)


def test_the_command(tmp_path, photographs, teacher_file, capsys):
    arguments = [photographs, "--checkpoint", teacher_file, "--out", tmp_path, "--rounds", 1, "--steps", 2, "--fit", 6]
    arguments += ["--batch", 4, "--min-confidence", 0, "--float32", "--log-steps", 1, "--quiet", "--name", "mine"]
    assert main(["selftrain", *map(str, arguments)]) == 0
    result = tmp_path / "selftrained.safetensors"
    assert capsys.readouterr().out.strip() == str(result)
    assert load_vit(result).config.depth == 4
    assert read_safetensors(result)[1]["name"] == "mine"
