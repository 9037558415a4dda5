"""`--device cuda` from the pixels to the mask, against the CPU: emulated, on a CuPy made of NumPy, and under
``pytest -m gpu`` on the real one; what is said where there is no GPU."""

from __future__ import annotations

import gc
import json
import pathlib
import sys
import types
import weakref

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import save_file
from vitnp.kernels.threads import pool

from vitnp import kernels
from vitnp.cli.features import main as features_command
from vitnp.cli.segment import main as segment_command
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.errors import DeviceError, UsageError
from vitnp.export.per_image import segment_files
from vitnp.features import batching
from vitnp.features import extract as extraction
from vitnp.features.extract import extract
from vitnp.features.spec import FeatureSpec
from vitnp.features.stream import stream
from vitnp.io.find import find_photographs
from vitnp.method import collection_level, image_level
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline, segment_image
from vitnp.segmenter import Segmenter
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

# Of keys, relative to the longest: what is promised.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.6e-2}
EMULATOR = "fast"  # every kernel has been checked by itself
CONFIG = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))


def network(config: ViTConfig = CONFIG, seed: int = 3) -> ViT:
    weights = random_vit.random_weights(config, seed=seed, hidden=128, class_position=True, dtype=np.float32)
    return ViT(config, weights, name="small")


@pytest.fixture(scope="module")
def vit() -> ViT:
    return network()


def scene(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A disc on another color, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    inside = ((y / size[0] - rng.uniform(0.4, 0.6)) / 0.3) ** 2 + (
        (x / size[1] - rng.uniform(0.4, 0.6)) / 0.28
    ) ** 2 < 1
    colors = np.where(inside[..., None], [210, 80, 40], [60, 110, 160])
    return (colors + rng.normal(0, 10, (*size, 3))).clip(0, 255).astype(np.uint8)


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(kernels.to_host(found) - wanted).max() / np.abs(wanted).max())


# --- Which device ----------------------------------------------------------------------------------------------------


class Missing(Exception):
    """What a CuPy without CUDA's headers raises."""


def cupy_without_headers() -> types.SimpleNamespace:
    def module(**_):
        raise Missing('gelu.cu(12): catastrophic error: cannot open source file "cuda_fp16.h"')

    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=Missing)
    compiler = types.SimpleNamespace(CompileException=Missing)
    device = types.SimpleNamespace(id=0, compute_capability="90")
    cuda = types.SimpleNamespace(runtime=runtime, compiler=compiler, Device=lambda: device)
    return types.SimpleNamespace(cuda=cuda, RawModule=module)


MACHINES = {
    "no driver": (None, None, r"no NVIDIA driver.* --device cpu"),
    "no CuPy": (12040, None, r"CuPy isn't installed; run: pip install 'vitnp\[cuda12\]'"),
    "no CuPy, CUDA 13": (13000, None, r"run: pip install 'vitnp\[cuda13\]'"),
    "no headers": (
        12040,
        cupy_without_headers(),
        r"header cuda_fp16.h is missing.*; run: pip install 'vitnp\[cuda12\]'",
    ),
}


@pytest.fixture(params=list(MACHINES))
def machine(request, monkeypatch):
    """A machine where something is missing; gives what has to be said."""
    from vitnp.kernels.cuda import loader

    driver, cupy, words = MACHINES[request.param]
    memoised = (loader.find_trouble, loader._compiled, loader._module)
    monkeypatch.setattr(loader, "driver_version", lambda: driver)
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: the import fails
    for function in memoised:
        function.cache_clear()
    yield words
    for function in memoised:
        function.cache_clear()


def test_what_is_missing_is_said_in_one_sentence(machine, vit):
    with pytest.raises(DeviceError, match=machine) as caught:
        vit.to(device="cuda")
    assert "\n" not in str(caught.value)


def test_the_command_says_it_before_any_work(machine, tmp_path, model, capsys):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    with pytest.raises(DeviceError, match=machine):
        segment_command([str(tmp_path / "a.png"), "--model", str(model), "--device", "cuda"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_auto_goes_on_with_the_cpu_and_says_nothing(machine, tmp_path, model, capsys):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    assert kernels.choose_device("auto") == "cpu"
    options = ["--model", str(model), "--size", "32", "--collection", "none", "--json"]
    assert segment_command([str(tmp_path / "a.png"), *options, "--device", "auto"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["device"].values()) == {"cpu"}
    assert not any(word in err for word in ("error", "GPU", "CuPy", "CUDA"))


def test_other_devices_are_refused(vit):
    with pytest.raises(UsageError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        vit.to(device="tpu")


def test_auto_takes_the_gpu(cupy, vit):
    assert kernels.choose_device() == "cuda" and kernels.choose_device("cpu") == "cpu"
    assert (
        vit.to(device="auto").device == "cuda" and vit.to(device="auto").to(device="cpu").device == vit.device == "cpu"
    )
    assert kernels.name_of("cuda") == "cuda:0" and kernels.name_of("cpu") == "cpu"


def test_arrays_find_their_kernels_and_functions(cupy):
    here, there = np.arange(3.0), cupy.arange(3.0)
    assert kernels.device_of(here) == "cpu" and kernels.device_of(there) == "cuda"
    assert kernels.array_module(here) is np and kernels.array_module(there) is cupy
    assert kernels.for_array(here) is kernels.for_device("cpu") and kernels.for_array(there) is kernels.for_device(
        "cuda"
    )
    assert kernels.to_host(here) is here and kernels.to_device(here, "cpu") is here
    moved = kernels.to_device(here, "cuda")
    assert kernels.device_of(moved) == "cuda" and kernels.device_of(kernels.to_device(moved, "cpu")) == "cpu"
    np.testing.assert_array_equal(kernels.to_host(moved), here)


# --- The network -----------------------------------------------------------------------------------------------------

SHAPES = {
    "plain": CONFIG,
    "registers, gate, scale": ViTConfig(
        width=64, depth=2, heads=1, patch=8, grid=(4, 4), registers=3, swiglu=True, layerscale=True
    ),
    "two odd heads": ViTConfig(width=96, depth=3, heads=2, patch=8, grid=(3, 4)),
    "rotary": ViTConfig(
        width=128, depth=2, heads=2, patch=8, grid=(4, 4), registers=4, swiglu=True, layerscale=True, rotary=True
    ),
}


@pytest.mark.slow(reason="networks on the emulator")
@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_features_are_the_cpu_s(cupy, shape, precision):
    if precision not in kernels.for_device("cuda").precisions():
        pytest.skip(f"this GPU has no {precision}")
    vit = network(SHAPES[shape])
    there = vit.to(device="cuda", precision=precision)
    images = np.random.default_rng(0).standard_normal((3, 3, 24, 40)).astype(np.float32)
    for want, options in (
        (("key", "attention", "cls", "cls_state"), {}),
        (("query", "key", "value", "token", "register", "cls"), {"layer": 0}),
        (("key",), {"stride": 4}),
        *([(("key_rotated", "cls"), {"stride": 4})] if SHAPES[shape].rotary else []),
    ):
        wanted, found = vit(images, want, **options), there(images, want, **options)
        for name in (name for name in want if wanted[name].size):
            assert kernels.device_of(found[name]) == "cuda" and found[name].dtype == np.float32
            assert found[name].shape == wanted[name].shape
            assert off(found[name], wanted[name]) < TOLERANCE[precision] * (1 if name.startswith("key") else 4), name


@pytest.mark.parametrize(
    "precision, needed, advice", [("fp32", "26.9", "--precision fp16, a smaller"), ("fp16", "13.4", "a smaller")]
)
def test_a_network_larger_than_the_gpu_is_refused_with_the_number(cupy, vit, monkeypatch, precision, needed, advice):
    k = kernels.for_device("cuda")
    monkeypatch.setattr(k, "total_bytes", lambda: 8 * 10**9, raising=False)
    large = np.broadcast_to(np.float32(0), (6_716_000_000,))  # as many numbers as DINOv3's 7B; takes no memory
    there = ViT(vit.config, {**vit.weights, "blocks.0.large": large}, device="cuda", precision=precision)
    message = rf"take {needed} GB in {precision}, but the GPU has 8.0 GB of memory; choose {advice} network"
    with pytest.raises(DeviceError, match=message):
        there(np.zeros((1, 3, 16, 16), np.float32))


def test_images_may_be_on_the_gpu_already(cupy, vit):
    images = np.random.default_rng(0).standard_normal((1, 3, 16, 24)).astype(np.float32)
    there = vit.to(device="cuda")
    np.testing.assert_array_equal(
        kernels.to_host(there(cupy.asarray(images))["key"]), kernels.to_host(there(images)["key"])
    )
    found = vit(cupy.asarray(images))["key"]
    assert kernels.device_of(found) == "cpu"
    np.testing.assert_array_equal(found, vit(images)["key"])


@pytest.mark.parametrize("shape", ["plain", "rotary"])
def test_cls_of_regions(cupy, shape):
    vit, images = network(SHAPES[shape]), np.random.default_rng(1).standard_normal((1, 3, 24, 32)).astype(np.float32)
    regions = np.random.default_rng(2).random((3, 12)) < 0.5
    regions[2] = False
    for place, tolerance in ((vit, 0), (vit.to(device="cuda", precision="fp32"), 1e-5), (vit.to(device="cuda"), 4e-3)):
        found = place(images, ("cls_state", "key", "value"))
        cls = place.region_cls(found["cls_state"][0], found["key"][0], found["value"][0], regions, size=(24, 32))
        assert isinstance(cls, np.ndarray) and kernels.device_of(cls) == "cpu"
        if place is vit:
            wanted = cls
        assert off(cls, wanted) <= tolerance


def test_precision_follows_the_device_unless_it_was_chosen(cupy, vit):
    there = vit.to(device="cuda")
    assert (vit.precision, there.precision, there.to(device="cpu").precision) == ("fp32", "fp16", "fp32")
    assert (
        vit.to(precision="fp32").to(device="cuda").precision == "fp32"
        and there.to(precision="tf32").to(precision="auto").precision == "fp16"
    )
    assert (vit.numerics, there.numerics, there.to(precision="fp32").numerics) == ("fp32", "cuda fp16", "cuda fp32")
    assert FeatureSpec.of(vit).name != FeatureSpec.of(there).name


def test_a_precision_that_the_gpu_lacks_is_refused_with_those_that_it_has(cupy, vit):
    there = ", ".join(kernels.for_device("cuda").precisions())
    with pytest.raises(UsageError, match=f"no precision 'fp8' on this machine's GPU; choose among auto, {there}"):
        vit.to(device="cuda", precision="fp8")


def test_reduced_products_end_with_the_pass(cupy, vit):
    settings = cupy._core._routines_linalg
    before = settings.get_compute_type(np.float32)
    vit.to(device="cuda", precision="tf32")(np.zeros((1, 3, 16, 16), np.float32))
    assert settings.get_compute_type(np.float32) == before


# --- One photograph --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", ["solver", "crf", "guided", "none"])
def test_masks_are_the_cpu_s(cupy, vit, refine):
    rgb, options = scene(1, (24, 32)), {"short_side": 32, "refine": refine, "collection": None}
    wanted, found = (
        segment_image(rgb, vit, **options),
        segment_image(rgb, vit.to(device="cuda", precision="fp32"), **options),
    )
    assert (wanted.device, found.device) == ("cpu", "cuda:0")
    for name in ("soft", "score", "keys", "mask"):
        array = getattr(found, name)
        assert kernels.device_of(array) == "cpu" and array.dtype == getattr(wanted, name).dtype
    assert off(found.keys, wanted.keys) < TOLERANCE["fp32"]
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-4)
    assert found.confidence == pytest.approx(wanted.confidence, abs=1e-5)
    assert (found.mask != wanted.mask).mean() <= 0.002
    assert np.abs(found.soft.astype(int) - wanted.soft).max() <= 0.01 * 65535


@pytest.mark.slow(reason="a photograph on the emulator")
def test_half_precision_finds_the_same_object(cupy, vit):
    rgb = scene(2)
    wanted, found = (
        segment_image(rgb, place, short_side=40, collection=None) for place in (vit, vit.to(device="cuda"))
    )
    assert off(found.keys, wanted.keys) < TOLERANCE["fp16"]
    assert (found.mask != wanted.mask).mean() < 0.02
    assert found.parameters["precision"] == "cuda fp16"


def test_the_same_photograph_gives_the_same_bits(cupy, vit):
    rgb, there = scene(3, (24, 32)), vit.to(device="cuda")
    one, other = (segment_image(rgb, there, short_side=32, collection=None) for _ in range(2))
    for name in ("soft", "score", "keys"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_nothing_large_comes_back_but_what_was_asked_for(cupy, vit, monkeypatch):
    taken: list[int] = []
    fetch = cupy.asnumpy
    monkeypatch.setattr(cupy, "asnumpy", lambda array: taken.append(array.nbytes) or fetch(array))
    result = segment_image(scene(4, (96, 128)), vit.to(device="cuda"), short_side=64, refine="guided", collection=None)
    asked_for = sorted([result.soft.nbytes, result.keys.nbytes, 64 * 88 * 3])  # the last for the photograph's seed
    assert sorted(taken)[-3:] == asked_for
    # Centroids, sums over clusters, scores of patches.
    assert max(sorted(taken)[:-3]) <= 6 * 64 * 8


def test_a_photograph_beyond_the_memory_is_refused(cupy, vit, monkeypatch):
    def full(*_, **__):
        raise MemoryError("out of memory allocating 9 bytes")

    monkeypatch.setattr("vitnp.pipeline.extract_batch", full)
    with pytest.raises(DeviceError, match="the GPU's memory doesn't hold this photograph; .*--device cpu"):
        segment_image(scene(), vit.to(device="cuda"), short_side=32, collection=None)
    with pytest.raises(MemoryError):
        segment_image(scene(), vit, short_side=32, collection=None)


# --- k-means ---------------------------------------------------------------------------------------------------------


def blobs(rows: int = 700, width: int = 12, clusters: int = 4, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(5)
    centers = rng.normal(0, 1, (clusters, width))
    return (centers[rng.integers(clusters, size=rows)] + rng.normal(0, 0.1, (rows, width))).astype(dtype)


@pytest.mark.slow(reason="whole runs on the emulator")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("form", ["float32", "float16", "float64", "blocks", "beyond memory", "on the GPU"])
def test_kmeans_finds_the_cpu_s_clusters(cupy, metric, form, monkeypatch):
    x = blobs(dtype=form if form.startswith("float") else np.float32)
    rows = {"blocks": [x[:300], x[300:301], x[301:]], "on the GPU": cupy.asarray(x)}.get(form, x)
    if form == "beyond memory":
        monkeypatch.setattr(kernels.for_device("cuda"), "free_bytes", lambda: 0)
    wanted = KMeans(4, metric=metric, random_state=1, n_init=2).fit(x)
    found = KMeans(4, metric=metric, random_state=1, n_init=2, device="cuda").fit(rows)
    np.testing.assert_array_equal(found.labels_, wanted.labels_)
    np.testing.assert_array_equal(found.counts_, wanted.counts_)
    np.testing.assert_allclose(found.cluster_centers_, wanted.cluster_centers_, atol=2e-4)
    assert found.inertia_ == pytest.approx(wanted.inertia_, rel=2e-3)
    np.testing.assert_array_equal(found.predict(rows), found.labels_)
    assert all(
        isinstance(part, np.ndarray) and kernels.device_of(part) == "cpu"
        for part in (found.labels_, found.cluster_centers_)
    )


def test_kmeans_on_the_gpu_fills_empty_clusters_and_names_bad_rows(cupy):
    few = np.repeat(np.eye(3, 8, dtype=np.float32), 5, axis=0)
    wanted, found = (KMeans(4, random_state=2, device=device).fit(few) for device in ("cpu", "cuda"))
    np.testing.assert_array_equal(found.labels_, wanted.labels_)
    np.testing.assert_array_equal(found.counts_, wanted.counts_)
    bad = blobs()
    bad[123, 4] = np.nan
    with pytest.raises(UsageError, match="row 123 of the features is not finite"):
        KMeans(2, device="cuda").fit(bad)


def test_kmeans_says_what_a_gpu_can_t_do(cupy):
    x = blobs()
    with pytest.raises(UsageError, match="n_clusters must be at most 256 on a GPU, got 257"):
        KMeans(257, device="cuda").fit(x)
    with pytest.raises(UsageError, match="omit the mapper"):
        KMeans(2, device="cuda").fit(x, mapper=map)
    with pytest.raises(UsageError, match="choose device='cuda'"):
        KMeans(2).fit(cupy.asarray(x))


def test_spherical_kmeans_on_the_gpu(cupy):
    unit = kernels.for_device("reference").normalize_rows(blobs())
    wanted = spherical_kmeans(unit, 4, np.random.default_rng(3), starts=2)
    found = spherical_kmeans(cupy.asarray(unit), 4, np.random.default_rng(3), starts=2)
    np.testing.assert_array_equal(kernels.to_host(found.labels), wanted.labels)
    np.testing.assert_allclose(found.centroids, wanted.centroids, atol=1e-5)


# --- Many photographs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [scene(seed, (24, 32) if seed % 3 else (32, 24)) for seed in range(5)]


@pytest.fixture(scope="module")
def fitted(cupy, vit, photographs) -> dict[str, Segmenter]:
    """The same photographs fitted on both devices, at the same precision."""
    level = collection_level.CollectionLevelConfig(clusters=(2,), starts=1, max_iterations=4)
    options = {
        "short_side": 32, "refine": "guided", "n_categories": 2, "regions": "components", "n_threads": 2,
        "image_level": image_level.ImageLevelConfig(clusters=(2, 3), starts=1, max_iterations=4),
        "dataset_level": level, "category_level": level,
    }  # fmt: skip
    places = {"cpu": vit, "cuda": vit.to(device="cuda", precision="fp32")}
    return {name: Segmenter(place, 2, **options).fit(photographs) for name, place in places.items()}


def test_a_set_is_fitted_as_on_the_cpu(fitted):
    wanted, found = fitted["cpu"], fitted["cuda"]
    np.testing.assert_allclose(found.confidences, wanted.confidences, atol=1e-3)
    np.testing.assert_array_equal(found.categories, wanted.categories)
    agree = [(mine == theirs).mean() for mine, theirs in zip(found.masks, wanted.masks)]
    assert np.mean(agree) > 0.998
    assert found.collection.digest != wanted.collection.digest  # made from other bits


@pytest.mark.parametrize("regions", ["components", "split"])
def test_a_fitted_collection_judges_a_photograph_on_the_gpu(fitted, vit, regions, tmp_path):
    path = tmp_path / "set.safetensors"
    fitted["cpu"].save(path)
    rgb = scene(11, (24, 32))
    places = vit, vit.to(device="cuda", precision="fp32")
    wanted, found = (Segmenter.load(path, place, regions=regions).predict(rgb) for place in places)
    assert (found.labels == wanted.labels).mean() > 0.998 and found.category == wanted.category
    for mine, theirs in zip(found.levels, wanted.levels):
        np.testing.assert_allclose(mine, theirs, atol=2e-3)


@pytest.mark.parametrize("batch", [None, 2])
def test_batches_that_don_t_fit_are_halved(cupy, vit, photographs, monkeypatch, batch):
    there, tried = vit.to(device="cuda", precision="fp32"), []
    spec = FeatureSpec.of(there, short_side=32, regions=False)
    forward = extraction._forward

    def in_a_small_memory(images, *further):
        tried.append(len(images))
        if len(images) > 1:
            raise MemoryError("out of memory allocating 9 bytes")
        return forward(images, *further)

    monkeypatch.setattr(extraction, "_forward", in_a_small_memory)
    found = {one.index: one.features for one in stream(photographs, there, spec, batch=batch)}
    assert tried[0] > 1 and set(tried[tried.index(1) :]) == {1}
    for index, rgb in enumerate(photographs):
        wanted = extract(rgb, vit, short_side=32)
        assert isinstance(found[index].keys, np.ndarray) and kernels.device_of(found[index].keys) == "cpu"
        assert found[index].digest == wanted.digest and off(found[index].keys.astype(np.float32), wanted.keys) < 1e-3


def test_one_photograph_that_doesn_t_fit_ends_the_run(cupy, vit, photographs, monkeypatch):
    there = vit.to(device="cuda")

    def full(*_):
        raise MemoryError("out of memory allocating 9 bytes")

    monkeypatch.setattr(extraction, "_forward", full)
    with pytest.raises(DeviceError, match="memory doesn't hold one photograph in this network; .*--device cpu"):
        list(stream(photographs, there, FeatureSpec.of(there, short_side=40)))


def test_batches_by_free_memory(cupy, vit, monkeypatch):
    there, k = vit.to(device="cuda"), kernels.for_device("cuda")
    sizes = []
    for free in (0, 20_000_000, 2**40):
        monkeypatch.setattr(k, "free_bytes", lambda free=free: free)
        sizes.append(batching.BatchSizer(there).of(patches=100))
    assert sizes[0] == 1 < sizes[1] < sizes[2] == 32
    assert batching.BatchSizer(there, 5).of(patches=100) == 5


# --- The commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory, vit) -> pathlib.Path:
    """The small network as a checkpoint."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(dict(vit.weights), path)
    return path


@pytest.fixture
def folder(tmp_path, photographs) -> pathlib.Path:
    for index, rgb in enumerate(photographs[:3]):
        path = tmp_path / "photographs" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(path)
    return path.parent


def told(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow(reason="collections on the emulator")
@pytest.mark.parametrize("levels", ["each", "all"])
def test_segment_command_says_where_each_stage_ran(cupy, model, folder, tmp_path, capsys, levels):
    options = ["--model", str(model), "--size", "32", "--refine", "none", "--levels", levels, "--json", "--quiet"]
    masks = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        more = ["--batch", "3"]
        assert (
            segment_command(
                [str(folder), "--out", str(out), *options, *more, "--device", device, "--precision", "fp32"]
            )
            == 0
        )
        name = "cuda:0" if device == "cuda" else "cpu"
        for line in told(capsys):
            stages = {stage: name if stage in ("network", "cluster", "refine") else "cpu" for stage in line["seconds"]}
            assert line["device"] == stages and {"decode", "cluster", "refine", "write"} <= set(stages)
        masks[device] = [np.asarray(Image.open(path)) for path in sorted(out.glob("*_mask.png"))]
    assert len(masks["cuda"]) == 3
    assert np.mean([(mine == theirs).mean() for mine, theirs in zip(masks["cuda"], masks["cpu"])]) > 0.998


@pytest.mark.slow(reason="a collection on the emulator")
@pytest.mark.parametrize("batch", [None, 2])
def test_photographs_one_by_one_go_through_the_network_together(cupy, vit, photographs, tmp_path, monkeypatch, batch):
    """Of two sizes in turn, a broken one among them: outcomes in order, the same as alone."""
    there, together = vit.to(device="cuda", precision="fp32"), []
    for index in range(7):
        rgb = photographs[index % len(photographs)][: 64 if index % 2 else 48, :64]
        Image.fromarray(np.roll(rgb, index, axis=1)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    found = find_photographs([tmp_path])
    stems = [tmp_path / "out" / photograph.path.stem for photograph in found]
    features = ImagePipeline.extract

    def counted(method, group):
        together.append(len(group))
        if len(group) > 2:
            raise MemoryError("out of memory allocating 9 bytes")
        return features(method, group)

    monkeypatch.setattr(ImagePipeline, "extract", counted)
    options = {"n_threads": 2, "batch": batch, "collection": None, "settings": Settings(short_side=32, refine="none")}
    outcomes = list(segment_files(found, stems, there, ["mask"], **options))
    assert [outcome.photograph.stem for outcome in outcomes] == list("0123456")
    assert [outcome.status for outcome in outcomes] == ["done"] * 3 + ["failed"] + ["done"] * 3
    # Four of one size, two of the other; four at once don't fit.
    assert sorted(together) == {None: [2, 2, 2, 4], 2: [2, 2, 2]}[batch]
    for outcome in outcomes[:2] + outcomes[6:]:
        assert set(outcome.facts.seconds) == {"decode", "network", "cluster", "refine", "write"}
        alone = segment_image(outcome.photograph, there, short_side=32, refine="none", collection=None).mask
        assert (np.asarray(Image.open(outcome.outputs["mask"])) > 0).tolist() == alone.tolist()
    again = list(segment_files(found, stems, there, ["mask"], **options))
    assert [outcome.status for outcome in again] == ["skipped"] * 3 + ["failed"] + ["skipped"] * 3


@pytest.mark.slow(reason="photographs on the emulator")
def test_finished_photographs_leave_the_memory(cupy, vit, photographs, tmp_path, monkeypatch):
    for index in range(6):
        Image.fromarray(np.roll(photographs[0][:48, :64], index, axis=1)).save(tmp_path / f"{index}.png")
    found = find_photographs([tmp_path])
    stems = [tmp_path / "out" / photograph.path.stem for photograph in found]
    segment, decoded = ImagePipeline.segment_batch, []

    def recorded(pipeline, images, *others):
        decoded.extend(map(weakref.ref, images))
        return segment(pipeline, images, *others)

    monkeypatch.setattr(ImagePipeline, "segment_batch", recorded)
    settings = Settings(short_side=32, refine="none")
    outcomes = segment_files(found, stems, vit.to(device="cuda"), ["mask"], batch=1, collection=None, settings=settings)
    for _ in found:  # the generator, and what it keeps, is still alive after the last outcome
        assert next(outcomes).status == "done"
    gc.collect()
    assert len(decoded) == 6 and sum(one() is not None for one in decoded) <= 1
    outcomes.close()


@pytest.mark.slow(reason="photographs on the emulator")
def test_large_photographs_go_by_themselves(cupy, vit, photographs, tmp_path, monkeypatch):
    for index in range(3):
        Image.fromarray(photographs[index][:48, : 64 if index == 1 else 48]).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(pool, "LARGE_IMAGE_PIXELS", 48 * 50)
    sizes, features = [], ImagePipeline.extract
    monkeypatch.setattr(
        ImagePipeline, "extract", lambda method, group: sizes.append(len(group)) or features(method, group)
    )
    found = find_photographs([tmp_path])
    stems = [tmp_path / "out" / photograph.path.stem for photograph in found]
    settings = Settings(short_side=32, refine="none")
    outcomes = segment_files(
        found, stems, vit.to(device="cuda"), ["mask"], n_threads=2, settings=settings, collection=None
    )
    assert [(outcome.photograph.stem, outcome.status) for outcome in outcomes] == [
        ("0", "done"),
        ("1", "done"),
        ("2", "done"),
    ]
    assert sorted(sizes) == [1, 2]


def test_features_command(cupy, model, folder, tmp_path, capsys):
    options = ["--model", str(model), "--size", "40", "--json", "--quiet", "--dtype", "float32", "--precision", "fp32"]
    for device in ("cpu", "cuda"):
        assert (
            features_command(
                [str(folder), "--out", str(tmp_path / device), *options, "--device", device, "--batch", "2"]
            )
            == 0
        )
        name = "cuda:0" if device == "cuda" else "cpu"
        assert all(line["device"] == {"decode": "cpu", "network": name, "write": "cpu"} for line in told(capsys))
    for path in sorted((tmp_path / "cpu").glob("*.npz")):
        with np.load(path) as wanted, np.load(tmp_path / "cuda" / path.name) as found:
            for array in ("keys", "attention", "cls"):
                assert off(found[array], wanted[array]) < 2e-5


@pytest.mark.slow(reason="a network, pictures and masks on the emulator")
def test_pictures_and_regions_of_features(cupy, model, folder, tmp_path):
    options = ["--model", str(model), "--short-side", "40", "--quiet", "--precision", "fp32"]
    for device in ("cpu", "cuda"):
        out = ["--out", str(tmp_path / device), "--device", device]
        assert features_command([str(folder), *out, *options, "--save", "pca,attention,maps", "--foreground"]) == 0
        assert features_command([str(folder), *out, *options, "--mask", "--collection", "none"]) == 0
    names = [path.name for path in sorted((tmp_path / "cpu").glob("*.npz"))]
    assert len(names) == 4
    for name in names:
        with np.load(tmp_path / "cpu" / name) as wanted, np.load(tmp_path / "cuda" / name) as found:
            arrays = ("cls", "key") if name == "regions.npz" else ("attention", "attention_heads")
            for array in arrays:
                assert found[array].shape == wanted[array].shape and off(found[array], wanted[array]) < 2e-2
    for path in (tmp_path / "cpu").glob("*.png"):
        wanted, found = (np.asarray(Image.open(each)).astype(int) for each in (path, tmp_path / "cuda" / path.name))
        assert (np.abs(found - wanted).max(axis=2) <= 8).mean() > 0.97


def test_results_of_another_device_are_made_anew(cupy, model, folder, tmp_path, capsys):
    options = [str(folder / "0.png"), "--model", str(model), "--size", "16", "--refine", "none", "--levels", "image"]
    options += ["--out", str(tmp_path / "out"), "--json"]
    statuses = []
    for device in ("cpu", "cuda", "cuda"):
        assert segment_command([*options, "--device", device]) == 0
        statuses.append({line["status"] for line in told(capsys)})
    assert statuses == [{"done"}, {"done"}, {"skipped"}]


def test_workers_have_cpus(cupy, model, folder, tmp_path):
    options = [str(folder), "--model", str(model), "--out", str(tmp_path / "out"), "--levels", "all"]
    with pytest.raises(UsageError, match="leave out --device cuda or --scheduler"):
        segment_command([*options, "--scheduler", "local", "--device", "cuda"])
