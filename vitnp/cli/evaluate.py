"""``vitnp evaluate``: score masks, classes and boxes against true ones."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitnp.cli import arguments, shared, streams
from vitnp.errors import UsageError
from vitnp.options import OPTIONS

if TYPE_CHECKING:
    from vitnp.evaluate.ablation import Variant
    from vitnp.evaluate.protocol import Evaluation
    from vitnp.evaluate.table import Table
    from vitnp.segmenter import Segmenter

# Options that belong to one task only; their default is None.
TASK_OPTIONS = dict.fromkeys(
    ("layout", "labels", "names", "merge", "regions", "n_classes", "clusters", "matching"), "semantic"
)


class Task(NamedTuple):
    """One kind of evaluation.

    Attributes
    ----------
    open : callable
        Reads the data set.
    score : callable
        Segments the data set and scores the results.
    titles : mapping of str to str
        Headings of the scores.
    measure : str
        Name of the score by which the report ranks photographs.
    """

    open: Callable[[argparse.Namespace], Any]
    score: Callable[[argparse.Namespace, Any, Any, dict], Evaluation]
    titles: Mapping[str, str]
    measure: str


def _open_pairs(args: argparse.Namespace) -> Sequence:
    from vitnp.evaluate.data.pairs import match_pairs

    if len(args.data) != 2:
        raise UsageError(f"--task saliency needs two folders, IMAGES and MASKS, got {len(args.data)} (see --help)")
    pairs, unused = match_pairs(*args.data)
    if unused:
        shared.say(f"ignoring masks without a photograph: {len(unused)}, such as {unused[0]}", quiet=args.quiet)
    return pairs


def _score_saliency(args: argparse.Namespace, pairs: Sequence, vit: Any, options: dict) -> Evaluation:
    from vitnp.evaluate.saliency import score_photographs, score_set
    from vitnp.segmenter import Segmenter

    if arguments.fits_a_set(args, len(pairs)):
        return score_set(pairs, Segmenter(vit, **options))
    return score_photographs(pairs, vit, **_single_arguments(args, vit, options))


def _open_labeled(args: argparse.Namespace) -> Any:
    from vitnp.evaluate.data.layouts import detect_layout, read_labeled

    if args.levels in ("image", "single") or arguments.names_collection(args):
        raise UsageError("--task semantic fits a set with all levels; leave out --levels and --collection")
    if args.n_classes and args.clusters:
        raise UsageError("--classes and --clusters both set the number of clusters; give one of them")
    if not args.data:
        raise UsageError("--task semantic needs ROOT, IMAGES JSON, IMAGES MASKS or IMAGES LABELS (see --help)")
    layout = args.layout or "auto"
    if layout == "auto":
        layout = detect_layout(args.data)
    labeled = read_labeled(args.data, layout, split=args.split, labels=args.labels, names=args.names, merge=args.merge)
    if not labeled.samples or len(labeled.classes) < 2:
        raise UsageError(f"{args.data[0]} has no classes besides the background; give another data set")
    shared.say(
        f"layout {layout}: {len(labeled.samples)} photographs, {len(labeled.classes) - 1} classes", quiet=args.quiet
    )
    return labeled


def _score_semantic(args: argparse.Namespace, labeled: Any, vit: Any, options: dict) -> Evaluation:
    from vitnp.evaluate.semantic import score_classes
    from vitnp.segmenter import Segmenter

    clusters = args.clusters or args.n_classes or len(labeled.classes) - 1
    matching = args.matching or ("many-to-one" if args.clusters else "hungarian")
    return score_classes(labeled, Segmenter(vit, clusters, regions=args.regions or "image", **options), matching)


def _open_boxes(args: argparse.Namespace) -> Sequence:
    from vitnp.evaluate.data.voc_boxes import read_voc_boxes

    if len(args.data) != 1:
        raise UsageError(
            f"--task discovery needs ROOT, one folder such as VOCdevkit/VOC2007, got {len(args.data)} (see --help)"
        )
    return read_voc_boxes(args.data[0], args.split or "trainval")


def _score_discovery(args: argparse.Namespace, samples: Sequence, vit: Any, options: dict) -> Evaluation:
    from vitnp.evaluate.discovery import score_box_set, score_boxes
    from vitnp.segmenter import Segmenter

    if arguments.fits_a_set(args, len(samples)):
        return score_box_set(samples, Segmenter(vit, **options))
    return score_boxes(samples, vit, **_single_arguments(args, vit, options))


TASKS = {
    "saliency": Task(
        _open_pairs, _score_saliency,
        {
            "iou": "foreground IoU", "accuracy": "accuracy", "max_f": "max F-beta", "mae": "MAE (0 is best)",
            "s_measure": "S-measure", "boundary_f": "boundary F (3 px)",
        },
        "IoU",
    ),
    "semantic": Task(
        _open_labeled, _score_semantic,
        {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy", "foreground_iou": "foreground IoU"}, "mean IoU",
    ),
    "discovery": Task(_open_boxes, _score_discovery, {"corloc": "CorLoc", "box_iou": "mean box IoU"}, "box IoU"),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp evaluate",
        "Segment a data set and score the answers.\n"
        "Saliency: IMAGES MASKS. Discovery: ROOT.\n"
        "Semantic: ROOT of a VOC set, IMAGES JSON (COCO), or IMAGES LABELS.",
        usage="vitnp evaluate [--task TASK] [options] IMAGES MASKS",
        examples=(
            "vitnp evaluate IMAGES/ MASKS/ --seeds 3 --report PICTURES/",
            "vitnp evaluate --task semantic VOCdevkit/VOC2012 --json",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("data", nargs="*", type=Path, metavar="IMAGES MASKS", help=argparse.SUPPRESS)
    arguments.add_options(parser, "data set", "task", "layout", "split", "labels", "names", "merge")
    arguments.add_options(
        parser, "scores", "n_classes", "clusters", "matching", "regions", "seeds", "ablate", "csv", "report",
        n_classes={"help": "clusters to find (number of true classes)"},
        regions={"default": None},
    )  # fmt: skip
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "method", *arguments.METHOD)
    arguments.add_options(parser, "collection", *arguments.COLLECTION)
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    """Score the answers for a data set and return the exit status."""
    for name, owner in TASK_OPTIONS.items():
        if getattr(args, name) is not None and args.task != owner:
            raise UsageError(f"{OPTIONS[name].long_flag} is for --task {owner}; leave it out")
    if args.split is not None and args.task == "saliency":
        raise UsageError("--split is for the tasks semantic and discovery; leave it out")
    if arguments.names_collection(args) and (args.ablate or args.levels in ("all", "image")):
        raise UsageError(
            "--collection applies a saved collection to single photographs; leave out --ablate, --levels all and "
            "--levels image"
        )
    if args.ablate and (args.task != "saliency" or args.report):
        raise UsageError("--ablate scores saliency without pictures; leave out --task and --report")
    if args.ablate and args.domain == "lines":
        raise UsageError("--ablate leaves out levels, and --domain lines has none; leave out one of both")

    from vitnp import kernels
    from vitnp.evaluate import report
    from vitnp.evaluate.protocol import shared_cache, summarize
    from vitnp.io import write
    from vitnp.kernels.threads import pool
    from vitnp.pipeline import DEVICE_STAGES

    args.n_threads = pool.resolve_n_threads(args.n_threads)
    task = TASKS[args.task]
    data = task.open(args)
    # Folders that cannot be written to are reported before the long work, not after.
    if args.report:
        report.report_paths(args.report)
    if args.csv:
        write.make_folder(args.csv.parent)
    vit = arguments.load_model(args)
    seeds = range(args.seed, args.seed + (args.seeds or 1))
    with arguments.workers(args) as workers, shared_cache(args.cache, 2 if args.ablate else len(seeds)) as cache:
        options = {**arguments.segmenter_arguments(args), **workers, "cache": cache}
        if args.ablate:
            table, result, failures, total = _ablate(args, data, vit, options, seeds)
        else:
            runs = []
            for seed in seeds:
                runs.append(task.score(args, data, vit, {**options, "seed": seed}))
                if args.report and seed == args.seed:
                    report.write_report(args.report, runs[0].ranking, runs[0].picture, task.measure)
            summary = summarize(runs, seeds if args.seeds else None)
            table, result = summary.table(task.titles), summary.to_json()
            failures, total = runs[0].failures, runs[0].images + len(runs[0].failures)
    if failures:
        shared.list_failures(failures, total)
    if args.json:
        shared.print_json({**result, "device": {stage: kernels.name_of(vit.device) for stage in DEVICE_STAGES}})
    else:
        for line in table.text().split("\n"):
            streams.print_line(line)
    if args.csv:  # last, so that a file that cannot be written does not cost the scores
        write.write_text(args.csv, table.csv())
    return shared.EXIT_SOME_FAILED if failures else shared.EXIT_OK


main = shared.Command(build_parser, _evaluate)


def _single_arguments(args: argparse.Namespace, vit: Any, options: dict) -> dict:
    """Return the arguments for photographs one by one, among them the collection that is applied to them."""
    return {
        **{name: options[name] for name in arguments.METHOD},
        "n_threads": args.n_threads,
        "progress": options["progress"],
        "collection": arguments.load_collection(args, vit, quiet=options["seed"] != args.seed),
    }


def _made(vit: Any, options: dict, **variant: Any) -> Segmenter:
    from vitnp.segmenter import Segmenter

    return Segmenter(vit, **{**options, **variant})


def _ablate(
    args: argparse.Namespace, pairs: Sequence, vit: Any, options: dict, seeds: range
) -> tuple[Table, dict, Sequence, int]:
    """Return table and JSON of the ablation, the failures, and the number of photographs."""
    from vitnp.evaluate.ablation import ablate, tabulate

    runs: list[list[Variant]] = []
    for seed in seeds:
        # An empty mask for lack of confidence would hide what is compared.
        make = functools.partial(_made, vit, {**options, "seed": seed, "min_confidence": 0.0})
        rows, images, failures = ablate(pairs, make, args.facet)
        runs.append(rows)
    table, records = tabulate(runs, str(arguments.settings(args).refine), deviations=bool(args.seeds))
    return table, {"images": images, "rows": records}, failures, len(pairs)
