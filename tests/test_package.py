"""The package as such: what importing it costs, its examples, its commands."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import subprocess
import sys

import pytest
import vitnp.kernels
import vitnp.weights

import vitnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(([] if room == "vitnp" else ["vitnp"]) + [*path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for room in ("vitnp", "kernels", "weights")
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__main__.py" and "train" not in path.parts
)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = python(
        "import sys, vitnp; print([m for m in ('numpy', 'scipy', 'numba', 'cupy', 'torch', 'PIL') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_segmenting_loads_no_torch_numba_or_cupy():
    code = "import sys, vitnp.segment, vitnp.export.per_image, vitnp.checkpoints.load; print([m for m in ('numba', 'cupy', 'torch') if m in sys.modules])"
    assert python(code) == "[]"


def test_public_names_resolve():
    for name in vitnp.__all__:
        assert getattr(vitnp, name) is not None
    assert set(vitnp.__all__) <= set(dir(vitnp))
    with pytest.raises(AttributeError, match="nonsense"):
        vitnp.nonsense


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
    assert len(lines) <= 52 and max(map(len, lines)) <= 80
