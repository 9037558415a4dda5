"""Count the files and functions of the project that one call enters: how far a reader has to walk to follow it.

Three calls are traced with :func:`sys.setprofile`, each in a fresh process and in all its threads: ``segment_image`` on
one photograph, the command line on one photograph, and the command line on five photographs with ``--levels all
--classes 3``. Everything else is at its default, except for a single thread. Each call is made twice: the first one
includes what happens on import, the second one is the work alone. Compiled kernels come from the cache, which an
earlier process fills.

What counts as a function: every distinct pair of file and name among the code objects entered whose file lies in
vitnp/, kernels/ or weights/ of the current directory. So two methods ``__init__`` of one file count once, and so do all
lambdas, all list comprehensions or all generator expressions of a file. Class bodies, which run on import, count by
their names. Module bodies, generated code (a dataclass's ``__init__``), and code compiled by numba or for a GPU don't
count. A file counts if one of its functions does. From Python 3.12 on, comprehensions run inside their function and
can't be seen.

With this convention the tree before the rebuild had 57 files and 422 functions for one photograph on the command line,
74 and 651 for five at all levels (first call, Python 3.11). The aims are 35 and 250, 50 and 450.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType

ROOMS = ("vitnp", "kernels", "weights")
PHOTOGRAPHS = Path("tests/photographs")


def segment_one() -> None:
    """Segment one photograph through the Python API."""
    import vitnp

    vitnp.segment_image(PHOTOGRAPHS / "coffee.jpg")


def command_one() -> None:
    """Segment one photograph through the command line."""
    run_command(PHOTOGRAPHS / "coffee.jpg")


def command_five() -> None:
    """Segment five photographs at all levels, into three classes, through the command line."""
    run_command(*sorted(PHOTOGRAPHS.glob("*.jpg")), "--levels", "all", "--classes", "3")


def run_command(*arguments: str | Path) -> None:
    """Run ``python -m vitnp.segment`` in this process, with one thread and a temporary output folder."""
    main = importlib.import_module("vitnp.cli.segment").main
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        status = main([*map(str, arguments), "--out", out, "--threads", "1", "--quiet"])
    if status != 0:
        raise RuntimeError(f"the command line ended with exit status {status}")


CALLS: dict[str, tuple[Callable[[], None], str]] = {
    "segment_image": (segment_one, 'segment_image("coffee.jpg")'),
    "one": (command_one, "segment coffee.jpg"),
    "five": (command_five, "segment (five) --levels all --classes 3"),
}


def trace(call: Callable[[], None]) -> list[set[CodeType]]:
    """Make a call twice and return the code objects that each of the two enters, in any thread."""
    entered: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code)

    # Threads are watched from their start, so this comes before the first call and stays on between the two.
    threading.setprofile(profile)
    calls = []
    try:
        for _ in range(2):
            entered.clear()
            sys.setprofile(profile)
            try:
                call()
            finally:
                sys.setprofile(None)
            calls.append(set(entered))
    finally:
        threading.setprofile(None)
    return calls


def project_functions(codes: set[CodeType], root: Path, rooms: Sequence[str] = ROOMS) -> dict[str, dict[str, int]]:
    """Return the lines of the functions entered, by file relative to `root` and by name, in source order."""
    functions: dict[str, dict[str, int]] = {}
    for code in sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno)):
        path = Path(os.path.abspath(code.co_filename))
        if code.co_name == "<module>" or not path.is_relative_to(root):
            continue
        relative = path.relative_to(root)
        if relative.parts[0] in rooms:
            functions.setdefault(relative.as_posix(), {}).setdefault(code.co_name, code.co_firstlineno)
    return functions


def measure(name: str) -> list[dict[str, dict[str, int]]]:
    """Trace one of ``CALLS`` in a fresh process; see :func:`project_functions` for the two results."""
    command = [sys.executable, __file__, "--child", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def count(functions: dict[str, dict[str, int]]) -> str:
    """Return the numbers of files and functions as text."""
    return f"{len(functions)} / {sum(map(len, functions.values()))}"


def main(argv: list[str] | None = None) -> int:
    """Print the counts of the calls, and with ``--list`` the functions."""
    parser = argparse.ArgumentParser(prog="python -m bench journey", description=__doc__.partition("\n\n")[0])
    parser.add_argument("calls", nargs="*", metavar="CALL", help=f"{', '.join(CALLS)} (all three)")
    parser.add_argument("--list", action="store_true", help="print the functions per file too")
    parser.add_argument("--child", choices=CALLS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        sys.path.insert(0, os.getcwd())
        json.dump([project_functions(codes, Path.cwd()) for codes in trace(CALLS[args.child][0])], sys.stdout)
        return 0
    if unknown := set(args.calls) - set(CALLS):
        parser.error(f"CALL must be one of {', '.join(CALLS)}, got {', '.join(sorted(unknown))}")
    results = {}
    for name in args.calls or CALLS:
        measure(name)  # compiles what isn't in the cache yet
        results[name] = measure(name)
    print(f"{'files / functions entered':<42}{'first call':>14}{'second call':>14}")
    for name, (first, second) in results.items():
        print(f"{CALLS[name][1]:<42}{count(first):>14}{count(second):>14}")
    if args.list:
        for name, (first, second) in results.items():
            print(
                f"\n{CALLS[name][1]}: files, each with its functions on the second call + those of the first call only"
            )
            for path, functions in first.items():
                again = second.get(path, {})
                print(f"  {path}: {len(again)} + {len(functions) - len(again)}")
                for function, line in functions.items():
                    print(f"    {line:>5} {function}{'' if function in again else '  (first call only)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
