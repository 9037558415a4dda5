"""What the commands share that compare photographs of folders: ``vitnp similar`` and ``vitnp duplicates``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitnp.cli import shared
from vitnp.errors import VitnpError

if TYPE_CHECKING:
    from vitnp.io.find import Photograph

# Options of the features that vectors of whole photographs depend on.
FEATURES = ("short_side", "stride", "max_tokens", "max_pixels", "alpha")


def search_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of searches as arguments of :func:`vitnp.search_similar` and :func:`vitnp.find_duplicates`."""
    return {name: getattr(args, name) for name in (*FEATURES, "of", "index", "cache", "n_threads", "batch")}


def report_left_out(
    args: argparse.Namespace,
    photographs: Sequence[Photograph],
    failed: Mapping[int, VitnpError],
    without_object: Sequence[int],
    failures: list[VitnpError],
) -> None:
    """Add the photographs that could not be compared to the failures, and say how many show no object.

    With --json the errors are printed at once.
    """
    for position, error in failed.items():
        failures.append(error)
        shared.report_failure(error, as_json=args.json, photograph=photographs[position].path)
    if without_object:
        count, example = len(without_object), photographs[without_object[0]].path
        shared.say(f"left out, because no object was found: {count} photographs, such as {example}", quiet=args.quiet)
