"""Performance targets ("bars") on an H200, and whether they are met."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.cpu.comparison import met
from bench.gpu import agreement, attention, collection, folder, image_level, kmeans, network
from bench.gpu.ceilings import rates

Record = Mapping[str, object]

# Fractions of the rate of a copy, by dtype and number of clusters, for a million rows and more.
SHARES = {("fp32", 2): 0.8, ("fp32", 8): 0.8, ("fp32", 27): 0.6, ("fp16", 2): 0.7, ("fp16", 8): 0.7, ("fp16", 27): 0.6}
# Speedup over the CuPy implementation, by number of clusters.
TIMES_CUPY = {2: 2.0, 8: 2.0, 27: 2.0, 64: 2.0, 256: 1.0}
MANY_ROWS = 1_000_000
ATTENTION_FLOPS = 200e12
# Photographs a second in the image level, the host's part included: a quarter of the time that 500 a second leave.
IMAGE_LEVELS = 2000.0
PHOTOGRAPHS = 500.0  # per second, with decoding, on 16 cores and one GPU
COLLECTION = 10.0  # times as fast as two cores of a CPU


@dataclasses.dataclass(frozen=True)
class Bar:
    """One performance target.

    Attributes
    ----------
    what : str
    least : float
        Smallest value that meets the target.
    measured : float or None
        Measured value; None if it could not be measured.
    step : str
        Step that measures it.
    at_most : bool
        Whether `least` is the largest value that meets the target instead, which has no tolerance.
    """

    what: str
    least: float
    measured: float | None
    step: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the target is met, a smallest value within 3 %; None if nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.least if self.at_most else met(self.measured, self.least)

    @property
    def verdict(self) -> str:
        """Return "met", "MISSED" or "not measured"."""
        return "not measured" if self.met is None else "met" if self.met else "MISSED"


def bars(records: Sequence[Record]) -> list[Bar]:
    """Return all targets, evaluated with the records of all steps.

    Parameters
    ----------
    records : sequence of dict
        See :mod:`bench.gpu.report`.

    Returns
    -------
    list of Bar
    """
    return [
        *_kmeans(records),
        _image_level(records),
        _collection(records),
        *_network(records),
        _attention(records),
        _folder(records),
        *_masks(records),
    ]


def why_not(bar: Bar, records: Sequence[Record]) -> str:
    """Return why a target was not measured: what its step says, or that it was not run."""
    said = [record for record in records if record["step"] == bar.step]
    whys = [str(record["why"]) for record in said if record["kind"] in ("skipped", "missing")]
    return whys[0] if whys else "no time for it" if said else f"the step {bar.step} was not run"


def _kmeans(records: Sequence[Record]) -> Iterator[Bar]:
    copy = rates(records).get("copy")
    for rows in sorted(rows for rows in kmeans.ROWS if rows >= MANY_ROWS):
        for dtype in ("fp32", "fp16"):
            for clusters in kmeans.CLUSTERS:
                case = {"rows": rows, "width": kmeans.WIDTH, "clusters": clusters, "dtype": dtype}
                ours, theirs = (find(records, case, name) for name in (kmeans.OURS, kmeans.CUPY))
                label = f"k-means, {rows:,} rows, {dtype}, K = {clusters}"
                if (dtype, clusters) in SHARES:
                    share = ours["rate"] / copy if ours and copy else None
                    yield Bar(f"{label}: share of the copy's rate", SHARES[dtype, clusters], share, "kmeans")
                ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
                yield Bar(f"{label}: times as fast as CuPy's route", TIMES_CUPY[clusters], ratio, "kmeans")


def _image_level(records: Sequence[Record]) -> Bar:
    ours = find(records, {"stage": "image level", "batch": image_level.BATCH}, image_level.OURS)
    label = f"image level, batch {image_level.BATCH}: photographs a second"
    return Bar(label, IMAGE_LEVELS, ours["rate"] if ours else None, "image_level")


def _collection(records: Sequence[Record]) -> Bar:
    ours, theirs = (
        find(records, {"collection": collection.PHOTOGRAPHS}, name) for name in (collection.OURS, collection.CPU)
    )
    ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
    label = f"--levels all, {collection.PHOTOGRAPHS:,} stored features: times as fast as 2 cores"
    return Bar(label, COLLECTION, ratio, "collection")


def _masks(records: Sequence[Record]) -> Iterator[Bar]:
    """Yield the differences of mean IoU from the CPU's; or, without true masks, 1 - IoU with its masks."""
    for precision in agreement.MASK_PRECISIONS:
        apart = [
            record["apart"] for record in records if record["kind"] == "check" and record.get("masks") == precision
        ]
        label = f"masks in {precision}: difference of mean IoU from the CPU's"
        yield Bar(label, agreement.MASKS_WITHIN, apart[0] if apart else None, "masks", at_most=True)


def _network(records: Sequence[Record]) -> Iterator[Bar]:
    case = {"model": "ViT-S/8", "side": network.BAR.side, "batch": network.BAR.batch, "want": "key"}
    ours, theirs = (find(records, case, name) for name in (network.OURS, network.TORCH))
    ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
    yield Bar("ViT-S/8, 480 px, batch 16, keys in fp16: times as fast as torch, eager", 1.0, ratio, "network")
    case = {"model": "ViT-S/16", "side": network.SMALL.side, "batch": network.SMALL.batch, "want": "key"}
    ours, theirs = (find(records, case, name) for name in (network.OURS, network.TORCH))
    ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
    yield Bar("ViT-S/16, 224 px, batch 1, keys in fp16: times as fast as torch, eager", 1.0, ratio, "network")


def _folder(records: Sequence[Record]) -> Bar:
    ours = find(records, {"device": "cuda", "size": list(folder.SIZE)}, "vitnp")
    rate = ours["rate"] if ours else None
    return Bar("folder, 500 x 375, 16 cores: photographs per second", PHOTOGRAPHS, rate, "folder")


def _attention(records: Sequence[Record]) -> Bar:
    images, tokens, dtype = attention.CASES[0]
    ours = find(records, {"images": images, "tokens": tokens, "dtype": dtype}, attention.OURS)
    rate = ours["rate"] / 1e12 if ours else None
    return Bar(f"attention, {images} x {tokens} tokens, {dtype}: TFLOP/s", ATTENTION_FLOPS / 1e12, rate, "attention")


def find(records: Iterable[Record], case: Mapping[str, object], contender: str) -> Record | None:
    """Find the time of a contender for the first case with the given facts."""
    for record in records:
        if record["kind"] == "time" and record["contender"] == contender and case.items() <= record["case"].items():
            return record
    return None
