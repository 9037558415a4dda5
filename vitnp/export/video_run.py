"""Segment a clip and write its outputs: files of each frame, a preview, and a record of all frames."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitnp import __version__
from vitnp.errors import ImageError, OutputError
from vitnp.export.naming import output_stems
from vitnp.export.outcome import Facts, Outcome
from vitnp.io import headers, stamp, write
from vitnp.io.find import Photograph
from vitnp.io.part_files import remove_abandoned
from vitnp.io.path_text import ascii_json
from vitnp.io.spool import Spool
from vitnp.kernels.threads import pool
from vitnp.masks.cutout_options import DEFAULT_CUTOUT, CutoutOptions
from vitnp.outputs import expected_stamp, output_paths, write_outputs
from vitnp.video.frames import Frame, check_sizes, frame_files, read_frames
from vitnp.video.pipeline import FrameResult, VideoPipeline
from vitnp.video.preview import RATE, Preview, can_preview, render, writing_preview


@dataclasses.dataclass(frozen=True)
class FrameOutcome(Outcome):
    """Outcome of one frame; ``photograph`` is its file, or the video.

    Attributes
    ----------
    index : int
        Position in the clip, from 0.
    time : float or None
        Seconds from the beginning of a video.
    """

    index: int = 0
    time: float | None = None
    picture: np.ndarray | None = dataclasses.field(default=None, repr=False)
    entry: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class VideoRun:
    """One run over a clip.

    Parameters
    ----------
    clip : Path
        A video, or a folder of frames.
    fit : callable
        Returns the pipeline, after fitting a collection if need be.
    which : sequence of str
        Kinds of output of each frame, see :meth:`vitnp.result.Segmentation.save`.
    out : Path, optional
        Folder of the outputs; by default that of the frames, or for a video one of its name beside it.
    settings : mapping
        Everything that the outputs depend on besides the frames.
    overwrite : bool
        Redo finished work, and replace files that vitnp did not write.
    cutout : CutoutOptions
    n_threads : int
    max_pixels : int

    Attributes
    ----------
    unchanged : bool
        Whether an earlier run had finished everything.
    """

    clip: Path
    fit: Callable[[], VideoPipeline]
    which: Sequence[str]
    out: Path | None
    settings: Mapping[str, object]
    overwrite: bool = False
    cutout: CutoutOptions = DEFAULT_CUTOUT
    n_threads: int = 1
    unchanged: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        self._is_folder = self.clip.is_dir()
        self._stems: list[Path] = []
        self._files: list[Path] = []
        default = self.clip if self._is_folder else self.clip.with_suffix("")
        self.folder = default if self.out is None else self.out
        name = self.clip.resolve().name if self._is_folder else self.clip.stem
        self.preview = self.folder / f"{name}_preview.mp4" if can_preview() else None
        self.record = self.folder / f"{name}_video.json"

    def outcomes(self) -> Generator[FrameOutcome, None, None]:
        """Yield one outcome per frame, in order.

        Raises
        ------
        ImageError
            If there are no frames, or their sizes differ.
        OutputError
            If files of another program are in the way, or the outputs of the clip cannot be written.
        UsageError
            If PyAV is needed and not installed.
        """
        if self._is_folder:
            self._files = frame_files(self.clip)
            check_sizes(self._files)
            self._stems = output_stems([Photograph(file, Path(file.name)) for file in self._files], self.folder)
        key = self._key()
        earlier = None if self.overwrite else self._earlier(key)
        if earlier is not None:
            self.unchanged = True
            yield from earlier
            return
        self._check_outputs()
        pipeline = self.fit()
        write.prepare_folder(self.folder)
        remove_abandoned(self.folder)
        with contextlib.ExitStack() as stack:
            spool = stack.enter_context(Spool(self.record))
            preview = None if self.preview is None else stack.enter_context(writing_preview(self.preview))
            for outcome in self._written(pipeline):
                self._add(outcome, spool, preview)
                yield dataclasses.replace(outcome, picture=None)
            self._write_record(spool, key)
        if self.preview is not None:
            write.write_sidecar(self.preview, {"vitnp:parameters": key})

    def _written(self, pipeline: VideoPipeline) -> Iterator[FrameOutcome]:
        """Segment all frames, and write the files of each."""
        parameters = stamp.parameters_hash(pipeline.parameters)
        has_classes = pipeline.image.collection is not None and pipeline.image.collection.prototypes is not None

        def files(frame: Frame) -> dict[str, Path]:
            return output_paths(self._stem(frame), self.which, labels=has_classes)

        def done_before(frame: Frame, fingerprint: str) -> bool:
            if self.overwrite or "mask" not in self.which or pipeline.image.settings.instances:
                return False
            expected = {"vitnp:parameters": parameters, "vitnp:photograph": fingerprint}
            return all(
                stamp.stamp(file) == expected_stamp(kind, expected, self.cutout) for kind, file in files(frame).items()
            )

        def finish(each: FrameResult) -> FrameOutcome:
            return self._finish(each, files(each.frame))

        results = pipeline.segment(
            read_frames(self.clip, max_pixels=pipeline.image.settings.max_pixels), skip=done_before
        )
        with (
            contextlib.closing(results),
            contextlib.closing(pool.map_ordered(finish, results, self.n_threads)) as outcomes,
        ):
            yield from outcomes

    def _finish(self, each: FrameResult, files: dict[str, Path]) -> FrameOutcome:
        """Write the files of one frame, and draw it for the preview."""
        frame = each.frame
        photograph = self._files[frame.index] if self._is_folder else self.clip
        where: dict[str, Any] = {"index": frame.index, "time": frame.seconds}
        facts, result = None, each.result
        try:
            if each.error is not None:
                raise each.error
            if result is not None:
                if not self.overwrite:
                    stamp.refuse_foreign(files.values())
                write_outputs(result, self._stem(frame), self.which, self.cutout)
                facts, mask, labels = Facts.of(result, {}), result.mask, result.labels
            else:
                mask, labels = _read(files["mask"]) > 0, _read(files["labels"]) if "labels" in files else None
        except (ImageError, OutputError) as error:
            return FrameOutcome(photograph, {}, error, entry={"error": str(error)}, **where)
        assert each.image is not None
        entry = {
            "outputs": {kind: file.name for kind, file in files.items()},
            "share": round(float(np.count_nonzero(mask) / mask.size), 6),
            "confidence": round(each.confidence, 6),
            **({} if labels is None else {"classes": [int(label) for label in np.unique(labels) if label]}),
        }
        picture = None if self.preview is None else render(each.image.rgb, mask, labels)
        return FrameOutcome(photograph, files, None, facts, picture=picture, entry=entry, **where)

    def _add(self, outcome: FrameOutcome, spool: Spool, preview: Preview | None) -> None:
        """Add a frame to the preview and to the record."""
        if preview is not None and outcome.picture is not None:
            preview.add(outcome.picture, outcome.index / RATE if outcome.time is None else outcome.time)
        name = {"photograph": outcome.photograph.name} if self._is_folder else {"seconds": outcome.time}
        spool.write(
            (",\n    " if outcome.index else "\n    ") + ascii_json({"frame": outcome.index, **name, **outcome.entry})
        )

    def _write_record(self, spool: Spool, key: str) -> None:
        head = {
            "software": f"vitnp {__version__}",
            "clip": self.clip.name,
            "preview": None if self.preview is None else self.preview.name,
            "key": key,
        }
        with write.replacing(self.record) as file:
            file.write((ascii_json(head, indent=2)[:-2] + ',\n  "frames": [').encode())
            spool.copy_to(file)
            file.write(b"\n  ]\n}\n")

    def _stem(self, frame: Frame) -> Path:
        return self._stems[frame.index] if self._is_folder else self.folder / frame.name

    def _key(self) -> str:
        """Return the hash of everything that the outputs depend on: frames, settings and kinds of output."""
        content = [_file_hash(file) for file in self._files] if self._is_folder else headers.file_hash(self.clip)
        kinds = {"which": list(self.which), "cutout": dict(self.cutout.stamp)}
        return stamp.parameters_hash({"content": content, **kinds, "settings": self.settings})

    def _earlier(self, key: str) -> list[FrameOutcome] | None:
        """Return the outcomes of an earlier run that finished the same work, None if there is none."""
        record = _read_record(self.record)
        if record.get("key") != key or (self.preview is not None and not stamp.is_own_output(self.preview)):
            return None
        outcomes = []
        try:
            for entry in record["frames"]:
                files = {kind: self.folder / name for kind, name in entry["outputs"].items()}
                if not all(stamp.is_own_output(file) for file in files.values()):
                    return None
                photograph = self._files[entry["frame"]] if self._is_folder else self.clip
                outcomes.append(
                    FrameOutcome(photograph, files, index=entry["frame"], time=entry.get("seconds"), entry=entry)
                )
        except (KeyError, TypeError, IndexError, AttributeError):  # a frame failed, or the record is damaged
            return None
        return outcomes

    def _check_outputs(self) -> None:
        """Check before any work that no file of another program is in the way.

        Raises
        ------
        OutputError
            If there is one.
        """
        if self.overwrite:
            return
        if self.record.exists() and not str(_read_record(self.record).get("software")).startswith("vitnp "):
            raise stamp.foreign_error(self.record)
        first = [self.preview] if self.preview is not None else []
        stems = self._stems or [self.folder / f"{self.clip.stem}_000000"]
        for stem in stems:
            first += output_paths(stem, self.which).values()
        stamp.refuse_foreign(first)


def _file_hash(path: Path) -> str:
    try:
        return headers.file_hash(path)
    except ImageError as error:  # the frame will fail, and the others go on
        return str(error)


def _read_record(path: Path) -> dict[str, Any]:
    """Return the record of an earlier run; empty if there is none, or it is damaged."""
    try:
        record = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _read(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)
