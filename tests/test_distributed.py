"""Work on a dask cluster of real processes: the answer of one process, to the bit, whatever becomes of the workers."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest
import random_vit
from PIL import Image

from vitnp import Segmenter, ViTConfig, load_vit
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.cli import segment
from vitnp.clustering import chunks
from vitnp.clustering.kmeans import KMeans
from vitnp.errors import CheckpointError, ClusterError, UsageError
from vitnp.features.shared import StoredKeys
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.method import collection_level

distributed = pytest.importorskip("distributed", reason="distributed isn't installed: pip install 'vitnp[dask]'")
import dask

import vitnp
from vitnp.distributed import cluster as cluster_module
from vitnp.distributed import connect, connected, tasks

# What distributed leaves open when a worker is killed is its own affair.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SIZES = [(40, 56), (56, 40), (48, 48), (40, 57)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=1, hidden=64, class_position=True, dtype=np.float32)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_safetensors(path, weights, {})
    return path


@pytest.fixture(scope="module")
def vit(checkpoint):
    return load_vit(checkpoint)


def picture(seed: int) -> np.ndarray:
    """A square on another ground, both with some noise."""
    rng = np.random.default_rng(seed)
    height, width = SIZES[seed % len(SIZES)]
    rgb = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, 3)
    top, left = rng.integers(4, 16, 2)
    rgb[top : top + 20, left : left + 20] = rng.integers(0, 60, (20, 20, 3)) + rng.integers(0, 190, 3)
    return rgb.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs, one broken; nothing may write here."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(60):
        Image.fromarray(picture(seed)).save(folder / f"{seed:02}.png")
    (folder / "30.png").write_bytes((folder / "30.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def local():
    """Two workers; a killed one is replaced."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),  # replaced each time that it's killed
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=100,
        ) as local,
    ):  # fmt: skip
        yield local
    gc.collect()  # what is left open is found while its warnings are filtered


@pytest.fixture
def cluster(local, tmp_path):
    with distributed.Client(local, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)  # the one that an earlier test has killed too
    with connected(local.scheduler_address, cache=tmp_path) as cluster:
        yield cluster


class Kill:
    """Kill one of the workers that are at work, when called for the second time."""

    def __init__(self, client) -> None:
        self.client, self.calls, self.pid = client, 0, None

    def __call__(self, *ignored: object) -> None:
        self.calls += 1
        if self.calls != 2:
            return
        busy = {worker: len(tasks) for worker, tasks in self.client.processing().items()}
        held = {worker: len(keys) for worker, keys in self.client.has_what().items()}
        worker = max(busy, key=lambda worker: (busy[worker], held.get(worker, 0)))
        assert busy[worker] or held[worker]
        self.pid = self.client.run(os.getpid, workers=[worker])[worker]
        os.kill(self.pid, signal.SIGKILL)

    @property
    def done(self) -> bool:
        return self.pid is not None and self.pid not in self.client.run(os.getpid, on_error="ignore").values()


def content(store: FeatureStore) -> dict[str, dict]:
    """Facts and bytes of all that a store holds."""
    found = {}
    for name in store:
        entry = store.entry(name)
        facts = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.compare}
        found[name] = {**facts, **{key: (a.dtype.str, a.shape, a.tobytes()) for key, a in entry.arrays().items()}}
    return found


@pytest.mark.slow(reason="kills workers")
def test_features_are_the_same_when_a_worker_is_killed(cluster, monkeypatch, vit, paths, tmp_path):
    monkeypatch.setattr(cluster_module, "PHOTOGRAPHS_PER_TASK", 3)
    spec = FeatureSpec.of(vit, short_side=48)
    here, there = FeatureStore(tmp_path / "here", spec), FeatureStore(tmp_path / "there", spec)
    photographs = [*paths, tmp_path / "missing.jpg", picture(99)]
    expected = extract_to_store(photographs, vit, here, n_threads=1)
    kill, steps = Kill(cluster.client), []

    def progress(count: int) -> None:
        steps.append(count)
        kill()

    found = cluster.extract_to_store(photographs, vit, there, progress=progress)
    assert kill.done
    assert sum(steps) == len(photographs)
    assert found.hashes == expected.hashes
    assert list(found.failures) == [30, 60]
    assert {index: str(error) for index, error in found.failures.items()} == {
        i: str(e) for i, e in expected.failures.items()
    }
    assert content(there) == content(here)


@pytest.mark.slow(reason="waits for workers")
def test_what_the_store_has_is_not_computed_again(cluster, vit, paths, tmp_path):
    store = FeatureStore(tmp_path, FeatureSpec.of(vit, short_side=48))
    expected = extract_to_store(paths, vit, store)
    shards = sorted(store.folder.iterdir())
    assert cluster.extract_to_store(paths, vit, store).hashes == expected.hashes
    assert sorted(store.folder.iterdir()) == shards


@pytest.mark.slow(reason="kills workers")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kmeans_is_the_same_when_a_worker_is_killed(cluster, metric):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((25_000, 6)) + rng.integers(0, 2, (25_000, 1))).astype(np.float16)
    model = functools.partial(KMeans, 7, metric=metric, max_iter=8, random_state=3)
    kill = Kill(cluster.client)

    def mapper(function, items):
        lloyd = "_step" in repr(function)
        for place, result in enumerate(cluster.map(function, items)):
            if lloyd and place == 1:
                kill()
            yield result

    expected, found = model().fit(x), model().fit(x, mapper=mapper)
    assert kill.calls > 2 and kill.done
    assert np.array_equal(found.labels_, expected.labels_)
    assert np.array_equal(found.cluster_centers_, expected.cluster_centers_)
    assert found.inertia_history_ == expected.inertia_history_
    assert np.array_equal(model().fit(x).predict(x, mapper=cluster.map), expected.labels_)


@pytest.mark.slow(reason="waits for workers")
def test_rows_that_were_changed_are_sent_again(cluster):
    x = np.random.default_rng(1).standard_normal((20_000, 4)).astype(np.float32)
    for _ in range(2):
        found = KMeans(3, max_iter=4).fit(x, mapper=cluster.map)
        assert np.array_equal(found.labels_, KMeans(3, max_iter=4).fit(x).labels_)
        x[:] = x[::-1].copy() ** 2


@pytest.mark.slow(reason="kills workers")
@pytest.mark.parametrize(
    "consistency, fit_patches, n_classes, options",
    # The readout of a network without training finds nothing, so that there are no classes to find with it.
    [("mean", 900, None, {}), ("mean", 900, 2, {"readout": None}), ("majority", "all", 2, {})],
)
def test_a_collection_is_the_same_when_a_worker_is_killed(
    cluster, monkeypatch, vit, paths, tmp_path, consistency, fit_patches, n_classes, options
):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 400)  # several chunks of few photographs
    few = {"starts": 1, "max_iterations": 6}
    fit = functools.partial(
        Segmenter, vit, n_classes, short_side=48, n_categories=2, consistency=consistency, fit_patches=fit_patches,
        **options, dataset_level=dataclasses.replace(collection_level.DATASET, **few),
        category_level=dataclasses.replace(collection_level.CATEGORY, **few),
    )  # fmt: skip
    kill = Kill(cluster.client)

    def mapper(function, items):
        for result in cluster.map(function, items):
            kill()
            yield result

    expected = fit(cache=tmp_path / "here").fit(paths)
    found = fit(cache=tmp_path / "there", mapper=mapper, extractor=cluster.extract_to_store).fit(paths)
    assert kill.done
    assert found.collection.digest == expected.collection.digest
    assert list(found.failures) == list(expected.failures) == [30]
    for ours, theirs in [(found.masks, expected.masks), (found.labels, expected.labels)]:
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs) if a is not None or b is not None)
    assert (found.collection.readout is None) == (n_classes is not None)
    assert n_classes is None or sum(labels is not None and labels.any() for labels in found.labels) > 2


@pytest.mark.slow(reason="runs a collection twice")
def test_the_command_gives_the_same_files(checkpoint, folder, tmp_path):
    photographs = [str(folder / f"{number:02}.png") for number in range(22, 34)]
    options = [
        "--model",
        str(checkpoint),
        "--size",
        "48",
        "--levels",
        "all",
        "--classes",
        "2",
        "--quiet",
        "--consistency",
        "majority",
    ]
    files = {}
    for name, scheduler in {"here": [], "there": ["--scheduler", "local", "--threads", "2"]}.items():
        out = tmp_path / name
        assert segment.main([*photographs, "--out", str(out), *options, *scheduler]) == 3  # one photograph is broken
        files[name] = {path.name: path.read_bytes() for path in sorted(out.rglob("*.png"))}
    assert len(files["here"]) == 3 * 11 + 1  # mask, overlay, labels; the contact sheet
    assert sum(np.any(Image.open(tmp_path / "here" / name)) for name in files["here"] if "_labels" in name) > 5
    assert files["here"] == files["there"]


def test_a_single_item_stays_here_and_items_may_have_any_type(cluster):
    assert list(cluster.map(str, [])) == []
    assert list(cluster.map(_process, [1])) == [os.getpid()]  # one alone isn't worth the journey
    assert os.getpid() not in cluster.map(_process, [1, 2])
    assert list(cluster.map(abs, range(-50, 0))) == list(range(50, 0, -1))
    assert list(cluster.map(len, [(1, 2), (3,)])) == [2, 1]


def test_leaving_early_cancels(cluster):
    results = cluster.map(time.sleep, [0.0, *[0.2] * 1000])
    next(results)
    results.close()
    assert idle(cluster)


def idle(cluster) -> bool:
    """Whether workers soon have nothing left to do."""
    for _ in range(200):
        if not any(cluster.client.processing().values()):
            return True
        time.sleep(0.05)
    return False


def test_an_interruption_cancels_and_keeps_what_is_finished(cluster, monkeypatch, vit, paths, tmp_path):
    monkeypatch.setattr(cluster_module, "PHOTOGRAPHS_PER_TASK", 2)
    store = FeatureStore(tmp_path, FeatureSpec.of(vit, short_side=48))

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.extract_to_store(paths, vit, store, progress=interrupt)
    assert idle(cluster)
    store.refresh()
    assert 2 <= len(store) < 59


@pytest.mark.slow(reason="waits for workers")
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no signal masks")
def test_local_workers_ignore_ctrl_c():
    with connected("local", workers=1) as cluster:
        (blocked,) = cluster.client.run(signal.pthread_sigmask, signal.SIG_BLOCK, []).values()
        assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow(reason="kills workers")
def test_a_task_that_kills_every_worker_raises_cluster_error(local, cluster, monkeypatch):
    monkeypatch.setattr(local.scheduler, "allowed_failures", 0)
    with pytest.raises(ClusterError, match="brought down several workers.*memory"):
        list(cluster.map(_kill_itself, [1, 2]))


def _process(_: int) -> int:
    return os.getpid()


def _kill_itself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow(reason="waits for workers")
def test_errors_of_workers_are_raised_here(cluster):
    x = np.random.default_rng(1).standard_normal((20_000, 4)).astype(np.float32)
    x[15_000] = np.nan
    with pytest.raises(UsageError, match="row 15000 .* not finite"):
        KMeans(3).fit(x, mapper=cluster.map)


def _pretend(version: str) -> None:
    tasks.__version__ = version


def test_a_worker_of_another_version_is_refused(local, cluster, monkeypatch):
    own = vitnp.__version__
    worker = next(iter(cluster.client.nthreads()))
    cluster.client.run(_pretend, "9.9", workers=[worker])
    try:
        refusal = rf"the worker {worker} has vitnp 9\.9, not {own} as here; install"
        with pytest.raises(ClusterError, match=refusal), connected(local.scheduler_address, cache="cache"):
            pass
        with pytest.raises(ClusterError, match=r"a worker has vitnp 9\.9"):  # one that joined when all was under way
            list(cluster.map(abs, range(100)))
    finally:
        cluster.client.run(_pretend, own)


def test_a_checkpoint_that_is_another_on_the_workers_is_refused(cluster, checkpoint, paths, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    vit = load_vit(path)
    config = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=2, hidden=64, class_position=True, dtype=np.float32)
    write_safetensors(path, weights, {})
    store = FeatureStore(tmp_path, FeatureSpec.of(vit, short_side=48))
    with pytest.raises(CheckpointError, match="other.safetensors is another checkpoint; put the same one"):
        cluster.extract_to_store(paths, vit, store)
    path.unlink()
    with pytest.raises(CheckpointError, match="a worker cannot load the network"):
        cluster.extract_to_store(paths, vit, store)


def test_a_network_without_a_file_is_refused(cluster, vit, paths, tmp_path):
    unnamed = type(vit)(vit.config, vit.weights)
    with pytest.raises(UsageError, match="made in memory; save it"):
        cluster.extract_to_store(paths, unnamed, FeatureStore(tmp_path, FeatureSpec.of(unnamed, short_side=48)))


def test_a_store_that_workers_cannot_see_is_refused(cluster, monkeypatch, vit, paths, tmp_path):
    store = FeatureStore(tmp_path / "here alone", FeatureSpec.of(vit, short_side=48))
    monkeypatch.setattr(store, "make_writable", lambda: None)  # so it isn't there for the workers
    with pytest.raises(ClusterError, match="a worker does not see .*here alone; give --cache"):
        cluster.extract_to_store(paths, vit, store)


@pytest.mark.slow(reason="waits for a timeout")
def test_no_scheduler_answers(monkeypatch):
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 0.5)
    for address in ["tcp://127.0.0.1:9", "nonsense", "tcp://127.0.0.1"]:
        with (
            pytest.raises(
                ClusterError, match=rf"no dask scheduler answers at {address} \(.+\); start one with `dask scheduler`"
            ),
            connected(address, cache="cache"),
        ):
            pass


@pytest.mark.slow(reason="waits for workers")
def test_a_scheduler_without_workers(monkeypatch):
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 2)
    with (
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=100
        ) as empty,
        pytest.raises(ClusterError, match="has no workers; start some with `dask worker"),
        connected(empty.scheduler_address, cache="cache"),
    ):
        pass


def test_without_dask_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'vitnp\[dask\]'"), connected("local"):
        pass


@pytest.mark.slow(reason="waits for workers")
def test_other_machines_need_a_cache():
    with pytest.raises(UsageError, match="--cache"), connected("tcp://127.0.0.1:8786"):
        pass


@pytest.mark.slow(reason="starts workers")
def test_stored_keys_are_rows_of_the_store(vit, paths, tmp_path):
    store = FeatureStore(tmp_path, FeatureSpec.of(vit, short_side=48))
    hashes = extract_to_store(paths[:9], vit, store).hashes
    keys = StoredKeys(store, hashes)
    whole = np.concatenate([store.entry(name).keys for name in hashes])
    assert keys.shape == whole.shape and keys.dtype == whole.dtype
    ends = np.cumsum([0, *map(len, (store.entry(name).keys for name in hashes))])
    bounds = [*ends, *(ends[:-1] + 7), *(ends[1:] - 1)]
    for first in bounds:
        for stop in bounds:
            part = keys.part(slice(int(first), int(stop)))
            if first >= stop:
                continue
            assert np.array_equal(keys[int(first) : int(stop)], whole[first:stop])
            assert np.array_equal(part[:], whole[first:stop]) and part.shape[0] == stop - first
            assert len(part.photographs) == np.sum((ends[:-1] < stop) & (ends[1:] > first))
            again = pickle.loads(pickle.dumps(part.part(slice(0, int(stop - first)))))
            assert np.array_equal(again[0:5], whole[first:stop][:5])
