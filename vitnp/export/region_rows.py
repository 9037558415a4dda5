"""Describe the regions of photographs by their features, several photographs in flight."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from vitnp import kernels
from vitnp.errors import ImageError, OutputError
from vitnp.export import naming
from vitnp.export.region_maps import MaskFolder, RegionMap, regions_of_result
from vitnp.export.region_table import RegionTable
from vitnp.features.batching import Job
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stored_stream import stream_through_store
from vitnp.io.decode import decode_image
from vitnp.io.find import Photograph
from vitnp.io.headers import pixels_of
from vitnp.io.source import fingerprint
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method.collection import Collection
from vitnp.method.regions import RegionRule, region_patches
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline, image_memory_error
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The regions of one photograph.

    Attributes
    ----------
    index : int
        Position of the photograph in the list.
    photograph : Path
    rows : RegionTable, optional
        A row for each region; None after an error.
    error : ImageError or OutputError, optional
    capped : bool
        Whether the patch grid was made coarser to stay within ``max_tokens``.
    """

    index: int
    photograph: Path
    rows: RegionTable | None = None
    error: ImageError | OutputError | None = None
    capped: bool = False


class RegionFeatures:
    """Describe the regions of photographs by their features.

    Parameters
    ----------
    vit : ViT
    settings : Settings, optional
        How masks are made, see :class:`vitnp.options.Settings`; the features are those that they are made from.
    collection : "auto", None or "none", path or Collection
        As for :func:`vitnp.segment_image`.
    masks : path, optional
        Folder of masks to use instead of vitnp's own, see :class:`vitnp.export.region_maps.MaskFolder`.
    regions : {"image", "components"}
        Whether a mask without objects and classes is one region, or each of its connected components is one.
    cache : path, optional
        Folder that keeps the features for the next run.

    Attributes
    ----------
    spec : FeatureSpec
        Features to extract.
    """

    def __init__(
        self,
        vit: ViT,
        settings: Settings | None = None,
        *,
        collection: Collection | str | os.PathLike[str] | None = "auto",
        masks: str | os.PathLike[str] | None = None,
        regions: str = "image",
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.vit, self.settings = vit, settings or Settings()
        self._rule = RegionRule(regions)
        self._masks = None if masks is None else Path(masks)
        vit.require_final_norm(("cls",))
        self._pipeline: ImagePipeline | None = None
        if self._masks is None:
            self._pipeline = ImagePipeline.create(vit, self.settings, collection)
            # The masks are those of `vitnp segment`, to the bit: they are made from the same features.
            self.spec = dataclasses.replace(
                FeatureSpec.of(vit, **self.settings.of_features), precision=self._pipeline.spec.precision
            )
        else:
            self.spec = FeatureSpec.of(vit, **self.settings.of_features)
        self._store = None if cache is None else FeatureStore(Path(cache), self.spec)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the rows depend on besides the photographs."""
        own = {} if self._pipeline is None else self._pipeline.parameters
        return {
            "model": self.vit.name,
            **self.spec.as_stored(),
            **own,
            "masks": None if self._masks is None else os.fspath(self._masks),
            "split": self._rule.how,
        }

    def table(self, outcomes: Sequence[Outcome]) -> RegionTable:
        """Return the rows of all outcomes in the order of the photographs."""
        in_order = sorted(outcomes, key=lambda outcome: outcome.index)
        rows = [outcome.rows for outcome in in_order if outcome.rows is not None]
        return RegionTable.concatenated(rows, self.vit.config.width, self.spec.facet)

    def outcomes(
        self, photographs: Sequence[Photograph], *, n_threads: int | None = None, batch: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Describe the regions of photographs; several are in flight.

        Yields
        ------
        Outcome
            One per photograph, in the order in which they are finished.

        Raises
        ------
        OutputError
            If the cache cannot be written.
        DeviceError
            If a GPU's memory does not hold a single photograph.
        """
        n_threads = pool.resolve_n_threads(n_threads)
        stems = [] if self._masks is None else naming.output_stems(photographs, self._masks)

        def describe(job: Job) -> Outcome:
            source = photographs[job.index]
            stem = stems[job.index] if stems else source.path
            try:
                if job.error is not None or job.features is None:
                    raise job.error or ImageError(f"{source.path}: it has no features; run again")
                with (
                    blas.one_blas_thread(),
                    pool.large_image_lock(pixels_of(source.path)),
                    image_memory_error(self.vit.device),
                ):
                    regions = self._regions(source, stem, job.features)
                    rows = region_rows(self.vit, source.path, job.features, regions, self.spec.facet)
                return Outcome(job.index, source.path, rows, capped=job.features.capped)
            except (ImageError, OutputError) as error:
                return Outcome(job.index, source.path, error=error)

        with (
            blas.one_blas_thread(),
            contextlib.closing(
                stream_through_store(
                    photographs, self.vit, self.spec, self._store,
                    n_threads=n_threads, batch=batch, max_pixels=self.settings.max_pixels,
                )
            ) as jobs,
            contextlib.closing(pool.map_ordered(describe, jobs, n_threads)) as outcomes,
        ):  # fmt: skip
            yield from outcomes

    def _regions(self, source: Photograph, stem: Path, features: FeatureRecord) -> RegionMap:
        if self._masks is not None:
            return MaskFolder(self._masks, self._rule).regions(stem, source.relative, features.size)
        assert self._pipeline is not None  # made where no masks are given
        if fingerprint(source) != features.photograph:
            raise ImageError(f"{source.path}: the file has changed during the run; run again")
        # Its notices were logged when the features were extracted.
        image = decode_image(source.path, max_pixels=self.settings.max_pixels, alpha=self.settings.alpha)
        result = self._pipeline.segment(image, features, Stopwatch(self.vit.device))
        return regions_of_result(result, self._rule)


def region_rows(
    vit: ViT, photograph: os.PathLike[str] | str, features: FeatureRecord, regions: RegionMap, facet: str = "key"
) -> RegionTable:
    """Return the table of one photograph's regions.

    Parameters
    ----------
    vit : ViT
    photograph : path
    features : FeatureRecord
        With the arrays that regions need.
    regions : RegionMap
    facet : str
        Name of the column of mean features.

    Returns
    -------
    RegionTable
        The masked CLS of a region is the CLS token that :meth:`vitnp.vit.model.ViT.region_cls` computes with attention
        restricted to its patches; the mean feature is that of its patches, in float64, not normalized. Its patches are
        those that it covers by half or more, or the one that it covers most.
    """
    patches = region_patches(regions.labels, features.grid)
    count = len(patches)
    cls = vit.region_cls(features.cls_state, features.last_key, features.value, patches, size=features.pixels)
    keys = np.asarray(kernels.to_host(features.keys), np.float64)
    weights = patches / patches.sum(axis=1, keepdims=True)
    boxes = np.zeros((count, 4), np.int32)
    for index, (rows, columns) in enumerate(ndimage.find_objects(regions.labels.astype(np.int32), count) or []):
        boxes[index] = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
    return RegionTable(
        photograph=[os.fspath(photograph)] * count,
        fingerprint=[features.photograph] * count,
        region=regions.numbers,
        label=regions.classes,
        area=np.bincount(regions.labels.ravel(), minlength=count + 1)[1:].astype(np.int64),
        box=boxes,
        confidence=regions.confidences,
        cls=cls.astype(np.float32),
        feature=(weights @ keys).astype(np.float32),
        facet=facet,
    )
