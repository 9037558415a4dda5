"""``vitnp features PHOTO ...``: write features of photographs for other programs."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitnp.cli import arguments, feature_clips, region_features, shared, streams
from vitnp.errors import ImageError, UsageError, VitnpError
from vitnp.io.path_text import mapping_entries, path_entries
from vitnp.options import FEATURE_OUTPUTS, OPTIONS, enumerate_words

if TYPE_CHECKING:
    from vitnp.features.export import Outcome
    from vitnp.features.pca import PatchPCA
    from vitnp.features.spec import FeatureSpec
    from vitnp.features.store import FeatureStore
    from vitnp.io.find import Photograph
    from vitnp.vit.model import ViT

# Options of pictures.
PICTURES = ("foreground", "basis", "save_basis", "nearest")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp features",
        "Write the ViT features of photographs (files or folders) and videos: arrays,\n"
        "pictures of them, or with --mask one table of the features of all regions.",
        usage="vitnp features [options] PHOTO [PHOTO ...]",
        examples=(
            "vitnp features PHOTOS/ --out OUT/ --save pca,attention --foreground",
            "vitnp features PHOTOS/ --mask --instances --out regions.npz",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments.add_options(
        parser, "output", "out", "save", "format", "dtype", "overwrite", "cache", "prune",
        save={"default": "features", "help": f"of {','.join(FEATURE_OUTPUTS)} (features)"},
        cache={"help": "keep features in this folder and reuse them"},
    )  # fmt: skip
    arguments.add_options(parser, "pictures", *PICTURES)
    arguments.add_options(
        parser, "table of regions", "mask", "masks", *region_features.OPTIONS_OF_MASKS,
        regions={"help": "rows: image, components (image)"},
        instances={"help": "rows: the objects of each mask"},
    )  # fmt: skip
    parser.set_defaults(**{name: OPTIONS[name].default for name in region_features.NOT_OFFERED})
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "features", *arguments.FEATURES)
    arguments.add_options(parser, "run", *arguments.RUN)
    return parser


def _features(args: argparse.Namespace) -> int:
    """Write the features of the photographs of the command line and return the exit status."""
    which = [name for name in dict.fromkeys(args.save.split(",")) if name]
    _check_options(args, which)

    from vitnp.kernels.threads import pool

    args.n_threads = pool.resolve_n_threads(args.n_threads)
    clips = feature_clips.take_clips(args)
    photographs, failures, left_out = arguments.find_photographs(args)
    total, done = len(photographs) + len(failures), 0
    if args.prune:
        done += _prune(args, photographs, complete=not failures)
    elif photographs and (args.mask or args.masks):
        done = region_features.write_table(args, photographs, failures)
    elif photographs or clips:
        done = _write_features(args, which, photographs, clips, failures)
        total = done + len(failures)
    return shared.conclude(failures, total, done, left_out="" if args.quiet else left_out)


main = shared.Command(build_parser, _features)


def _check_options(args: argparse.Namespace, which: Sequence[str]) -> None:
    """Check that the options can be combined, before any work.

    Raises
    ------
    UsageError
        If they cannot.
    """
    if args.prune and args.cache is None:
        raise UsageError("--prune removes features from a cache; give --cache DIR")
    region_features.check_options(args)
    unknown = [name for name in which if name not in FEATURE_OUTPUTS]
    if unknown or not which:
        names = ", ".join(unknown) or "nothing"
        raise UsageError(f"--save must list some of {enumerate_words(FEATURE_OUTPUTS)}, got {names}")
    given = [OPTIONS[name].long_flag for name in PICTURES if getattr(args, name) not in (None, False)]
    if given and (args.mask or args.masks is not None):
        table = "--mask" if args.mask else "--masks"
        raise UsageError(f"{given[0]} changes pictures; leave it out, or leave out {table}")
    if given and not {"pca", "attention"} & set(which):
        raise UsageError(f"{given[0]} changes pictures; add --save pca, or leave it out")
    if "pca" not in which and given not in ([], ["--nearest"]):
        raise UsageError(f"{given[0]} changes the colors of components; add pca to the list of --save, or leave it out")
    if args.basis is not None and (args.save_basis is not None or args.foreground is not None):
        raise UsageError("--basis takes a fitted basis as it is; leave out --save-basis and --foreground")


def _write_features(
    args: argparse.Namespace,
    which: Sequence[str],
    photographs: Sequence[Photograph],
    clips: Sequence[Path],
    failures: list[VitnpError],
) -> int:
    """Write features, with a progress bar, and return the number of photographs and frames done."""
    from vitnp import kernels
    from vitnp.export import naming
    from vitnp.features.export import write_features
    from vitnp.features.outputs import OF_HEADS, output_suffixes
    from vitnp.features.spec import FeatureSpec
    from vitnp.video.container import count_frames
    from vitnp.video.features import write_clip_features

    vit = arguments.load_model(args)
    suffixes = output_suffixes(which, args.format, vit.config.heads).values()
    stems = naming.output_stems(photographs, args.out, (*naming.SUFFIXES, *suffixes))
    feature_clips.check_names(args, clips, stems)
    spec = FeatureSpec.of(
        vit,
        short_side=args.short_side,
        facet=args.facet,
        layer=-1 if args.layer is None else args.layer,
        stride=args.stride,
        max_tokens=args.max_tokens,
        alpha=args.alpha,
        precision=args.dtype,
        regions=False,
        attention_heads=any(name in which for name in OF_HEADS),
    )
    fits = "pca" in which and args.basis is None
    with _opened_store(args, photographs, vit, spec, needed=fits) as store:
        unread: list[tuple[Path, ImageError]] = []
        try:
            basis = _basis(args, photographs, clips, vit, store, unread) if "pca" in which else None
        except ImageError:  # there is nothing to fit a basis to
            for path, error in unread:
                shared.report_failure(error, as_json=args.json, photograph=path)
                failures.append(error)
            return 0
        options: dict[str, Any] = {
            "which": which,
            "form": args.format,
            "basis": basis,
            "nearest": args.nearest,
            "store": store,
            "overwrite": args.overwrite,
            "n_threads": args.n_threads,
            "batch": args.batch,
            "max_pixels": args.max_pixels,
        }
        outcomes = [write_features(photographs, stems, vit, spec, **options)] if photographs else []
        outcomes += [
            write_clip_features(clip, feature_clips.folder_of(args, clip), vit, spec, **options) for clip in clips
        ]
        report = functools.partial(_report, args, kernels.name_of(vit.device))
        total = len(photographs) + sum(map(count_frames, clips))
        shown = shared.progress(feature_clips.in_turn(outcomes), total, quiet=args.quiet)
        return shared.report_outcomes(shown, failures, report, as_json=args.json)


@contextlib.contextmanager
def _opened_store(
    args: argparse.Namespace, photographs: Sequence[Photograph], vit: ViT, spec: FeatureSpec, *, needed: bool
) -> Iterator[FeatureStore | None]:
    """Give the store of --cache; without the option a temporary one if it is needed, else none."""
    from vitnp.features.store import FeatureStore
    from vitnp.features.temporary import estimate_bytes, temporary_store

    if args.cache is not None:
        yield FeatureStore(args.cache, spec, notice=shared.say)
    elif needed:
        with temporary_store(spec, needed=estimate_bytes(photographs, vit, spec), notice=shared.say) as store:
            yield store
    else:
        yield None


def _basis(
    args: argparse.Namespace,
    photographs: Sequence[Photograph],
    clips: Sequence[Path],
    vit: ViT,
    store: FeatureStore | None,
    unread: list[tuple[Path, ImageError]],
) -> PatchPCA:
    """Return the basis of the colors: that of --basis, or one fitted to all photographs and frames."""
    from vitnp.features.pca import PatchPCA
    from vitnp.io.write import prepare_folder
    from vitnp.video.container import count_frames
    from vitnp.video.features import fit_clips_basis

    if args.basis is not None:
        return PatchPCA.load(args.basis)
    assert store is not None  # opened because the basis is fitted to it
    if args.save_basis is not None:
        prepare_folder(args.save_basis.parent)
    total = len(photographs) + sum(map(count_frames, clips))
    with shared.stage_progress("features", total, quiet=args.quiet) as advance:
        basis = fit_clips_basis(
            photographs,
            clips,
            vit,
            store,
            foreground=args.foreground,
            n_threads=args.n_threads,
            batch=args.batch,
            max_pixels=args.max_pixels,
            progress=advance,
            failures=unread,
        )
    if args.save_basis is not None:
        basis.save(args.save_basis)
        shared.say(
            f"the basis is in {args.save_basis}; --basis {args.save_basis} gives other photographs the same colors",
            quiet=args.quiet,
        )
    return basis


def _prune(args: argparse.Namespace, photographs: Sequence[Photograph], *, complete: bool) -> bool:
    """Remove the features of all other photographs from the cache; return whether that was done."""
    from vitnp.features.maintenance import prune
    from vitnp.kernels.threads import pool

    if not complete:
        # A folder that cannot be found now (another disk, say) may hold thousands of photographs.
        shared.say("nothing was pruned, because some of the given paths hold no photograph")
        return False
    keep = {name for name in pool.map_ordered(_fingerprint, photographs, args.n_threads) if name is not None}
    freed = prune(args.cache, keep, notice=shared.say)
    shared.say(f"the cache {args.cache} is {freed / 1e6:.1f} MB smaller", quiet=args.quiet)
    return True


def _fingerprint(photograph: Photograph) -> str | None:
    """Return the fingerprint of a photograph; None if it cannot be read, and so is in no store."""
    from vitnp.errors import ImageError
    from vitnp.io.source import fingerprint

    try:
        return fingerprint(photograph)
    except ImageError:
        return None


def _report(args: argparse.Namespace, device: str, outcome: Outcome) -> None:
    """Print one line on stdout for a photograph: JSON for programs, a summary for people."""
    features = outcome.features
    if features is not None and features.capped and not outcome.frame:
        shared.say_capped(outcome.photograph, args.max_tokens, quiet=args.quiet)
    if args.json:
        line: dict[str, object] = {
            **path_entries("photograph", outcome.photograph),
            **({} if outcome.frame is None else {"frame": outcome.frame, "time": outcome.seconds}),
            "status": outcome.status,
            **path_entries("output", str(outcome.path)),
            **mapping_entries("outputs", outcome.outputs),
        }
        if features is not None:
            height, width = features.size
            line |= {"width": width, "height": height, "rows": features.grid[0], "columns": features.grid[1]}
            line["device"] = {"decode": "cpu", "network": device, "write": "cpu"}
        shared.print_json(line)
    elif not args.quiet:
        summary = "done before" if features is None else f"{features.grid[0]} x {features.grid[1]} patches"
        streams.print_line(f"{outcome.photograph}: {summary} -> {_files_in_words(outcome.outputs)}")


def _files_in_words(outputs: Mapping[str, Path]) -> str:
    """Return the files of a photograph for people: the folder once, and no names that only differ by the head.

    Examples
    --------
    >>> _files_in_words({"pca": Path("out/a_pca.png"), "attention": Path("out/a_attention.png")})
    'out/a_pca.png, a_attention.png'
    """
    shown = [path for name, path in outputs.items() if not name.startswith("attention_head")]
    heads = len(outputs) - len(shown)
    names = ", ".join([str(shown[0]), *(path.name for path in shown[1:])])
    return f"{names} and {heads} of single heads" if heads else names
