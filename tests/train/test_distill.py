"""Distillation at toy scale: it learns, resumes when interrupted, and writes a checkpoint that vitnp reads."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from vitnp.weights.train import distill as module
from vitnp.weights.train import torch_vit
from vitnp.weights.train.cli import build_parser, main
from vitnp.weights.train.data.packs import list_pictures
from vitnp.weights.train.distill import distill
from vitnp.weights.train.log import RunLog
from vitnp.weights.train.recipe import Recipe, RunEnvironment, StudentInfo

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.errors import OutputError, UsageError, VitnpError
from vitnp.io.decode import read_image
from vitnp.io.preprocess import normalize
from vitnp.io.resample import downscale

TOY = Recipe(steps=120, depth=2, batch_size=4, n_held_out=4, bfloat16=False, pool_size=3)
INFO = StudentInfo("toy_student", "CC0-1.0", previous_crops=1000)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(photographs):
    return list_pictures([photographs])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher, pictures):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    distill(teacher, pictures, folder, TOY, info=INFO, environment=RunEnvironment(log_steps=20))
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(arguments):
    return main(["distill", *map(str, arguments)])


def toy_arguments(photographs, teacher_file, out, **options):
    options = {"depth": 2, "steps": 4, "batch": 4, "held-out": 4, "log-steps": 2, **options}
    named = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    return [photographs, "--teacher", teacher_file, "--out", out, "--quiet", *named]


def test_losses_decrease(finished):
    *log, last = read_log(finished)
    assert [entry["step"] for entry in log] == [20, 40, 60, 80, 100, 120]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["cosine"] > log[0]["cosine"] + 0.1
    assert last["finished"] and last["step"] == 120
    assert sorted(file.name for file in finished.iterdir()) == ["log.jsonl", "student.safetensors"]


def test_held_out_cosine_is_of_the_saved_student(finished, teacher, pictures):
    """Student and teacher, run by vitnp on whole photographs, agree about as well as logged for crops."""
    student = load_vit(finished / "student.safetensors")
    untrained = type(student)(student.config, torch_vit.to_numpy(torch_vit.initial_weights(student.config, 0)))

    def agreement(vit):
        cosines = []
        for picture in pictures:
            image = normalize(downscale(picture.read(), (224, 288)), student.config.mean, student.config.std)[None]
            a, b = vit(image)["key"], teacher(image)["key"]
            cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        return np.mean(cosines)

    logged = read_log(finished)[-1]["held_out_cosine"]
    assert agreement(student) == pytest.approx(logged, abs=0.1)
    assert agreement(student) > agreement(untrained) + 0.2


def test_metadata_and_dtype_of_the_file(finished, teacher):
    tensors, metadata = read_safetensors(finished / "student.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    crops = metadata.pop("crops")
    assert int(crops) == 1000 + read_log(finished)[-1]["crops"]
    assert metadata == {
        "name": "toy_student", "license": "CC0-1.0", "distilled_from": "toy_teacher",
        "img": "224", "patch": "32", "dim": "32", "depth": "2", "heads": "2", "norm_eps": "1e-06", "pos_embed": "exact",
        "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25",
    }  # fmt: skip
    student = load_vit(finished / "student.safetensors")
    assert student.config == torch_vit.student_config(teacher.config, 2)


def test_vitnp_computes_the_features_that_were_trained(finished):
    student = load_vit(finished / "student.safetensors")
    images = np.random.default_rng(0).standard_normal((1, 3, 256, 320)).astype(np.float32)
    with torch.no_grad():
        weights = torch_vit.to_torch(student)
        states, key = torch_vit.forward(weights, student.config, torch.from_numpy(images))
        token = torch_vit.layer_norm(weights, student.config, states[-1])
    features = student(images, ("key", "token"))
    assert np.abs(features["key"] - key[:, 1:].numpy()).max() < 1e-5
    assert np.abs(features["token"] - token[:, 1:].numpy()).max() < 1e-5


@pytest.mark.parametrize("parts", [(50,), (1, 79)])
def test_interruptions_change_nothing(finished, tmp_path, teacher, pictures, parts):
    for steps in (*parts, None):
        remaining = iter(range(steps or 1000))
        environment = RunEnvironment(
            log_steps=20, n_threads=2, should_stop=lambda remaining=remaining: next(remaining, None) is None
        )
        result = distill(teacher, pictures, tmp_path, TOY, info=INFO, environment=environment)
        assert (result is None) == (steps is not None) == (tmp_path / "state.pt").exists()
    expected, resumed = (folder / "student.safetensors" for folder in (finished, tmp_path))
    assert resumed.read_bytes() == expected.read_bytes()
    assert [entry["step"] for entry in read_log(tmp_path)] == [entry["step"] for entry in read_log(finished)]


def test_a_run_ends_after_its_minutes(tmp_path, teacher, pictures):
    recipe = Recipe(minutes=0.01, depth=2, batch_size=4, n_held_out=0, optimizer="adamw")
    folder = tmp_path / "run"
    student = distill(teacher, pictures, folder, recipe, environment=RunEnvironment(log_steps=1))
    assert student == folder / "student.safetensors"
    *log, last = read_log(folder)
    assert 0 < log[-1]["minutes"] < 0.2 and 0 <= log[0]["progress"] < 1 and last["held_out_cosine"] is None


def test_starting_from_a_student(finished, tmp_path, photographs, teacher_file, capsys):
    init = finished / "student.safetensors"
    assert run([*toy_arguments(photographs, teacher_file, tmp_path, init=init, pool=2), "--float32"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "student.safetensors")
    entry = read_log(tmp_path)[0]
    assert entry["cosine"] > 0.5 and entry["free_running"] > 0.5
    assert int(read_safetensors(tmp_path / "student.safetensors")[1]["crops"]) > int(read_safetensors(init)[1]["crops"])


def test_excluded_photographs_are_not_trained_on(tmp_path, photographs, teacher_file, monkeypatch):
    known = tmp_path / "known"
    known.mkdir()
    for index in (2, 5):
        with Image.open(photographs / f"{index:02}.jpg") as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(known / f"x{index}.png")
    used = []
    monkeypatch.setattr(module, "distill", lambda teacher, pictures, *rest, **options: used.extend(pictures))
    run([*toy_arguments(photographs, teacher_file, tmp_path / "run"), "--exclude", known])
    assert [picture.name for picture in used] == [f"{index:02}.jpg" for index in range(20) if index not in (2, 5)]


def test_score_equals_that_of_the_evaluation(tmp_path, photographs, teacher_file, capsys):
    from vitnp.evaluate.data.pairs import match_pairs
    from vitnp.evaluate.saliency import mean_scores, score_pairs

    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for index in range(2):
        rgb = read_image(photographs / f"{index:02}.jpg")
        Image.fromarray(rgb).save(images / f"{index}.png")
        Image.fromarray((rgb[..., 0] > 127).astype(np.uint8) * 255).save(masks / f"{index}.png")
    assert run([*toy_arguments(photographs, teacher_file, tmp_path / "run"), "--score", images, masks]) == 0
    pairs, _ = match_pairs(images, masks)
    expected = mean_scores(score_pairs(pairs, load_vit(tmp_path / "run" / "student.safetensors")))
    assert read_log(tmp_path / "run")[-1]["iou"] == pytest.approx(expected.iou, rel=1e-4)
    assert f"{expected.iou:.4f}" in capsys.readouterr().out


def test_ctrl_c_saves_the_run(tmp_path, photographs, teacher_file, monkeypatch):
    train_step = module._Run._train_step

    def interrupted(self, batch, progress):
        if self.counters.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, batch, progress)

    before = signal.getsignal(signal.SIGINT)
    arguments = toy_arguments(photographs, teacher_file, tmp_path, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_train_step", interrupted)
        assert run(arguments) == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    assert run(arguments) == 0
    assert read_log(tmp_path)[-1]["step"] == 5


def test_resuming_with_another_recipe_is_an_error(tmp_path, teacher, pictures):
    distill(teacher, pictures, tmp_path, TOY, environment=RunEnvironment(should_stop=lambda: True))
    content = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(UsageError, match="different values of batch_size, seed"):
        distill(teacher, pictures, tmp_path, dataclasses.replace(TOY, batch_size=5, seed=1))
    with pytest.raises(UsageError, match="different values of photographs"):
        distill(teacher, pictures[1:], tmp_path, TOY)
    assert (tmp_path / "state.pt").read_bytes() == content
    (tmp_path / "state.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"state\.pt is damaged"):
        distill(teacher, pictures, tmp_path, TOY)


def test_a_finished_run_is_not_overwritten(finished, teacher, pictures):
    with pytest.raises(OutputError, match="exists and is finished"):
        distill(teacher, pictures, finished, TOY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "depth must be a divisor of the 4 blocks .*, got 3"),
        ({"batch_size": 17}, "20 photographs are too few for a batch of 17 and 4"),
        ({"steps": None}, "give exactly one of them"),
        ({"minutes": 1.0}, "give exactly one of them"),
    ],
)
def test_invalid_recipes(tmp_path, teacher, pictures, change, message):
    with pytest.raises(UsageError, match=message):
        distill(teacher, pictures, tmp_path / "run", dataclasses.replace(TOY, **change))
    assert not (tmp_path / "run").exists()


def test_initial_weights_must_be_those_of_a_student(tmp_path, teacher, pictures):
    with pytest.raises(UsageError, match="is not a student of 2 blocks"):
        distill(teacher, pictures, tmp_path / "run", TOY, init=teacher)


def test_a_diverging_run_writes_no_student(tmp_path, teacher, pictures):
    recipe = Recipe(steps=60, depth=2, batch_size=4, n_held_out=4, lr=1e30, optimizer="adamw")
    with pytest.raises(VitnpError, match="infinite or NaN"):
        distill(teacher, pictures, tmp_path, recipe, environment=RunEnvironment(log_steps=10))
    assert not (tmp_path / "student.safetensors").exists()


def test_without_torch_the_error_says_how_to_install_it(tmp_path, photographs, teacher_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"training needs torch; install it with `pip install '\.\[train\]'`"):
        run(toy_arguments(photographs, teacher_file, tmp_path / "run"))


def test_the_former_spelling_of_an_option_is_accepted(photographs, teacher_file, tmp_path):
    arguments = toy_arguments(photographs, teacher_file, tmp_path, optimiser="adamw")
    assert build_parser().parse_args(["distill", *map(str, arguments)]).optimizer == "adamw"


def test_a_state_with_the_names_of_earlier_versions_is_resumed(finished, tmp_path, teacher, pictures):
    remaining = iter(range(50))
    environment = RunEnvironment(log_steps=20, should_stop=lambda: next(remaining, None) is None)
    distill(teacher, pictures, tmp_path, TOY, info=INFO, environment=environment)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    former = {
        "batch_size": "batch", "pool_size": "kept", "optimizer": "optimiser", "lr": "rate", "muon_lr": "muon_rate",
        "n_held_out": "held_out",
    }  # fmt: skip
    inputs = {former.get(name, name): value for name, value in state.pop("inputs").items()}
    muon = {"means": state["student"]["muon"]["averages"]}
    state |= {
        "identity": json.dumps(inputs),
        "spent": state.pop("seconds"),
        "learner": {**state.pop("student"), "muon": muon},
    }
    targets = state.pop("targets")
    state["lessons"] = {"given": targets["next_batch"], "kept": targets["pool"]}
    torch.save(state, tmp_path / "state.pt")
    distill(teacher, pictures, tmp_path, TOY, info=INFO, environment=RunEnvironment(log_steps=20))
    expected, resumed = (folder / "student.safetensors" for folder in (finished, tmp_path))
    assert resumed.read_bytes() == expected.read_bytes()


def test_rewinding_a_log_removes_scores_and_incomplete_lines(tmp_path):
    entries = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"images": 3, "iou": 0.8}]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + '{"step": 6, "lo')
    RunLog(tmp_path / "log.jsonl").rewind(2)
    assert read_log(tmp_path) == entries[:1]
