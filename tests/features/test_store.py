"""The feature store: what it holds, whatever happens to it meanwhile."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import random_vit
from PIL import Image
from vitnp.kernels.threads.blas import one_blas_thread

from vitnp import ViT, ViTConfig, read_image
from vitnp.clustering.kmeans import KMeans
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.features.blocks import KeyBlocks
from vitnp.features.entries import Entries
from vitnp.features.extract import extract
from vitnp.features.maintenance import prune
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import ShardWriter, extract_to_store
from vitnp.features.temporary import check_space, estimate_bytes, temporary_store
from vitnp.io.decode import file_hash
from vitnp.io.find import Photograph
from vitnp.io.preprocess import normalize
from vitnp.io.resample import downscale
from vitnp.io.source import content_hash
from vitnp.io.write import replacing

SIZES = [(40, 56), (56, 40), (33, 33), (40, 57), (90, 31)]
ARRAYS = ("keys", "attention", "cls", "last_key", "value", "cls_state")

# What a child process needs to import this file.
PATHS = [
    os.path.dirname(os.path.abspath(__file__)),
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"),
]


def network(**changes) -> ViT:
    config = ViTConfig(**{"width": 24, "depth": 3, "heads": 3, "patch": 8, "grid": (4, 5), "registers": 1, **changes})
    return ViT(config, random_vit.random_weights(config, seed=1, hidden=32, class_position=True, dtype=np.float32))


@pytest.fixture(scope="module")
def vit() -> ViT:
    return network()


def spec_of(vit: ViT, **options) -> FeatureSpec:
    return FeatureSpec.of(vit, **{"short_side": 32, **options})


def picture(seed: int) -> np.ndarray:
    height, width = SIZES[seed % len(SIZES)]
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Photographs of several shapes; nothing may write here."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(23):
        Image.fromarray(picture(seed)).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="module")
def paths(folder) -> list[pathlib.Path]:
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def unbroken(vit, paths, tmp_path_factory) -> dict[str, dict]:
    """Everything that a store made in one go holds."""
    store = FeatureStore(tmp_path_factory.mktemp("unbroken"), spec_of(vit))
    extract_to_store(paths, vit, store, n_threads=1, batch=1)
    return content(store)


def content(store: FeatureStore) -> dict[str, dict]:
    """A store's content in full, for comparing: facts and bytes."""
    found = {}
    for name in store:
        entry = store.entry(name)
        facts = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.compare}
        arrays = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in entry.arrays().items()}
        found[name] = {**facts, **arrays}
    return found


def shards(store: FeatureStore) -> list[pathlib.Path]:
    return sorted(store.folder.glob("*.safetensors"))


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.rglob("*.part"))


# ---- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"facet": "value"}, {"facet": "query"}, {"facet": "token"}, {"layer": 1}, {"stride": 4}]
)
def test_a_photograph_has_the_features_that_extract_gives(vit, paths, tmp_path, options):
    store = FeatureStore(tmp_path, spec_of(vit, **options))
    hashes = extract_to_store(paths, vit, store, n_threads=2).hashes
    assert hashes == [file_hash(path) for path in paths]
    for path, name in zip(paths, hashes):
        rgb = read_image(path)
        alone, entry = extract(rgb, vit, short_side=32, **options), store.entry(name)
        assert np.array_equal(entry.keys, alone.keys.astype(np.float16)) and entry.keys.dtype == np.float16
        assert np.array_equal(entry.attention, alone.attention) and entry.attention.dtype == np.float32
        assert (entry.grid, entry.pixels, entry.digest) == (alone.grid, alone.pixels, alone.digest)
        assert entry.size == rgb.shape[:2] and entry.patches == len(entry.keys) and not entry.capped
        np.testing.assert_allclose(np.linalg.norm(entry.unit, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(entry.unit, alone.unit, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"facet": "value"}, {"layer": 0}])
def test_what_regions_need_is_of_the_last_block(vit, paths, tmp_path, options):
    store = FeatureStore(tmp_path, spec_of(vit, **options))
    extract_to_store(paths[:3], vit, store)
    for path in paths[:3]:
        entry = store.entry(file_hash(path))
        config = vit.config
        height, width = entry.pixels
        batch = normalize(downscale(read_image(path), (height, width)), config.mean, config.std)[None]
        expected = vit(batch, ("key", "value", "cls", "cls_state"))
        assert np.array_equal(entry.last_key, expected["key"][0].astype(np.float16))
        assert np.array_equal(entry.value, expected["value"][0].astype(np.float16))
        assert np.array_equal(entry.cls, expected["cls"][0]) and entry.cls.dtype == np.float32
        assert np.array_equal(entry.cls_state, expected["cls_state"][0]) and entry.cls_state.dtype == np.float32
        everywhere = np.ones((1, entry.patches), bool)
        assert vit.region_cls(entry.cls_state, entry.last_key, entry.value, everywhere).shape == (1, config.width)


def test_without_regions_fewer_arrays_are_stored(vit, paths, tmp_path):
    stores = [FeatureStore(tmp_path, spec_of(vit, regions=regions)) for regions in (True, False)]
    for store in stores:
        extract_to_store(paths[:2], vit, store)
    full, small = (store.entry(file_hash(paths[0])) for store in stores)
    assert np.array_equal(full.keys, small.keys) and np.array_equal(full.cls, small.cls)
    assert full.last_key is not None and "last_key" not in full.arrays()  # the keys themselves
    for name in ("value", "last_key", "cls_state"):
        with pytest.raises(UsageError, match="regions=True"):
            getattr(small, name)


def test_float32_keeps_every_bit(vit, paths, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit, precision="float32"))
    extract_to_store(paths[:2], vit, store)
    alone = extract(read_image(paths[0]), vit, short_side=32)
    assert np.array_equal(store.entry(file_hash(paths[0])).keys, alone.keys)


def test_features_too_large_for_float16_are_refused(paths, tmp_path):
    vit = network()
    vit.weights["blocks.2.attn.qkv.bias"][30] = 1e6
    with pytest.raises(UsageError, match="float32"):
        extract_to_store(paths[:2], vit, FeatureStore(tmp_path, spec_of(vit)))
    store = FeatureStore(tmp_path, spec_of(vit, precision="float32"))
    assert not extract_to_store(paths[:2], vit, store).failures
    vit = network()
    vit.weights["blocks.2.attn.qkv.bias"][30] = np.nan
    with pytest.raises(UsageError, match="damaged"):
        extract_to_store(paths[:2], vit, FeatureStore(tmp_path / "nan", spec_of(vit, precision="float32")))


def test_arrays_images_paths_and_photographs_are_accepted(vit, paths, tmp_path):
    rgb = picture(3)
    store = FeatureStore(tmp_path, spec_of(vit))
    sources = [rgb, Image.fromarray(rgb), str(paths[3]), Photograph(paths[3], pathlib.Path("x.png"))]
    hashes = extract_to_store(sources, vit, store).hashes
    assert hashes == [content_hash(rgb)] * 2 + [file_hash(paths[3])] * 2
    first, second = store.entry(hashes[0]), store.entry(hashes[2])
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAYS)
    alone = extract(rgb, vit, store.spec)
    assert alone.photograph == hashes[0] and alone == first
    assert all(np.array_equal(getattr(first, name), getattr(alone, name)) for name in ARRAYS)


def test_token_cap_is_recorded(vit, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit, max_tokens=12))
    hashes = extract_to_store([picture(0), np.zeros((32, 32, 3), np.uint8)], vit, store).hashes
    entries = [store.entry(name) for name in hashes]
    assert all(entry.capped and entry.patches <= 12 for entry in entries)


@pytest.mark.slow(reason="many inputs")
@hypothesis.settings(derandomize=True, deadline=None, max_examples=12)
@hypothesis.given(
    order=st.permutations(range(23)),
    batch=st.integers(1, 9),
    threads=st.integers(1, 3),
    shard=st.sampled_from([1, 9_000, 1 << 20]),
)
def test_features_do_not_depend_on_batches_threads_order_or_shards(
    vit, paths, unbroken, tmp_path_factory, order, batch, threads, shard
):
    store = FeatureStore(tmp_path_factory.mktemp("store"), spec_of(vit))
    done = []
    extraction = extract_to_store(
        [paths[index] for index in order],
        vit,
        store,
        batch=batch,
        n_threads=threads,
        shard_bytes=shard,
        progress=done.append,
    )
    assert extraction.failures == {} and sum(done) == len(paths)
    assert content(FeatureStore(store.folder.parent, store.spec)) == unbroken


def test_every_setting_has_a_store_of_its_own(vit, tmp_path):
    plain = FeatureSpec.of(vit)
    changes = {
        "facet": "query", "layer": 0, "stride": 4, "short_side": 64,
        "precision": "float32", "max_tokens": 9, "regions": False,
    }  # fmt: skip
    others = [FeatureSpec.of(vit, **{name: value}) for name, value in changes.items()]
    others += [
        FeatureSpec.of(vit, short_side=1024),
        FeatureSpec.of(vit, short_side=2048),
    ]  # above what the cap lets square pictures have
    weights = dict(vit.weights, cls_token=vit.weights["cls_token"] + 1)
    others += [FeatureSpec.of(ViT(vit.config, weights)), FeatureSpec.of(ViT(vit.config, vit.weights, sha256="ab"))]
    others += [FeatureSpec.of(ViT(dataclasses.replace(vit.config, **{name: value}), vit.weights)) for name, value in {
        "pos_embed": "exact", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "heads": 2, "eps": 1e-5,
    }.items()]  # fmt: skip
    assert len({spec.name for spec in [plain, *others]}) == 1 + len(others)
    # What means the same has the same store: defaults spelt out, and sides that are rounded alike.
    assert FeatureSpec.of(vit, layer=2, stride=8, short_side=322) == plain


@pytest.mark.parametrize(
    "options",
    [{"facet": "poster"}, {"layer": 3}, {"layer": -4}, {"stride": 3}, {"short_side": 0}, {"precision": "float8"}],
)
def test_options_that_the_network_lacks_are_refused(vit, options):
    with pytest.raises(UsageError):
        FeatureSpec.of(vit, **options)


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(vit, paths, tmp_path) -> FeatureStore:
    """A store of several shards."""
    store = FeatureStore(tmp_path / "cache", spec_of(vit))
    extract_to_store(paths, vit, store, shard_bytes=12_000)
    assert len(shards(store)) > 4
    return store


def test_blocks_come_in_the_order_asked_for_and_as_often_as_asked(filled, paths):
    names = [file_hash(path) for path in paths[::-1]]
    blocks = KeyBlocks(filled, names)
    for _ in range(2):
        for name, block in zip(names, blocks, strict=True):
            assert np.array_equal(block, filled.entry(name).keys)
    rows = np.concatenate([*blocks])
    assert blocks.shape == rows.shape and blocks.dtype == rows.dtype
    for part in (
        slice(None),
        slice(0, 1),
        slice(5, 77),
        slice(70, 71),
        slice(len(rows) - 3, None),
        slice(9, 9),
        slice(-2, 10**6),
    ):
        assert np.array_equal(blocks[part], rows[part])
    with pytest.raises(UsageError):
        blocks[::2]
    assert KeyBlocks(filled, []).shape == (0, 0)
    assert np.array_equal(KMeans(3).fit(blocks).labels_, KMeans(3).fit(rows).labels_)


def test_patches_are_counted_without_reading(filled, paths):
    names = [file_hash(path) for path in paths]
    assert filled.patches(names).tolist() == [len(filled.entry(name).keys) for name in names]


def test_a_sample_is_the_same_however_the_store_is_laid_out(vit, filled, paths, tmp_path):
    other = FeatureStore(tmp_path / "other", filled.spec)
    extract_to_store(paths[::-1], vit, other, batch=2)
    names = [file_hash(path) for path in paths]
    counts, everyone = filled.patches(names), range(len(names))
    first, second = Entries(filled, names), Entries(other, names)
    keys, rows = first.sample(everyone, counts, 100, (3, 1))
    assert keys.shape == (100, 24) and keys.dtype == np.float16
    assert np.array_equal(keys, np.concatenate([first[index].keys[part] for index, part in enumerate(rows)]))
    assert np.array_equal(keys, second.sample(everyone, counts, 100, (3, 1))[0])
    assert not np.array_equal(keys, first.sample(everyone, counts, 100, (3, 2))[0])
    everything = np.concatenate([first[index].keys for index in everyone])
    for limit in (len(everything), len(everything) + 1, 10**9):
        assert np.array_equal(first.sample(everyone, counts, limit, (0,))[0], everything)
    with pytest.raises(KeyError):
        Entries(filled, [None])[0]
    with pytest.raises(KeyError):
        Entries(filled, ["missing"])[0]


def test_a_sample_is_uniform_and_draws_nothing_twice(vit, filled, paths):
    names = [file_hash(path) for path in paths]
    entries, counts_of = Entries(filled, names), filled.patches(names)
    everything = np.concatenate([*KeyBlocks(filled, names)])
    row_of = collections.defaultdict(list)
    for row, key in enumerate(everything):
        row_of[key.tobytes()].append(row)
    assert len(row_of) == len(everything)  # so that a key tells its row
    draws, limit = 300, len(everything) // 5
    counts = np.zeros(len(everything))
    for seed in range(draws):
        rows = [row_of[key.tobytes()][0] for key in entries.sample(range(len(names)), counts_of, limit, (seed,))[0]]
        assert rows == sorted(set(rows)) and len(rows) == limit
        counts[rows] += 1
    # Each count is binomial with mean 60 and deviation 6.9; hypergeometric sums by photograph are tighter still.
    expected = draws * limit / len(everything)
    deviation = np.sqrt(expected * (1 - limit / len(everything)))
    assert np.abs(counts - expected).max() < 5 * deviation
    assert (counts - expected).std() == pytest.approx(deviation, rel=0.15)


def test_views_outlive_their_shard(filled, monkeypatch):
    monkeypatch.setattr("vitnp.features.mapped.MAX_SHARDS", 1)
    names = list(filled)
    views = [filled.entry(name).keys for name in names]
    copies = [filled.entry(name).keys.copy() for name in names]
    assert all(np.array_equal(view, copy) for view, copy in zip(views, copies))


def test_unknown_photographs(filled):
    assert "nobody" not in filled
    with pytest.raises(KeyError):
        filled.entry("nobody")


# ---- broken photographs ---------------------------------------------------------------------------------------------


def test_broken_photographs_are_reported_and_the_others_are_extracted(vit, paths, unbroken, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:600])
    sources = [
        tmp_path / "empty.png",
        *paths[:5],
        tmp_path / "cut.png",
        *paths[5:],
        tmp_path / "gone.png",
        np.zeros((3, 0, 3), np.uint8),
    ]
    store = FeatureStore(tmp_path / "cache", spec_of(vit))
    extraction = extract_to_store(sources, vit, store, n_threads=2)
    assert list(extraction.failures) == [0, 6, 25, 26]
    assert all(isinstance(error, ImageError) for error in extraction.failures.values())
    assert [name is None for name in extraction.hashes] == [
        index in extraction.failures for index in range(len(sources))
    ]
    assert content(store) == unbroken


def test_photographs_above_the_limit_of_pixels_fail(vit, paths, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit))
    assert list(extract_to_store(paths[:5], vit, store, max_pixels=2_000).failures) == [0, 1, 3, 4]


# ---- a second run ---------------------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(vit, filled, paths, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in shards(filled)}
    monkeypatch.setattr(ViT, "__call__", lambda *_, **__: pytest.fail("the network ran"))
    again = FeatureStore(filled.folder.parent, filled.spec)
    assert len(extract_to_store(paths, vit, again).hashes) == len(paths)
    assert {path: path.stat().st_mtime_ns for path in shards(again)} == before


def test_equal_photographs_are_computed_once(vit, paths, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit))
    assert len(extract_to_store([paths[0]] * 7, vit, store, batch=3).hashes) == 7
    assert len(store) == 1
    (shard,) = shards(store)
    assert len(shard.read_bytes()) < 10_000


def damage(path: pathlib.Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-100] ^= 1
    elif how == "header":
        data[20] ^= 0xFF
    elif how == "cut":
        del data[-50:]
    elif how == "empty":
        data.clear()
    elif how == "grown":
        data += b"more"
    elif how == "other":
        data[:] = b"not at all a shard, whatever its name says"
    path.unlink()  # a new file, not the mapped one: cutting that one short would kill whoever reads it
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "header", "cut", "empty", "grown", "other"])
def test_damaged_shards_are_reported_and_computed_again(vit, filled, paths, unbroken, how):
    damaged = shards(filled)[1]
    damage(damaged, how)
    told = []
    store = FeatureStore(filled.folder.parent, filled.spec, notice=told.append)
    extract_to_store(paths, vit, store)
    assert len(told) == 1 and str(damaged) in told[0] and "damaged" in told[0]
    assert content(store) == unbroken
    assert content(FeatureStore(filled.folder.parent, filled.spec, notice=pytest.fail)) == unbroken


def test_damage_is_never_read(vit, filled, paths):
    damaged = shards(filled)[2]
    damage(damaged, "flip")
    store = FeatureStore(filled.folder.parent, filled.spec, notice=lambda line: None)
    entries = [store.entry(name) for name in store]
    lost = 0
    for entry in entries:
        try:
            entry.arrays()
        except OutputError as error:
            assert str(damaged) in str(error) or "no longer in the feature store" in str(error)
            lost += 1
    assert lost >= 1 and not damaged.exists()
    assert len(store) == len(FeatureStore(filled.folder.parent, filled.spec)) == len(paths) - lost


def test_damage_goes_to_the_log_by_default(filled, caplog):
    damage(shards(filled)[0], "cut")
    FeatureStore(filled.folder.parent, filled.spec)
    (record,) = caplog.records
    assert record.name == "vitnp" and "damaged" in record.message


# ---- killed, interrupted, side by side ------------------------------------------------------------------------------

CHILD = """
    import sys, pathlib
    sys.path[:0] = {tests!r}
    import os, signal
    import test_store
    from vitnp.features.store import FeatureStore
    from vitnp.features.stream import extract_to_store
    from vitnp.kernels.threads.blas import one_blas_thread
    vit = test_store.network()
    store = FeatureStore({cache!r}, test_store.spec_of(vit))
    paths = sorted(pathlib.Path({folder!r}).glob("*.png"))
    {before}
    print("go", flush=True)
    extract_to_store(paths, vit, store, n_threads={threads}, batch=2, shard_bytes=9_000{more})
    print("done", flush=True)
"""


def start(
    folder: pathlib.Path, cache: pathlib.Path, before: str = "", threads: int = 2, more: str = ""
) -> subprocess.Popen:
    """Another process that fills a store, from the moment that this returns."""
    code = textwrap.dedent(CHILD).format(
        tests=PATHS, cache=str(cache), folder=str(folder), before=before, threads=threads, more=more
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout.readline() == "go\n", child.stderr.read()
    return child


# Starting Python and loading the kernels takes longer than the work. So one process loads them with a first photograph,
# and forks for each store whose folder it reads from its standard input.
FORKING = """
    extract_to_store(paths[:1], vit, store, n_threads=1)
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
            os.waitpid(pid, 0)
            print("gone", flush=True)
        else:
            store = FeatureStore(line.strip(), test_store.spec_of(vit))
            extract_to_store(paths, vit, store, n_threads=2, batch=2, shard_bytes=9_000,
                             progress=lambda _: __import__("time").sleep(0.01))
            os._exit(0)
    os._exit(0)
"""


@pytest.mark.slow(reason="kills a process again and again")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_killed_at_any_moment_it_continues_where_it_was(vit, folder, paths, unbroken, tmp_path):
    rng = np.random.default_rng(0)
    kept: list[int] = []
    code = textwrap.dedent(CHILD).format(
        tests=PATHS,
        cache=str(tmp_path / "none"),
        folder=str(folder),
        before=textwrap.dedent(FORKING),
        threads=1,
        more="",
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as forking:
        print(tmp_path / "whole", file=forking.stdin, flush=True)
        forking.stdout.readline()
        begun = time.monotonic()
        assert forking.stdout.readline() == "gone\n"
        duration = time.monotonic() - begun
        for attempt in range(16):
            cache = tmp_path / str(attempt)
            before: set[str] = set()
            for _ in range(3):
                print(cache, file=forking.stdin, flush=True)
                pid = int(forking.stdout.readline())
                time.sleep(rng.uniform(0, duration))
                with contextlib.suppress(ProcessLookupError):  # it has finished
                    os.kill(pid, signal.SIGKILL)
                assert forking.stdout.readline() == "gone\n"
                store = FeatureStore(cache, spec_of(vit), notice=pytest.fail)  # nothing half-written under its own name
                store.verify()
                found = content(store)
                assert before <= found.keys() and all(found[name] == unbroken[name] for name in found)
                before = set(found)
                kept.append(len(found))
            extract_to_store(paths, vit, store)
            assert content(store) == unbroken
        forking.stdin.close()
    assert len(set(kept) - {0, len(paths)}) >= 4  # it was killed at many stages


MOMENTS = {
    "before a shard is seen to the disk": "os.fsync = lambda _: os.kill(os.getpid(), 9)",
    "before it takes its name": "os.replace = lambda *_: os.kill(os.getpid(), 9)",
    "once it has its name": "real = os.replace; os.replace = lambda *a: (real(*a), os.kill(os.getpid(), 9))",
    "at the second shard": "real = os.fsync; count = [0]\n"
    "def fsync(f):\n    count[0] += 1\n    count[0] == 2 and os.kill(os.getpid(), 9)\n    real(f)\nos.fsync = fsync",
}


@pytest.mark.slow(reason="kills a process again and again")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_the_worst_moments(vit, folder, paths, unbroken, tmp_path, moment):
    store = FeatureStore(tmp_path, spec_of(vit))
    store.make_writable()
    child = start(folder, tmp_path, before=MOMENTS[moment])
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    store = FeatureStore(tmp_path, spec_of(vit), notice=pytest.fail)
    assert len(shards(store)) == (moment == "at the second shard")
    extract_to_store(paths, vit, store)
    assert content(store) == unbroken
    # What the dead left is cleared away once it's old enough to be nobody's work.
    for path in leftovers(tmp_path):
        os.utime(path, (time.time() - 7200,) * 2)
    FeatureStore(tmp_path, spec_of(vit)).make_writable()
    assert leftovers(tmp_path) == []


def test_unfinished_files_of_running_processes_stay(vit, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit))
    store.folder.mkdir()
    with replacing(store.folder / "at work") as file:
        file.write(b"half of it")
        store.make_writable()
        assert len(leftovers(tmp_path)) == 1
    assert leftovers(tmp_path) == []


def test_unfinished_files_of_killed_processes_are_removed(vit, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit))
    store.folder.mkdir()
    (store.folder / ".vitnp-0123456789abcdef.part").write_bytes(b"half of it")
    store.make_writable()
    assert leftovers(tmp_path) == []


@pytest.mark.slow(reason="interrupts a process")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_interrupted_it_keeps_what_is_done(vit, folder, paths, unbroken, tmp_path):
    child = start(folder, tmp_path, more=", progress=lambda _: __import__('time').sleep(0.05)", threads=1)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    store = FeatureStore(tmp_path, spec_of(vit), notice=pytest.fail)
    assert 0 < len(store) < len(paths) and leftovers(tmp_path) == []
    extract_to_store(paths, vit, store)
    assert content(store) == unbroken


@pytest.mark.slow(reason="several processes")
def test_several_processes_on_one_store(vit, folder, paths, unbroken, tmp_path):
    children = [start(folder, tmp_path, threads=threads) for threads in (1, 2, 2)]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0 and out == "done\n" and err == ""
    store = FeatureStore(tmp_path, spec_of(vit), notice=pytest.fail)
    store.verify()
    assert content(store) == unbroken and leftovers(tmp_path) == []


def test_shards_of_other_processes_are_seen_after_a_refresh(vit, paths, tmp_path):
    mine, other = (FeatureStore(tmp_path, spec_of(vit)) for _ in range(2))
    (name,) = extract_to_store(paths[:1], vit, other).hashes
    assert name not in mine
    mine.refresh()
    assert name in mine and np.array_equal(mine.entry(name).keys, other.entry(name).keys)


def test_features_are_found_after_another_process_has_rewritten_their_shard(filled, paths):
    reader = FeatureStore(filled.folder.parent, filled.spec)
    keep = {file_hash(path) for path in paths[::2]}
    entries = {name: reader.entry(name) for name in keep}  # no array read yet
    filled.prune(keep)
    for name, entry in entries.items():
        assert np.array_equal(entry.keys, filled.entry(name).keys)


# ---- disks that refuse ----------------------------------------------------------------------------------------------


def test_an_unwritable_folder_is_reported_before_any_work(vit, paths, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in the way")
    monkeypatch.setattr("vitnp.features.extract._forward", lambda *_, **__: pytest.fail("the network ran"))
    with pytest.raises(OutputError, match="cache"):
        extract_to_store(paths, vit, FeatureStore(tmp_path / "cache", spec_of(vit)))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(vit, paths, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission"):
            extract_to_store(paths, vit, FeatureStore(tmp_path, spec_of(vit)))
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_store_can_be_read(vit, filled, paths, unbroken, monkeypatch):
    monkeypatch.setattr("vitnp.io.write.make_folder", lambda *_: pytest.fail("something was written"))
    store = FeatureStore(filled.folder.parent, filled.spec)
    extract_to_store(paths, vit, store)
    assert content(store) == unbroken


def test_a_full_disk_ends_the_run_and_keeps_whole_shards(vit, paths, unbroken, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, spec_of(vit))
    calls, real = [], os.fsync

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="disk is full"):
        extract_to_store(paths, vit, store, shard_bytes=9_000)
    assert len(shards(store)) >= 2 and leftovers(tmp_path) == []
    extract_to_store(paths, vit, store)
    assert content(store) == unbroken


# ---- temporary stores -----------------------------------------------------------------------------------------------


def test_the_size_estimate_is_close(vit, paths, tmp_path):
    for options in ({}, {"facet": "query"}, {"regions": False}, {"precision": "float32"}, {"stride": 4}):
        store = FeatureStore(tmp_path, spec_of(vit, **options))
        extract_to_store(paths, vit, store)
        size = sum(path.stat().st_size for path in shards(store))
        assert estimate_bytes(paths, vit, store.spec) == pytest.approx(size, rel=0.05), options


def test_the_size_estimate_of_many_photographs_is_from_a_sample_without_broken_ones(vit, paths, tmp_path):
    spec = spec_of(vit)
    once = estimate_bytes(paths, vit, spec)
    assert estimate_bytes(paths * 200, vit, spec) == pytest.approx(200 * once, rel=0.02)
    assert estimate_bytes([*paths, tmp_path / "gone.png"], vit, spec) == once
    assert estimate_bytes([], vit, spec) == 0
    assert estimate_bytes([picture(0), Image.fromarray(picture(0))], vit, spec) == 2 * estimate_bytes(
        paths[:1], vit, spec
    )


def test_too_little_space_is_reported_before_the_start(vit, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 2 * 10**9))
    refusal = pytest.raises(OutputError, match=r"3\.5 GB .* 2\.0 GB are free")
    with refusal, temporary_store(spec_of(vit), needed=3_500_000_000, folder=tmp_path):
        pytest.fail("it began")
    check_space(tmp_path / "not" / "there" / "yet", 2 * 10**9)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spec = spec_of(vit, short_side=4000, max_tokens=10**6)
    needed = estimate_bytes([np.zeros((4000, 4000, 3), np.uint8)] * 900, vit, spec)
    # 250,000 patches with a key and a value of 24 halves, and a weight.
    assert needed == pytest.approx(900 * 250_000 * (2 * 24 * 2 + 4), rel=1e-4)
    with pytest.raises(OutputError, match="GB"), temporary_store(spec, needed=needed):
        pytest.fail("it began")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_store_is_removed_after_success_and_after_errors(vit, paths, tmp_path):
    with temporary_store(spec_of(vit), folder=tmp_path) as store:
        extract_to_store(paths, vit, store)
        assert tmp_path in store.folder.parents and len(store) == len(paths)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), temporary_store(spec_of(vit), folder=tmp_path) as store:
        extract_to_store(paths, vit, store)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="temporary"), temporary_store(spec_of(vit), folder=tmp_path / "gone"):
        pytest.fail("it began")


def test_an_interrupted_temporary_store_stays_and_serves_as_cache(vit, paths, unbroken, tmp_path):
    told = []
    with (
        pytest.raises(KeyboardInterrupt),
        temporary_store(spec_of(vit), folder=tmp_path, notice=told.append) as store,
    ):
        extract_to_store(paths[:9], vit, store)
        raise KeyboardInterrupt
    (kept,) = tmp_path.iterdir()
    assert len(told) == 1 and str(kept) in told[0] and "--cache" in told[0] and "9 photographs" in told[0]
    store = FeatureStore(kept, spec_of(vit))
    assert len(store) == 9
    extract_to_store(paths, vit, store)
    assert content(store) == unbroken
    with temporary_store(spec_of(vit), folder=tmp_path):
        pass
    assert kept.exists()
    with pytest.raises(KeyboardInterrupt), temporary_store(spec_of(vit), folder=tmp_path, notice=pytest.fail):
        raise KeyboardInterrupt  # with nothing in it
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_temporary_store_of_a_killed_process_is_removed_by_the_next(vit, tmp_path):
    code = f"""
        import sys
        sys.path[:0] = {PATHS!r}
        import test_store
        from vitnp.features.temporary import temporary_store
        with temporary_store(test_store.spec_of(test_store.network()), folder={str(tmp_path)!r}) as store:
            store.make_writable()
            print("go", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "go\n"
        (theirs,) = tmp_path.iterdir()
        with temporary_store(spec_of(vit), folder=tmp_path):
            assert len(list(tmp_path.iterdir())) == 2  # the living keep theirs
        child.kill()
    assert list(tmp_path.iterdir()) == [theirs]
    with temporary_store(spec_of(vit), folder=tmp_path) as store:
        assert list(tmp_path.iterdir()) == [store.folder.parent]


# ---- pruning --------------------------------------------------------------------------------------------------------


def size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("kept", [range(0), range(1), range(0, 23, 3), range(23)])
def test_pruning_keeps_exactly_the_given_photographs(filled, paths, unbroken, kept):
    keep = {file_hash(paths[index]) for index in kept}
    cache = filled.folder.parent
    before = size(cache)
    freed = prune(cache, keep | {"nobody"})
    assert freed == before - size(cache) and (freed > 0) == (len(kept) < 23)
    store = FeatureStore(cache, filled.spec)
    assert content(store) == {name: unbroken[name] for name in keep}
    assert prune(cache, keep) == 0


def test_pruning_covers_every_spec_and_leaves_other_folders_alone(vit, filled, paths):
    cache = filled.folder.parent
    other = FeatureStore(cache, spec_of(vit, facet="value"))
    extract_to_store(paths, vit, other)
    (cache / "notes").mkdir()
    (cache / "notes" / "mine.safetensors").write_text("mine")
    future = cache / ("0" * 32)
    shutil.copytree(other.folder, future)
    prune(cache, {file_hash(paths[0])})
    for spec in (filled.spec, other.spec):
        assert list(FeatureStore(cache, spec)) == [file_hash(paths[0])]
    assert (cache / "notes" / "mine.safetensors").exists() and len(list(future.iterdir())) == 2
    with pytest.raises(OutputError, match="gone"):
        prune(cache / "gone", set())


def test_pruning_removes_duplicates(vit, paths, unbroken, tmp_path):
    spec = spec_of(vit)
    for part in (paths[:1], paths[:2], paths[:4], paths):
        single = FeatureStore(tmp_path / str(len(part)), spec)
        extract_to_store(part, vit, single)
        shutil.copytree(single.folder, tmp_path / "all" / spec.name, dirs_exist_ok=True)
    for keep in ({file_hash(path) for path in paths}, {file_hash(path) for path in paths[:2]}, {file_hash(paths[0])}):
        prune(tmp_path / "all", keep)
        store = FeatureStore(tmp_path / "all", spec)
        assert content(store) == {name: unbroken[name] for name in keep}
        held = [photograph for shard in store._shards.values() for photograph in shard.photographs]
        assert len(held) == len(set(held)) == len(keep)


def test_writer_keeps_shards_near_the_size_asked_for(vit, paths, tmp_path):
    store = FeatureStore(tmp_path, spec_of(vit))
    with one_blas_thread(), ShardWriter(store, 12_000) as writer:
        for path in paths:
            writer.add(extract(read_image(path), vit, store.spec))
    largest = max(len(path.read_bytes()) for path in shards(store))
    assert largest < 12_000 + 9_000
