"""``python -m vitnp.segment PHOTO …``: masks of photographs."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from vitnp import cli
from vitnp.errors import UsageError, VitnpError


def build_parser() -> argparse.ArgumentParser:
    """The command's options; each group is one question a user may have."""
    made = cli.parser(
        "python -m vitnp.segment",
        "Find the objects of photographs: writes NAME_mask.png (0/255) and NAME_overlay.png.",
        usage="python -m vitnp.segment [options] PHOTO [PHOTO ...]",
        epilog="exit status: 0 done, 3 some failed, 2 wrong usage or nothing done, 130 interrupted",
    )
    made.add_argument("photographs", nargs="+", metavar="PHOTO", help="picture file, or folder to walk")
    group = made.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (each photograph's own)")
    group.add_argument(
        "--save", default="mask,overlay", metavar="LIST", help="of mask,overlay,cutout,soft,score,keys,npz (mask,overlay)"
    )
    group.add_argument("--overwrite", action="store_true", help="do anew what is done; replace files in the way")
    cli.add_model_options(made)
    cli.add_method_options(made)
    cli.add_run_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    args = build_parser().parse_args(argv)
    which = [kind for kind in dict.fromkeys(args.save.split(",")) if kind]
    if not which:
        raise UsageError("--save names nothing; choose among mask, overlay, cutout, soft, score, keys, npz")

    from vitnp import images, outputs, threads
    from vitnp.batch import segment_files
    from vitnp.segmentation import output_paths

    output_paths("", which)  # unknown kinds are wrong usage, found before any work
    count = threads.thread_count(args.threads)
    failures: list[VitnpError] = []
    found = images.find_photographs(args.photographs, failures=failures)
    total, done = len(found) + len(failures), 0
    for error in failures:
        _report_failure(error, args.json)
    if found:
        stems = outputs.output_stems(found, args.out)
        vit = cli.load_model(args)
        outcomes = segment_files(
            found, stems, vit, which, overwrite=args.overwrite, count=count, **cli.method_options(args)
        )
        with contextlib.closing(outcomes):
            for outcome in cli.progress(outcomes, len(found), quiet=args.quiet):
                if outcome.error:
                    failures.append(outcome.error)
                    _report_failure(outcome.error, args.json, outcome.photograph)
                    continue
                done += 1
                if outcome.capped:
                    cli.say(
                        f"{outcome.photograph}: the patch grid was made coarser to stay within --max-tokens {args.max_tokens}",
                        quiet=args.quiet,
                    )
                _report(outcome, as_json=args.json, quiet=args.quiet)
    if failures and total > 1:
        cli.list_failures(failures, total)
    elif failures:
        cli.say_error(failures[0])
    return cli.EXIT_OK if not failures else cli.EXIT_SOME_FAILED if done else cli.EXIT_USAGE


def _report(outcome, *, as_json: bool, quiet: bool) -> None:
    """One photograph's line on stdout: JSON for programs, a summary for people."""
    if as_json:
        cli.print_json({
            "photograph": str(outcome.photograph),
            "status": outcome.status,
            "outputs": {kind: str(path) for kind, path in outcome.outputs.items()},
            **(outcome.facts or {}),
        })
    elif not quiet:
        files = ", ".join(str(path) for path in outcome.outputs.values())
        if outcome.facts is None:
            print(f"{outcome.photograph}: done before -> {files}", flush=True)
        else:
            facts = outcome.facts
            print(
                f"{outcome.photograph}: foreground {facts['share']:.0%}, confidence {facts['confidence']:.2f}, "
                f"{sum(facts['seconds'].values()):.2f} s -> {files}",
                flush=True,
            )


def _report_failure(error: VitnpError, as_json: bool, photograph: Path | None = None) -> None:
    """A failure's JSON line; people read the list at the end."""
    if as_json:
        line = {} if photograph is None else {"photograph": str(photograph)}
        cli.print_json({**line, "status": "failed", "error": str(error)})


def console() -> None:
    """Entry point of the console script."""
    cli.run(main)


if __name__ == "__main__":
    console()
