"""What is to be reached on an H200, and whether it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.cpu.comparison import met
from bench.gpu import attention, kmeans, network
from bench.gpu.ceilings import rates

Record = Mapping[str, object]

# Shares of the copy's rate, by type and clusters, for a million rows and more.
SHARES = {("fp32", 2): 0.8, ("fp32", 8): 0.8, ("fp32", 27): 0.6, ("fp16", 2): 0.7, ("fp16", 8): 0.7, ("fp16", 27): 0.6}
# How many times as long CuPy's route takes, by clusters.
TIMES_CUPY = {2: 2.0, 8: 2.0, 27: 2.0, 64: 2.0, 256: 1.0}
MANY_ROWS = 1_000_000
ATTENTION_FLOPS = 200e12


@dataclasses.dataclass(frozen=True)
class Bar:
    """One thing to be reached.

    Attributes
    ----------
    what : str
    least : float
    measured : float or None
        None where it couldn't be measured.
    """

    what: str
    least: float
    measured: float | None

    @property
    def met(self) -> bool | None:
        """Whether it's reached within 3 %; None where there is no figure."""
        return None if self.measured is None else met(self.measured, self.least)

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return "not measured" if self.met is None else "met" if self.met else "MISSED"


def bars(records: Sequence[Record]) -> list[Bar]:
    """All bars, from the records of all steps.

    Parameters
    ----------
    records : sequence of dict
        See :mod:`bench.gpu.report`.

    Returns
    -------
    list of Bar
    """
    return [*_kmeans(records), *_network(records), _attention(records)]


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
                    yield Bar(f"{label}: share of the copy's rate", SHARES[dtype, clusters], share)
                ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
                yield Bar(f"{label}: times as fast as CuPy's route", TIMES_CUPY[clusters], ratio)


def _network(records: Sequence[Record]) -> Iterator[Bar]:
    case = {"model": "ViT-S/8", "side": network.BAR.side, "batch": network.BAR.batch, "want": "key"}
    ours, theirs = (find(records, case, name) for name in (network.OURS, network.TORCH))
    ratio = theirs["seconds"] / ours["seconds"] if ours and theirs else None
    yield Bar("ViT-S/8, 480 px, batch 16, keys in fp16: times as fast as torch, eager", 1.0, ratio)


def _attention(records: Sequence[Record]) -> Bar:
    images, tokens, dtype = attention.CASES[0]
    ours = find(records, {"images": images, "tokens": tokens, "dtype": dtype}, attention.OURS)
    rate = ours["rate"] / 1e12 if ours else None
    return Bar(f"attention, {images} x {tokens} tokens, {dtype}: TFLOP/s", ATTENTION_FLOPS / 1e12, rate)


def find(records: Iterable[Record], case: Mapping[str, object], contender: str) -> Record | None:
    """The time of a contender for a case, of which some facts are given."""
    for record in records:
        if record["kind"] == "time" and record["contender"] == contender and case.items() <= record["case"].items():
            return record
    return None
