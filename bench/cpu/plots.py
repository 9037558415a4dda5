"""Plot the result files of ``python -m bench cpu``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import record
from bench.cpu.comparison import EXTRA
from vitnp.cli import shared
from vitnp.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = Path(__file__).parent.parent / "pictures"

# Each contender has the same color in all plots; vitnp is red.
COLORS = {
    "vitnp": "#c8102e",
    "vitnp, bf16": "#e8869a",
    "vitnp, int8": "#7a0a1c",
    "vitnp, solver": "#e8869a",
    "OpenVINO": "#3b6ea8",
    "OpenVINO, bf16": "#9dbbdc",
    "OpenVINO, int8": "#1d3a5c",
    "onnxruntime": "#4f9a74",
    "torch, eager": "#d08a2c",
    "scikit-learn": "#3b6ea8",
    "faiss": "#d08a2c",
    "pydensecrf2": "#3b6ea8",
    "assembled": "#3b6ea8",
}
OTHERS = "#777777"
# Longer labels for names that don't explain themselves outside the table.
LABELS = {
    "assembled": "onnxruntime + scikit-learn\n+ pydensecrf2",
    "vitnp, solver": "vitnp with its default\nrefinement",
}
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "axes.axisbelow": True, "axes.titlesize": 9, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4,
}  # fmt: skip
# Resolution and number of colors: sharp on dense screens, in a few dozen kilobytes.
DPI, N_COLORS = 110, 64

Case = Mapping[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Write the plots to bench/pictures/."""
    parser = argparse.ArgumentParser(prog="python -m bench plots", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="result files (all that can be plotted)")
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="folder to write to (bench/pictures)")
    args = parser.parse_args(argv)
    results = args.results or [
        path for path in sorted(record.RESULTS.glob("*.json")) if _read(path).get("section") in PLOTS
    ]
    if not results:
        raise UsageError(f"no result in {record.RESULTS} can be plotted; run python -m bench cpu first")
    for path in results:
        print(f"written to {draw(path, args.out)}")
    return shared.EXIT_OK


def draw(path: Path, folder: Path) -> Path:
    """Plot one result file.

    Parameters
    ----------
    path : path
        A file written by :func:`bench.record.write`.
    folder : path
        Folder for NAME.png.

    Returns
    -------
    path
        The picture.

    Raises
    ------
    UsageError
        When the file can't be plotted, or matplotlib is not installed.
    """
    result = _read(path)
    if result.get("section") not in PLOTS:
        raise UsageError(f"{path} can't be plotted; plot a result of {', '.join(PLOTS)}")
    try:
        import matplotlib
    except ImportError:
        raise UsageError(f"plots need matplotlib; {EXTRA}") from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        PLOTS[result["section"]](figure, result["cases"])
        figure.supxlabel(_caption(result), fontsize=7, color="#555555")
        return _save(figure, folder / f"{path.stem}.png")


def vit(figure: Figure, cases: Sequence[Case]) -> None:
    """Plot time and fraction of the peak against tokens, for ViT-S on one image at a time."""
    figure.set_size_inches(7.6, 3.3)
    time, peak = figure.subplots(1, 2)
    shown = sorted(
        (case for case in cases if case["batch"] == 1 and str(case["model"]).startswith("ViT-S")),
        key=lambda case: case["tokens"],
    )
    _curves(time, shown, "tokens", lambda facts: facts["seconds"])
    _curves(peak, shown, "tokens", lambda facts: facts.get("peak_fraction"))
    time.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds", title="ViT-S, one image")
    peak.set(xscale="log", ylim=(0, 1), xlabel="tokens", title="share of the peak, each in its precision")
    peak.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    tokens = sorted({case["tokens"] for case in shown})
    for axes in (time, peak):
        # Skip labels that would touch: two sizes are close to each other.
        ticks = [count for index, count in enumerate(tokens) if not index or count > 1.3 * tokens[index - 1]]
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.minorticks_off()
    _legend(figure, time)


def kmeans(figure: Figure, cases: Sequence[Case]) -> None:
    """Plot the time of an iteration against rows, with one panel per number of clusters."""
    width = 384
    shown = [case for case in cases if case["width"] == width and not case.get("whole_fit")]
    clusters = sorted({case["clusters"] for case in shown})
    figure.set_size_inches(7.6, 2.9)
    panels = figure.subplots(1, max(len(clusters), 1), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, clusters):
        of_count = sorted((case for case in shown if case["clusters"] == count), key=lambda case: case["rows"])
        _curves(axes, of_count, "rows", lambda facts: facts["seconds"])
        axes.set(xscale="log", yscale="log", xlabel=f"rows of {width}", title=f"K = {count}")
    panels[0].set_ylabel("seconds per iteration")
    _legend(figure, panels[0])


def crf(figure: Figure, cases: Sequence[Case]) -> None:
    """Plot seconds by number of classes."""
    _bars(figure, cases, lambda case: f"{case['classes']} classes")


def photograph(figure: Figure, cases: Sequence[Case]) -> None:
    """Plot seconds in a warm process and from a cold start."""
    titles = {"warm": "warm process", "cold": "cold start, files written"}
    _bars(figure, cases, lambda case: titles[str(case["process"])])


PLOTS: dict[str, Callable[[Figure, Sequence[Case]], None]] = {
    "vit": vit,
    "kmeans": kmeans,
    "crf": crf,
    "photograph": photograph,
}


def _curves(axes: Axes, cases: Sequence[Case], over: str, value: Callable[[Mapping], float | None]) -> None:
    """Draw one curve per contender, through the cases in which it has a value."""
    for name in _names(cases):
        points: dict[float, float] = {}
        for case in cases:
            y = value(case["contenders"][name]) if name in case["contenders"] else None
            if y is not None:
                points.setdefault(case[over], y)  # vitnp occurs once per peer, but is drawn once
        if points:
            color, label = COLORS.get(name, OTHERS), LABELS.get(name, name)
            axes.plot(*zip(*points.items()), "o-", color=color, label=label, zorder=3 if name == "vitnp" else 2)


def _bars(figure: Figure, cases: Sequence[Case], title: Callable[[Case], str]) -> None:
    figure.set_size_inches(7.6, 1.9)
    panels = figure.subplots(1, max(len(cases), 1), sharey=True, squeeze=False)[0]
    names = _names(cases)[::-1]
    for axes, case in zip(panels, cases):
        seconds = [case["contenders"].get(name, {"seconds": 0.0})["seconds"] for name in names]
        labels, colors = [LABELS.get(name, name) for name in names], [COLORS.get(name, OTHERS) for name in names]
        bars = axes.barh(labels, seconds, color=colors)
        axes.bar_label(bars, [f"{value:.3g} s" if value else "missing" for value in seconds], padding=3, fontsize=8)
        axes.set(title=title(case), xlim=(0, 1.2 * max(seconds, default=1.0) or 1.0), xticks=[])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.tick_params(left=False)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)


def _names(cases: Iterable[Case]) -> list[str]:
    """Return the contenders, vitnp first, without "keys only", which can't be compared with a whole pass."""
    names = dict.fromkeys(name for case in cases for name in case["contenders"] if name != "vitnp, keys only")
    return sorted(names, key=lambda name: not name.startswith("vitnp"))


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _caption(result: Mapping) -> str:
    machine = result["machine"]
    return f"{machine['processor']}, {result.get('threads', machine['cores'])} threads, {result['date']}; medians"


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG with few colors, a third of the size of one in full color."""
    import io

    from PIL import Image

    from vitnp.io.write import make_folder

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    make_folder(path.parent)
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a result: {error}") from None
