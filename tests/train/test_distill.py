"""Distillation as a whole, at toy scale: it learns, goes on when interrupted, and leaves a file that vitnp reads."""

from __future__ import annotations

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
from vitnp.weights.train.__main__ import main
from vitnp.weights.train.data.packs import pictures_of
from vitnp.weights.train.distill import Origin, Recipe, Surroundings, distill

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.errors import OutputError, UsageError, VitnpError
from vitnp.io.decode import read_image
from vitnp.io.preprocess import normalize
from vitnp.io.resample import downscale

TOY = Recipe(steps=120, depth=2, batch=4, held_out=4, bfloat16=False, kept=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(photographs):
    return pictures_of([photographs])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher, pictures):
    """The folder of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    origin = Origin("toy_student", "CC0-1.0", crops=1000)
    distill(teacher, pictures, folder, TOY, origin=origin, around=Surroundings(log_steps=20))
    return folder


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(arguments):
    return main(["distill", *map(str, arguments)])


def toy_arguments(photographs, teacher_file, out, **options):
    options = {"depth": 2, "steps": 4, "batch": 4, "held-out": 4, "log-steps": 2, **options}
    return [
        photographs,
        "--teacher",
        teacher_file,
        "--out",
        out,
        "--quiet",
        *(x for k, v in options.items() for x in (f"--{k}", v)),
    ]


def test_it_learns(finished):
    *log, last = log_of(finished)
    assert [entry["step"] for entry in log] == [20, 40, 60, 80, 100, 120]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["cosine"] > log[0]["cosine"] + 0.1
    assert last["finished"] and last["step"] == 120
    assert sorted(file.name for file in finished.iterdir()) == ["log.jsonl", "student.safetensors"]


def test_held_out_cosine_is_of_the_saved_student(finished, teacher, pictures):
    """vitnp's own networks agree about photographs, whole ones, about as well as the log says of crops."""
    student = load_vit(finished / "student.safetensors")
    untrained = type(student)(student.config, torch_vit.to_numpy(torch_vit.initial_weights(student.config, 0)))

    def agreement(vit):
        cosines = []
        for picture in pictures:
            image = normalize(downscale(picture.read(), (224, 288)), student.config.mean, student.config.std)[None]
            a, b = vit(image)["key"], teacher(image)["key"]
            cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        return np.mean(cosines)

    said = log_of(finished)[-1]["held_out_cosine"]
    assert agreement(student) == pytest.approx(said, abs=0.1)
    assert agreement(student) > agreement(untrained) + 0.2


def test_the_file(finished, teacher):
    tensors, metadata = read_safetensors(finished / "student.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    crops = metadata.pop("crops")
    assert int(crops) == 1000 + log_of(finished)[-1]["crops"]
    assert metadata == {
        "name": "toy_student", "license": "CC0-1.0", "distilled_from": "toy_teacher",
        "img": "224", "patch": "32", "dim": "32", "depth": "2", "heads": "2", "norm_eps": "1e-06", "pos_embed": "exact",
        "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25",
    }  # fmt: skip
    student = load_vit(finished / "student.safetensors")
    assert student.config == torch_vit.student_config(teacher.config, 2)


def test_the_file_computes_what_was_trained(finished):
    student = load_vit(finished / "student.safetensors")
    images = np.random.default_rng(0).standard_normal((1, 3, 256, 320)).astype(np.float32)
    with torch.no_grad():
        weights = torch_vit.to_torch(student)
        states, key = torch_vit.stream(weights, student.config, torch.from_numpy(images))
        token = torch_vit.norm(weights, student.config, states[-1])
    got = student(images, ("key", "token"))
    assert np.abs(got["key"] - key[:, 1:].numpy()).max() < 1e-5
    assert np.abs(got["token"] - token[:, 1:].numpy()).max() < 1e-5


@pytest.mark.parametrize("parts", [(50,), (1, 79)])
def test_interruptions_change_nothing(finished, tmp_path, teacher, pictures, parts):
    for steps in (*parts, None):
        left = iter(range(steps or 1000))
        around = Surroundings(log_steps=20, workers=2, stop=lambda left=left: next(left, None) is None)
        result = distill(
            teacher, pictures, tmp_path, TOY, origin=Origin("toy_student", "CC0-1.0", crops=1000), around=around
        )
        assert (result is None) == (steps is not None) == (tmp_path / "state.pt").exists()
    one, other = (folder / "student.safetensors" for folder in (finished, tmp_path))
    assert one.read_bytes() == other.read_bytes()
    assert [entry["step"] for entry in log_of(tmp_path)] == [entry["step"] for entry in log_of(finished)]


def test_minutes_end_a_run(tmp_path, teacher, pictures):
    recipe = Recipe(minutes=0.01, depth=2, batch=4, held_out=0, optimizer="adamw")
    folder = tmp_path / "run"
    assert (
        distill(teacher, pictures, folder, recipe, around=Surroundings(log_steps=1)) == folder / "student.safetensors"
    )
    *log, last = log_of(folder)
    assert 0 < log[-1]["minutes"] < 0.2 and 0 <= log[0]["share"] < 1 and last["held_out_cosine"] is None


def test_on_from_a_student(finished, tmp_path, photographs, teacher_file, capsys):
    init = finished / "student.safetensors"
    assert run([*toy_arguments(photographs, teacher_file, tmp_path, init=init, pool=2), "--float32"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "student.safetensors")
    entry = log_of(tmp_path)[0]
    assert entry["cosine"] > 0.5 and entry["own"] > 0.5
    assert int(read_safetensors(tmp_path / "student.safetensors")[1]["crops"]) > int(read_safetensors(init)[1]["crops"])


def test_excluded_photographs_are_not_learnt_from(tmp_path, photographs, teacher_file, monkeypatch):
    known = tmp_path / "known"
    known.mkdir()
    for index in (2, 5):
        with Image.open(photographs / f"{index:02}.jpg") as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(known / f"x{index}.png")
    seen = []
    monkeypatch.setattr(module, "distill", lambda teacher, pictures, *rest, **options: seen.extend(pictures))
    run([*toy_arguments(photographs, teacher_file, tmp_path / "run"), "--exclude", known])
    assert [picture.name for picture in seen] == [f"{index:02}.jpg" for index in range(20) if index not in (2, 5)]


def test_score_is_that_of_the_evaluation(tmp_path, photographs, teacher_file, capsys):
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
    want = mean_scores(score_pairs(pairs, load_vit(tmp_path / "run" / "student.safetensors")))
    assert log_of(tmp_path / "run")[-1]["iou"] == pytest.approx(want.iou, rel=1e-4)
    assert f"{want.iou:.4f}" in capsys.readouterr().out


def test_ctrl_c_saves_and_leaves(tmp_path, photographs, teacher_file, monkeypatch):
    learn = module._Run._learn

    def interrupted(self, lesson, share):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, lesson, share)

    before = signal.getsignal(signal.SIGINT)
    arguments = toy_arguments(photographs, teacher_file, tmp_path, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_learn", interrupted)
        assert run(arguments) == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    assert run(arguments) == 0
    assert log_of(tmp_path)[-1]["step"] == 5


def test_another_recipe_is_refused(tmp_path, teacher, pictures):
    distill(teacher, pictures, tmp_path, TOY, around=Surroundings(stop=lambda: True))
    content = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(UsageError, match="began with another batch, seed"):
        distill(
            teacher, pictures, tmp_path, Recipe(steps=120, depth=2, batch=5, held_out=4, bfloat16=False, kept=3, seed=1)
        )
    with pytest.raises(UsageError, match="began with another photographs"):
        distill(teacher, pictures[1:], tmp_path, TOY)
    assert (tmp_path / "state.pt").read_bytes() == content
    (tmp_path / "state.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"state\.pt is damaged"):
        distill(teacher, pictures, tmp_path, TOY)


def test_a_finished_run_is_left_alone(finished, teacher, pictures):
    with pytest.raises(OutputError, match="is there already"):
        distill(teacher, pictures, finished, TOY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "3 blocks don't divide the 4"),
        ({"batch": 17}, "20 photographs are too few for a batch of 17 beside 4"),
        ({"steps": None}, "give one of them"),
        ({"minutes": 1.0}, "give one of them"),
    ],
)
def test_what_cannot_work(tmp_path, teacher, pictures, change, message):
    from dataclasses import replace

    with pytest.raises(UsageError, match=message):
        distill(teacher, pictures, tmp_path / "run", replace(TOY, **change))
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_no_student(tmp_path, teacher, pictures):
    with pytest.raises(UsageError, match="is no student of 2 blocks"):
        distill(teacher, pictures, tmp_path / "run", TOY, init=teacher)


def test_a_loss_that_explodes_is_no_student(tmp_path, teacher, pictures):
    recipe = Recipe(steps=60, depth=2, batch=4, held_out=4, rate=1e30, optimizer="adamw")
    with pytest.raises(VitnpError, match="no number"):
        distill(teacher, pictures, tmp_path, recipe, around=Surroundings(log_steps=10))
    assert not (tmp_path / "student.safetensors").exists()


def test_without_torch_one_sentence(tmp_path, photographs, teacher_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"training needs torch: `pip install '\.\[train\]'`"):
        run(toy_arguments(photographs, teacher_file, tmp_path / "run"))
