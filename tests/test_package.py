"""The package as such: what importing it costs, its examples, its commands."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import vitnp.kernels
import vitnp.weights

import vitnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(([] if package == "vitnp" else ["vitnp"]) + [*path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for package in ("vitnp", "kernels", "weights")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py" and "train" not in path.parts
)

# Folders of the checkout that are installed, and those that only the source distribution holds.
INSTALLED = {"vitnp": "vitnp", "kernels": "vitnp/kernels", "weights": "vitnp/weights"}
NOT_INSTALLED = ("tests", "bench", "examples", "docs", "scripts")
TOP_LEVEL = ("*.md", "*.cff", "*.cfg", "*.toml", "*.yml", "*.py", "LICENSE", "MANIFEST.in")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = python(
        "import sys, vitnp; print([m for m in ('numpy', 'scipy', 'numba', 'cupy', 'torch', 'PIL') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_segmenting_loads_no_torch_numba_or_cupy():
    heavy = python(
        "import sys, vitnp.segment, vitnp.export.per_image, vitnp.checkpoints.load;"
        "print([m for m in ('numba', 'cupy', 'torch') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_public_names_resolve():
    for name in vitnp.__all__:
        assert getattr(vitnp, name) is not None
    assert set(vitnp.__all__) <= set(dir(vitnp))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vitnp.nonsense


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    import numpy as np

    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("command", ["vitnp", "vitnp.segment", "vitnp.features", "vitnp.evaluate", "vitnp.weights"])
def test_commands_tell_their_version_and_help(command):
    run = [sys.executable, "-m", command]
    version = subprocess.run([*run, "--version"], check=True, capture_output=True, text=True).stdout
    assert version.strip() == f"vitnp {vitnp.__version__}"
    assert "usage:" in subprocess.run([*run, "--help"], check=True, capture_output=True, text=True).stdout


def test_bare_package_lists_its_commands():
    text = subprocess.run([sys.executable, "-m", "vitnp"], check=True, capture_output=True, text=True).stdout
    assert all(f"vitnp {command}" in text for command in ("segment", "features", "evaluate", "weights"))


def test_help_of_segment_fits_a_screen():
    text = subprocess.run(
        [sys.executable, "-m", "vitnp.segment", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={"COLUMNS": "80"},
    ).stdout
    lines = text.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80


# --- what is distributed ----------------------------------------------------------------------------------------------


def checkout_files(folder: str) -> set[str]:
    """Names of the files below a folder of the checkout, relative to it."""
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def top_level_files() -> set[str]:
    return {path.name for pattern in TOP_LEVEL for path in ROOT.glob(pattern)}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function that builds a "wheel" or "sdist" from a copy of the checkout, without a network."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in (*INSTALLED, *NOT_INSTALLED):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in top_level_files():
        shutil.copy(ROOT / name, copy)

    def build(kind: str) -> pathlib.Path:
        code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return next((copy / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz"))

    return build


def test_wheel_holds_every_file_of_the_package(build):
    with zipfile.ZipFile(build("wheel")) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {f"{target}/{name}" for folder, target in INSTALLED.items() for name in checkout_files(folder)}


def test_sdist_holds_the_checkout(build):
    with tarfile.open(build("sdist")) as sdist:
        held = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    expected = {f"{folder}/{name}" for folder in (*INSTALLED, *NOT_INSTALLED) for name in checkout_files(folder)}
    assert expected | top_level_files() <= held
