"""The steps of ``python -m bench gpu``, each in a separate process, so that a crash does not affect other steps.

``python -m bench.gpu.steps NAME --records FILE --seconds S`` runs one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import signal
import sys
from pathlib import Path

from bench.gpu.report import Report


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the benchmark.

    Attributes
    ----------
    name : str
    function : str
        ``module:function`` in this package, called with the report and the options.
    seconds : float
        Time limit.
    timing : bool
        True for measurements, which run alone on the GPU. Other steps run in parallel before them.
    extra : bool
        True if the step runs only on request.
    """

    name: str
    function: str
    seconds: float
    timing: bool = True
    extra: bool = False


FIRST = Step("device", "programs:device", 90, timing=False)
# The most important steps come first, in case the run is stopped.
STEPS = (
    Step("keys", "agreement:keys", 100, timing=False),
    Step("tests", "programs:tests", 120, timing=False),
    Step("masks", "agreement:masks", 120, timing=False),
    Step("memcheck", "sanitizer:memcheck", 110, timing=False),
    Step("racecheck", "sanitizer:racecheck", 110, timing=False),
    Step("initcheck", "sanitizer:initcheck", 110, timing=False),
    Step("large", "agreement:large", 60, timing=False),
    Step("stages", "stages:run", 30),
    Step("ceilings", "ceilings:run", 20),
    Step("kmeans", "kmeans:run", 70),
    Step("image_level", "image_level:run", 15),
    Step("collection", "collection:run", 20),
    Step("attention", "attention:run", 25),
    Step("network", "network:run", 60),
    Step("layers", "layers:run", 15),
    Step("refinement", "refinement:run", 25),
    Step("folder", "folder:run", 45),
    Step("similarity", "similarity:run", 20),
    Step("compiled", "network:compiled", 80, extra=True),
)


def main(argv: list[str] | None = None) -> int:
    """Run one step."""
    # As an exception, so that the programs that it has started are ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.steps", description=__doc__)
    parser.add_argument("name", choices=[step.name for step in (FIRST, *STEPS)])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    (step,) = (step for step in (FIRST, *STEPS) if step.name == args.name)
    module, function = step.function.split(":")
    report = Report(args.records, args.seconds, args.name)
    getattr(importlib.import_module(f"bench.gpu.{module}"), function)(report, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
