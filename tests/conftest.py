"""What the tests share: where the optional test data lies, the two networks they run, a CuPy without a GPU and with one."""

from __future__ import annotations

import os
import pathlib
import warnings

import pytest


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder with photographs, masks and weights that can't be part of the checkout; it stands beside it."""
    folder = pathlib.Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        if os.environ.get("VITNP_REQUIRE_DATA") == "1":
            pytest.fail(f"VITNP_REQUIRE_DATA=1, but there is no folder {folder}")
        pytest.skip("the test data beside the checkout is absent")
    return folder


@pytest.fixture(scope="session")
def vit_tiny(shared: pathlib.Path):
    """A trained ViT-Ti/16 (supervised)."""
    from vitnp.checkpoints.load import load_vit

    return load_vit(shared / "weights" / "vit_tiny_patch16_224_augreg.safetensors")


@pytest.fixture(scope="session")
def builtin():
    """The built-in checkpoint."""
    from vitnp.checkpoints.load import load_vit

    return load_vit("auto")


@pytest.fixture(scope="session")
def photograph() -> pathlib.Path:
    """The photograph that the checkout carries."""
    return pathlib.Path(__file__).parent / "photographs" / "coffee.jpg"


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request):
    """CuPy: one made of NumPy, whose kernels run on the CPU; under ``pytest -m gpu`` the real one.

    The emulator checks every access, unless a module says ``EMULATOR = "fast"``.
    """
    if request.param == "emulated":
        import fake_cupy

        with fake_cupy.installed(getattr(request.module, "EMULATOR", "check")) as fake:
            yield fake
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import's are not ours to mend
        from vitnp.kernels.cuda import loader

        trouble = loader.find_trouble()
    if trouble:
        pytest.skip(trouble)
    yield loader.require_cupy()
