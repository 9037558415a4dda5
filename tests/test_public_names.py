"""Type checkers and editors see the public names that ``import vitnp`` provides."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

import vitnp
import vitnp.errors

SOURCE = pathlib.Path(vitnp.__file__)

PROGRAM = """
import vitnp
reveal_type(vitnp.segment_image("a.jpg"))
reveal_type(vitnp.segment_image("a.jpg").mask)
reveal_type(vitnp.Segmenter(n_classes=2).fit(["a.jpg"]))
try:
    vitnp.load_vit("nonsense", heads=3).config.depth
except vitnp.ImageError as error:
    reveal_type(error)
vitnp.segment_image("a.jpg", short_side="large")
"""


def typed_names() -> dict[str, str]:
    """Return the public names that are imported for type checkers, with their modules."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            assert alias.asname == alias.name  # `import x as x` re-exports x
            names[alias.name] = node.module
    return names


def test_names_for_type_checkers_are_the_public_names():
    assert typed_names() == vitnp._PUBLIC
    assert set(vitnp.__all__) == {"__version__", *vitnp._PUBLIC}


def test_every_error_is_public():
    errors = {name for name, value in vars(vitnp.errors).items() if isinstance(value, type)}
    assert errors <= set(vitnp.__all__)


@pytest.mark.slow(reason="runs mypy")
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_knows_the_public_names(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(
        f"[mypy]\nmypy_path = {SOURCE.parent.parent}\nfollow_imports = silent\nignore_missing_imports = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", configuration, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([*command, tmp_path / "program.py"], capture_output=True, text=True, cwd=tmp_path)
    revealed = [line.split('"')[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert revealed[0] == "vitnp.result.Segmentation", done.stdout + done.stderr
    assert "ndarray" in revealed[1]
    assert revealed[2:] == ["vitnp.segmenter.Segmenter", "vitnp.errors.ImageError"]
    assert done.stdout.count(": error:") == 1 and 'Argument "short_side" to "segment_image"' in done.stdout
