"""CUDA graphs, cuBLASLt and streams: what is launched and transferred, what graphs own, what is done without them."""

from __future__ import annotations

import logging
import weakref

import fake_cupy
import fake_streams
import numpy as np
import pytest
import random_vit

from vitnp import kernels
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

EMULATOR = "fast"  # every kernel has been checked by itself
CONFIG = ViTConfig(width=64, depth=3, heads=1, patch=8, grid=(4, 4))


@pytest.fixture(autouse=True)
def emulated_only(request):
    if "gpu" in request.keywords:
        pytest.skip("counts launches in the emulator")


def network(cupy, config: ViTConfig = CONFIG, precision: str = "fp16") -> ViT:
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    return ViT(config, weights).to(device="cuda", precision=precision)


def images(seed: int, batch: int = 1, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, *size)).astype(np.float32)


def counted(call) -> dict[str, int]:
    fake_streams.counts.clear()
    call()
    return dict(fake_streams.counts)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_graph_gives_the_bits_of_single_launches(cupy, precision):
    vit, want = network(cupy, precision=precision), ("key", "cls", "attention")
    pictures = [cupy.asarray(images(seed)) for seed in range(4)]
    fresh = [network(cupy, precision=precision)(picture, want) for picture in pictures]
    found = [vit(picture, want) for picture in pictures]  # kept: a graph must not overwrite earlier results
    assert len(vit._packed.graphs) == 1
    for one, other in zip(fresh, found):
        for name in want:
            np.testing.assert_array_equal(cupy.asnumpy(one[name]), cupy.asnumpy(other[name]))


@pytest.mark.parametrize("precision, options", [("fp16", ()), ("bf16", ("-DBFLOAT16",))])
def test_a_graph_of_attention_by_warp_groups(precision, options):
    """Tensor maps hold addresses, which a graph keeps."""
    with fake_cupy.installed("fast", hopper=True) as cupy:
        from vitnp.kernels.cuda import attention_wgmma

        attention_wgmma._reasons[0, options] = ""
        vit, want = network(cupy, precision=precision), ("key", "cls")
        pictures = [cupy.asarray(images(seed)) for seed in range(4)]
        fresh = [network(cupy, precision=precision)(picture, want) for picture in pictures]
        found = [vit(picture, want) for picture in pictures]
        with attention_wgmma.switched_off():
            other_form = [network(cupy, precision=precision)(picture, want) for picture in pictures]
        assert len(vit._packed.graphs) == 1 and not any(attention_wgmma._reasons.values())
        assert set(cupy.cuda.nvrtc.compiled) == {("-arch=sm_90a", "-ftz=true", "-std=c++17", *options)}
        for one, again, other in zip(fresh, found, other_form):
            for name in want:
                np.testing.assert_array_equal(cupy.asnumpy(one[name]), cupy.asnumpy(again[name]))
                close, numbers = cupy.asnumpy(other[name]), cupy.asnumpy(one[name])
                np.testing.assert_allclose(numbers, close, atol=0.05 if options else 0.01, rtol=0)


def test_launches_of_a_network(cupy):
    """8 launches per block, none of them a copy; with a graph one in all, and a copy at both ends."""
    shallow, deep = (network(cupy, ViTConfig(width=64, depth=depth, heads=1, patch=8, grid=(4, 4))) for depth in (2, 3))
    picture = cupy.asarray(images(0))
    fewer, more = (counted(lambda vit=vit: vit(picture, ("key",))) for vit in (shallow, deep))
    one_block = {name: more[name] - fewer[name] for name in ("kernel", "product", "elementwise")}
    assert one_block == {"kernel": 4, "product": 4, "elementwise": 0}
    deep(picture, ("key",))
    assert counted(lambda: deep(picture, ("key",))) == {"elementwise": 2, "graph": 1}


def doubled(cupy, factor: float = 2.0):
    """A computation for graphs, with a buffer prepared before; counts how often it is prepared."""

    def prepare(x):
        prepare.calls += 1
        buffer, weight = cupy.empty(x.shape, x.dtype), cupy.asarray(np.array([factor], x.dtype))
        prepare.buffers.append(weakref.ref(fake_streams.owner_of(buffer)))

        def compute():
            cupy.multiply(x, weight, out=buffer)
            return {"twice": buffer + 0}

        return compute

    prepare.calls, prepare.buffers = 0, []
    return prepare


def run(cupy, cache, prepare, values) -> list[float]:
    return cupy.asnumpy(cache.run("double", [cupy.asarray(np.array(values, np.float32))], prepare)["twice"]).tolist()


def test_a_shape_is_recorded_when_it_occurs_again(cupy):
    cache, prepare = kernels.for_device("cuda").GraphCache(), doubled(cupy)
    lengths = []
    for values in ([1, 2], [3, 4], [5, 6], [1, 2, 3], [7, 8]):
        assert run(cupy, cache, prepare, values) == [2 * value for value in values]
        lengths.append(len(cache))
    assert lengths == [0, 1, 1, 1, 1] and prepare.calls == 3


def test_kernels_are_launched_singly_on_request(cupy):
    from vitnp.kernels.cuda.graphs import launched_singly

    cache, prepare = kernels.for_device("cuda").GraphCache(), doubled(cupy)
    with launched_singly():
        assert [run(cupy, cache, prepare, [1, 2]) for _ in range(3)] == [[2, 4]] * 3
    assert prepare.calls == 3 and len(cache) == 0


def test_graphs_are_few_and_small_and_free_their_memory(cupy):
    make = kernels.for_device("cuda").GraphCache
    cache, prepare = make(max_graphs=2), doubled(cupy)
    for length in (1, 1, 2, 2, 1, 3, 3):  # the graph of 2 has not been used for longest
        run(cupy, cache, prepare, [1.0] * length)
    assert len(cache) == 2 and cache.nbytes > 0
    assert [one() is not None for one in prepare.buffers] == [False, True, False, False, False, True]
    before = prepare.calls
    run(cupy, cache, prepare, [1.0])
    assert prepare.calls == before
    small = make(max_bytes=8)
    for _ in range(3):
        assert run(cupy, small, doubled(cupy), [1, 2, 3]) == [2, 4, 6]
    assert len(small) == 0
    kernels.for_device("cuda").release()
    assert len(cache) == 0 and all(one() is None for one in prepare.buffers)


def test_where_capture_is_refused_kernels_are_launched_one_by_one(cupy, monkeypatch, caplog):
    """By a CuPy without graphs, by cuBLAS, or because something would be read."""
    caplog.set_level(logging.DEBUG, "vitnp")
    make, prepare = kernels.for_device("cuda").GraphCache, doubled(cupy)
    for name in ("MemoryPool", "using_allocator"):
        with monkeypatch.context() as patch:
            patch.delattr(cupy.cuda, name)
            cache = make()
            assert [run(cupy, cache, prepare, [1, 2]) for _ in range(3)] == [[2, 4]] * 3 and len(cache) == 0

    def reads(x):
        return lambda: {"twice": x * 2 if float(x[0]) else x}

    cache = make()
    assert [run(cupy, cache, reads, [1, 2]) for _ in range(3)] == [[2, 4]] * 3 and len(cache) == 0
    assert "transfer to the host" in caplog.text and fake_streams.capture() is None


def test_without_cublaslt_a_network_gives_the_same_features(cupy, monkeypatch):
    from vitnp.kernels.cuda import cublaslt

    picture = cupy.asarray(images(0))
    wanted = cupy.asnumpy(network(cupy, precision="fp32")(picture)["key"])
    cublaslt._plan.cache_clear()
    monkeypatch.setattr(cublaslt.load(), "refuses_bias", True)
    vit = network(cupy, precision="fp32")
    found = [cupy.asnumpy(vit(picture)["key"]) for _ in range(3)]
    assert len(vit._packed.graphs) == 1
    monkeypatch.setattr(cublaslt, "load", lambda: None)
    vit = network(cupy, precision="fp32")
    found += [cupy.asnumpy(vit(picture)["key"]) for _ in range(3)]
    assert len(vit._packed.graphs) == 0
    for one in found:
        np.testing.assert_allclose(one, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    cublaslt._plan.cache_clear()


def test_graphs_give_way_when_memory_runs_out(cupy):
    cache, prepare = kernels.for_device("cuda").GraphCache(), doubled(cupy)
    for _ in range(2):
        run(cupy, cache, prepare, [1, 2])
    assert len(cache) == 1
    failures = iter([True])

    def short_of_memory(x):
        if next(failures, False):
            raise MemoryError
        return prepare(x)

    assert run(cupy, cache, short_of_memory, [1, 2, 3]) == [2, 4, 6] and len(cache) == 0
    failures = iter([True])
    with pytest.raises(MemoryError):
        run(cupy, cache, short_of_memory, [1, 2, 3])


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map and a photograph."""
    rng = np.random.default_rng(seed)
    return rng.random((24, 32), np.float32), rng.integers(0, 256, (24, 32, 3), np.uint8)


def test_launches_of_the_solver(cupy):
    """One by one 17 kernels, 2 a pass of the sort and 3 per iteration; once recorded a graph and three copies."""
    from vitnp.refine.bilateral_solver import bilateral_solver

    def solved(index: int, sigma_xy: float = 4.0):
        return bilateral_solver(*scenes[index], sigma_xy=sigma_xy, max_iterations=3)

    scenes = [[cupy.asarray(array) for array in scene(seed)] for seed in range(3)]
    fresh = [cupy.asnumpy(solved(2, sigma_xy)) for sigma_xy in (4.0, 5.0)]
    solved(1)
    assert counted(lambda: solved(0)) == {"elementwise": 3, "graph": 1}
    for sigma_xy, wanted in zip((4.0, 5.0), fresh):
        np.testing.assert_array_equal(cupy.asnumpy(solved(2, sigma_xy)), wanted)
    kernels.for_device("cuda").release()
    one_by_one = counted(lambda: solved(2))
    assert one_by_one["kernel"] == 17 + 2 * 3 + 3 * 3 and not {"upload", "download", "wait"} & set(one_by_one)


@pytest.mark.parametrize("method, launches", [("solver", (2, 6, 2)), ("crf", (8, 5, 1))])
def test_launches_of_a_batch(cupy, method, launches):
    """Photographs of a size take the launches of one, a copy to the GPU and one back."""
    from vitnp.refine.batch import refine_batch

    def refined(count: int) -> list[np.ndarray]:
        scores = [cupy.asarray(scene(seed)[0][::8, ::8].copy()) for seed in range(count)]
        return refine_batch(scores, [scene(seed)[1] for seed in range(count)], method=method)

    for count in (1, 4):
        for _ in range(2):
            refined(count)
        found = counted(lambda count=count: refined(count))
        assert found["upload"] == count + 1 and found["download"] == 1  # the scores are uploaded by this test
        stacked = int(count > 1)
        assert (found["kernel"], found["elementwise"] - stacked, found["graph"]) == launches


def test_launches_of_the_crf(cupy):
    """The host neither reads nor waits, and once recorded all of it is a graph and three copies."""
    from vitnp.refine.dense_crf import dense_crf

    def inferred(index: int, **options):
        return dense_crf(*scenes[index], steps=2, gaussian_weight=2.0, **options)

    scenes = [[cupy.asarray(array) for array in scene(seed)] for seed in range(3)]
    fresh = cupy.asnumpy(inferred(2))
    kernels.for_device("cuda").release()
    one_by_one = counted(lambda: inferred(1))
    assert not {"upload", "download", "wait"} & set(one_by_one)
    inferred(0)
    assert counted(lambda: inferred(1)) == {"elementwise": 3, "graph": 1}
    np.testing.assert_array_equal(cupy.asnumpy(inferred(2)), fresh)


def test_threads_hand_over_arrays_between_streams(cupy):
    """What a thread computes in its context has finished when the context ends; else the emulator objects."""
    from vitnp.kernels.threads import pool

    def squares():
        for number in range(5):
            yield cupy.asarray(np.full(3, number, np.float32)) ** 2

    def waited():
        for one in squares():
            kernels.for_device("cuda").wait()
            yield one

    with kernels.own_stream("cuda"):
        found = [float((one + 1)[0]) for one in pool.run_ahead(waited(), 2, lambda: kernels.own_stream("cuda"))]
    assert found == [1, 2, 5, 10, 17]
    with kernels.own_stream("cuda"), pytest.raises(RuntimeError, match="another stream may still be writing"):
        for one in pool.run_ahead(squares(), 2, lambda: kernels.own_stream("cuda")):
            one + 1


@pytest.mark.slow(reason="photographs on the emulator")
def test_a_folder_has_its_stages_on_streams_of_their_own(cupy, tmp_path, monkeypatch):
    """Decoding, the network and the rest use the GPU from threads of their own, and hand over finished arrays only."""
    from PIL import Image

    from vitnp.export.per_image import segment_files
    from vitnp.io.find import find_photographs
    from vitnp.options import Settings
    from vitnp.pipeline import ImagePipeline

    (tmp_path / "in").mkdir()
    for index in range(6):
        Image.fromarray(scene(index)[1]).save(tmp_path / "in" / f"{index}.png")
    used: dict[str, set[int]] = {}
    fake_streams.freed_early.clear()
    for name in ("preprocess", "extract", "segment_batch"):
        method = getattr(ImagePipeline, name)

        def noted(self, *args, name=name, method=method):
            used.setdefault(name, set()).add(cupy.cuda.get_current_stream().ptr)
            return method(self, *args)

        monkeypatch.setattr(ImagePipeline, name, noted)
    photographs = find_photographs([tmp_path / "in"])
    stems = [tmp_path / "out" / str(index) for index in range(6)]
    settings, vit = Settings(short_side=24), network(cupy)
    options = {"settings": settings, "collection": None, "n_threads": 2, "batch": 2}
    outcomes = list(segment_files(photographs, stems, vit, ["mask", "soft"], **options))
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert len(used["extract"]) == len(used["segment_batch"]) == 1 and 0 not in set().union(*used.values())
    assert not used["extract"] & used["segment_batch"]
    assert not used["preprocess"] & (used["extract"] | used["segment_batch"])
    assert not fake_streams.freed_early
    seconds = [outcome.facts.seconds for outcome in outcomes]
    assert all(set(one) == {"decode", "network", "cluster", "refine", "write"} for one in seconds)
    alone = ImagePipeline.create(vit, settings, None)
    for photograph, outcome in zip(photographs, outcomes):
        soft = np.asarray(Image.open(outcome.outputs["soft"]))
        np.testing.assert_allclose(soft, alone(photograph.path).soft, atol=8)  # a product of another height


def test_a_stopwatch_waits_when_it_is_read(cupy):
    """Stages end when the device has finished; the host waits for it only to read their seconds."""
    from vitnp.kernels.stopwatch import Stopwatch

    def measured():
        clock.lap("first")
        cupy.asarray(np.ones(3, np.float32)) * 2
        clock.lap("second")

    clock = Stopwatch("cuda", shared_by=2)
    assert "wait" not in counted(measured)
    both = Stopwatch("cuda")
    both.include(clock)
    both.lap("second")
    assert list(both.seconds) == ["first", "second"]
    assert both.seconds["second"] >= clock.seconds["second"] >= 0


def test_memory_that_another_stream_uses_is_noticed(cupy):
    """The emulator's own check: what the test of folders would miss otherwise."""
    fake_streams.freed_early.clear()
    for waits in (True, False):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            x = cupy.asarray(np.ones(3, np.float32))
            stream.synchronize()
        with cupy.cuda.Stream(non_blocking=True) as other:
            x + 1
            if waits:
                other.synchronize()
        del x
        assert bool(fake_streams.freed_early) is not waits


def test_a_graph_without_its_memory_is_noticed(cupy):
    """The emulator's own check: what the tests above would miss otherwise."""
    stream, x = cupy.cuda.Stream(non_blocking=True), cupy.asarray(np.ones(3, np.float32))
    with stream:
        stream.begin_capture()
        y = x + 1
        graph = stream.end_capture()
    graph.launch()
    del y
    with pytest.raises(RuntimeError, match="memory that has been freed"):
        graph.launch()
