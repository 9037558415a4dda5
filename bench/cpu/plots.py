"""``python -m bench plots``: a picture of each result file that has one, from the file alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import record
from bench.cpu.comparison import EXTRA
from vitnp.cli import shared
from vitnp.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = Path(__file__).parent.parent / "pictures"

# A contender has the same color in every picture; ours stand out.
COLORS = {
    "vitnp": "#c8102e",
    "vitnp, bf16": "#e8869a",
    "vitnp, solver": "#e8869a",
    "OpenVINO": "#3b6ea8",
    "OpenVINO, bf16": "#9dbbdc",
    "onnxruntime": "#4f9a74",
    "torch, eager": "#d08a2c",
    "scikit-learn": "#3b6ea8",
    "faiss": "#d08a2c",
    "pydensecrf2": "#3b6ea8",
    "assembled": "#3b6ea8",
}
OTHERS = "#777777"
# What a name says isn't always enough for a reader who sees the picture alone.
LABELS = {
    "assembled": "onnxruntime + scikit-learn\n+ pydensecrf2",
    "vitnp, solver": "vitnp with its default\nrefinement",
}
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "axes.axisbelow": True, "axes.titlesize": 9, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4,
}  # fmt: skip
# Pictures for a README: sharp enough on a dense screen, a few dozen kilobytes.
DPI, SHADES = 110, 64

Case = Mapping[str, object]


def main(argv: list[str] | None = None) -> int:
    """Draw them into bench/pictures/."""
    made = argparse.ArgumentParser(prog="python -m bench plots", description=__doc__)
    made.add_argument("results", nargs="*", type=Path, help="result files (all that have a picture)")
    made.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="folder to draw into (bench/pictures)")
    args = made.parse_args(argv)
    chosen = args.results or [
        path for path in sorted(record.RESULTS.glob("*.json")) if _read(path).get("section") in PLOTS
    ]
    if not chosen:
        raise UsageError(f"no result in {record.RESULTS} has a picture; run python -m bench cpu first")
    for path in chosen:
        print(f"drawn {draw(path, args.out)}")
    return shared.EXIT_OK


def draw(path: Path, folder: Path) -> Path:
    """Draw one result file.

    Parameters
    ----------
    path : path
        What :func:`bench.record.write` wrote.
    folder : path
        Gets NAME.png.

    Returns
    -------
    path
        Of the picture.

    Raises
    ------
    UsageError
        For a file that has no picture, or without matplotlib.
    """
    result = _read(path)
    if result.get("section") not in PLOTS:
        raise UsageError(f"{path} has no picture; those have one: {', '.join(PLOTS)}")
    try:
        import matplotlib
    except ImportError:
        raise UsageError(f"pictures need matplotlib; {EXTRA}") from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        PLOTS[result["section"]](figure, result["cases"])
        figure.supxlabel(_caption(result), fontsize=7, color="#555555")
        return _save(figure, folder / f"{path.stem}.png")


def vit(figure: Figure, cases: Sequence[Case]) -> None:
    """Time against tokens and fraction of the peak, for ViT-S on one image at a time."""
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
        # Two of the sizes are so close that their labels would touch.
        ticks = [count for index, count in enumerate(tokens) if not index or count > 1.3 * tokens[index - 1]]
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.minorticks_off()
    _legend(figure, time)


def kmeans(figure: Figure, cases: Sequence[Case]) -> None:
    """Time of an iteration against rows, a panel for each number of clusters."""
    width = 384
    shown = [case for case in cases if case["width"] == width]
    clusters = sorted({case["clusters"] for case in shown})
    figure.set_size_inches(7.6, 2.9)
    panels = figure.subplots(1, max(len(clusters), 1), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, clusters):
        of_count = sorted((case for case in shown if case["clusters"] == count), key=lambda case: case["rows"])
        _curves(axes, of_count, "rows", lambda facts: facts["seconds"])
        axes.set(xscale="log", yscale="log", xlabel=f"rows of {width}", title=f"K = {count}")
    panels[0].set_ylabel("seconds of an iteration")
    _legend(figure, panels[0])


def crf(figure: Figure, cases: Sequence[Case]) -> None:
    """Seconds by number of classes."""
    _bars(figure, cases, lambda case: f"{case['classes']} classes")


def photograph(figure: Figure, cases: Sequence[Case]) -> None:
    """Seconds in a warm process and from a cold start."""
    titles = {"warm": "warm process", "cold": "cold start, files written"}
    _bars(figure, cases, lambda case: titles[str(case["process"])])


PLOTS: dict[str, Callable[[Figure, Sequence[Case]], None]] = {
    "vit": vit,
    "kmeans": kmeans,
    "crf": crf,
    "photograph": photograph,
}


def _curves(axes: Axes, cases: Sequence[Case], over: str, value: Callable[[Mapping], float | None]) -> None:
    """A curve for each contender, through the cases in which it has a value."""
    for name in _names(cases):
        points: dict[float, float] = {}
        for case in cases:
            found = value(case["contenders"][name]) if name in case["contenders"] else None
            if found is not None:
                points.setdefault(case[over], found)  # whoever meets one peer after the other is drawn once
        if points:
            # What is drawn last lies on top.
            above = 3 if name == "vitnp" else 2
            axes.plot(
                *zip(*points.items()), "o-", color=COLORS.get(name, OTHERS), label=LABELS.get(name, name), zorder=above
            )


def _bars(figure: Figure, cases: Sequence[Case], title: Callable[[Case], str]) -> None:
    figure.set_size_inches(7.6, 1.9)
    panels = figure.subplots(1, max(len(cases), 1), sharey=True, squeeze=False)[0]
    names = _names(cases)[::-1]
    for axes, case in zip(panels, cases):
        seconds = [case["contenders"].get(name, {"seconds": 0.0})["seconds"] for name in names]
        drawn = axes.barh(
            [LABELS.get(name, name) for name in names], seconds, color=[COLORS.get(name, OTHERS) for name in names]
        )
        axes.bar_label(drawn, [f"{value:.3g} s" if value else "missing" for value in seconds], padding=3, fontsize=8)
        axes.set(title=title(case), xlim=(0, 1.2 * max(seconds, default=1.0) or 1.0), xticks=[])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.tick_params(left=False)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)


def _names(cases: Iterable[Case]) -> list[str]:
    """Contenders of some cases, ours first; the keys alone are no competitor of a whole pass."""
    found = dict.fromkeys(name for case in cases for name in case["contenders"] if name != "vitnp, keys only")
    return sorted(found, key=lambda name: not name.startswith("vitnp"))


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _caption(result: Mapping) -> str:
    machine = result["machine"]
    return f"{machine['processor']}, {result.get('threads', machine['cores'])} threads, {result['date']}; medians"


def _save(figure: Figure, path: Path) -> Path:
    """As a PNG with few colors: drawings need no more, and it's a third of the size."""
    import io

    from PIL import Image

    from vitnp.io.write import make_folder

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    make_folder(path.parent)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(SHADES, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a result: {error}") from None
