"""``vitnp watch FOLDER``: segment the photographs that arrive in a folder."""

from __future__ import annotations

import argparse
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitnp.cli import arguments, segment, shared
from vitnp.errors import ImageError, OutputError, UsageError, VitnpError
from vitnp.options import OUTPUTS, enumerate_words

# A file is complete when its size has not changed for so many seconds.
SETTLED_SECONDS = 0.5


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp watch",
        "Segment the photographs in a folder, and those that arrive, until Ctrl-C.",
        usage="vitnp watch [options] FOLDER",
        examples=(
            "vitnp watch INBOX/ --out MASKS/ --save mask,cutout",
            "vitnp watch INBOX/ --collection holiday.safetensors",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments.add_options(parser, "output", "out", "save", "background", "crop", "overwrite")
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "method", *arguments.METHOD, "collection")
    arguments.add_options(parser, "run", "n_threads", "quiet", "json")
    return parser


def _watch(args: argparse.Namespace) -> int:
    """Segment what is in the folder and what arrives, until the process is interrupted."""
    which = [name for name in dict.fromkeys(args.save.split(",")) if name]
    if not which or not set(which) <= set(OUTPUTS):
        raise UsageError(f"--save must list some of {enumerate_words(OUTPUTS)}, got {args.save}")
    arguments.check_cutout_options(args, which)
    if not args.folder.is_dir():
        raise UsageError(f"{args.folder}: this is not a folder; name one that exists")
    observer_class = _observer_class()
    arrivals: queue.Queue[Path] = queue.Queue()
    observer = observer_class()
    observer.schedule(_handler(arrivals.put), str(args.folder), recursive=True)
    observer.start()  # before the first look, so that nothing arrives unseen in between
    try:
        args.n_threads = arguments.n_threads(args)
        args.levels = "single"
        vit = arguments.load_model(args)
        collection = arguments.load_collection(args, vit)
        shared.say(f"watching {args.folder}; Ctrl-C ends it", quiet=args.quiet)
        _segment_paths([args.folder], args, vit, collection, which)
        for path in _settled(arrivals):
            _segment_paths([path], args, vit, collection, which)
    finally:
        observer.stop()
        observer.join()
    return shared.EXIT_OK


main = shared.Command(build_parser, _watch)
console = main.console


def _observer_class() -> Any:
    """Return the class that observes folders.

    Raises
    ------
    UsageError
        If the package watchdog is not installed.
    """
    try:
        from watchdog.observers import Observer
    except ImportError:
        raise UsageError("vitnp watch needs the package watchdog; `pip install 'vitnp[watch]'` installs it") from None
    return Observer


def _handler(arrived: Callable[[Path], None]) -> Any:
    """Return a handler that passes on each file that is created, changed or moved here."""
    from watchdog.events import FileSystemEventHandler

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: Any) -> None:
            if not event.is_directory and event.event_type in ("created", "modified", "moved", "closed"):
                arrived(Path(event.dest_path or event.src_path))

    return Handler()


def _settled(arrivals: queue.Queue[Path]) -> Iterator[Path]:
    """Yield each file when it is complete: once after its last change. Files that vanish before are left out."""
    changed: dict[Path, tuple[float, int]] = {}  # time of the last change that was seen, and the size then
    while True:
        try:
            changed[arrivals.get(timeout=SETTLED_SECONDS / 2)] = (time.monotonic(), -1)
            continue
        except queue.Empty:
            pass
        for path, (since, size) in list(changed.items()):
            try:
                now = path.stat().st_size
            except OSError:
                del changed[path]
                continue
            if now != size:
                changed[path] = (time.monotonic(), now)
            elif time.monotonic() - since >= SETTLED_SECONDS:
                del changed[path]
                yield path


def _segment_paths(paths: list[Path], args: argparse.Namespace, vit: Any, collection: Any, which: list[str]) -> None:
    """Segment photographs, and report each; what is no photograph, or ours, is passed over in silence."""
    from vitnp.export import naming
    from vitnp.export.per_image import segment_files
    from vitnp.io.find import find_photographs

    failures: list[ImageError] = []
    found = find_photographs([args.folder], failures=failures)
    # The names of all decide: what arrives must not replace the outputs of another photograph.
    stems = dict(zip(found, naming.output_stems(found, args.out)))
    photographs = [photograph for photograph in found if args.folder in paths or photograph.path in paths]
    outcomes = segment_files(
        photographs,
        [stems[photograph] for photograph in photographs],
        vit,
        which,
        settings=arguments.settings(args),
        collection=collection,
        overwrite=args.overwrite,
        n_threads=args.n_threads,
        cutout=arguments.cutout_options(args),
    )
    for outcome in outcomes:
        error: VitnpError | OutputError | None = outcome.error
        if error is None:
            segment.report(args, outcome)
        else:
            shared.report_failure(error, as_json=args.json, photograph=outcome.photograph)
            if not args.json:
                shared.say_error(error)
