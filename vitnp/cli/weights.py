"""``vitnp weights``: list known checkpoints, fetch, convert and inspect them."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from vitnp.checkpoints import registry
from vitnp.cli import arguments, shared, streams
from vitnp.errors import CheckpointError, OutputError, UsageError
from vitnp.io.path_text import path_entries
from vitnp.options import FEATURE_DTYPES

if TYPE_CHECKING:
    import numpy as np

PROG = "vitnp weights"

_SOURCE_HELP = "known name, checkpoint file, folder, or org/name in the Hugging Face cache"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser, with one subparser for each of its commands."""
    parser = shared.parser(
        PROG,
        "Checkpoints: list the known ones, fetch one by name, convert and inspect files.",
        examples=(f"{PROG} fetch dino_vits8", f"{PROG} info my_checkpoint.pth"),
        usage=f"{PROG} COMMAND ...",
        epilog="VITNP_CACHE: folder for downloads. VITNP_MIRROR: address that replaces the\n"
        "server of every download. HTTPS_PROXY is respected.",
    )
    # The help's columns are as wide as the metavar, so that every name fits.
    commands = parser.add_subparsers(title="commands", metavar="COMMAND ...", required=True, prog=PROG)

    command = commands.add_parser("list", help="list the known checkpoints, and where they are")
    arguments.add_options(command, "output", "json", json={"help": "print a line of JSON per checkpoint"})
    command.set_defaults(act=_list)

    command = commands.add_parser("fetch", help="download a known checkpoint into the cache, once")
    command.add_argument("name", metavar="NAME", help="name of a known checkpoint")
    license_help = "you have read its license and accept it (DINOv3)"
    command.add_argument("--accept-license", action="store_true", help=license_help)
    command.add_argument("--accept-licence", dest="accept_license", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(act=_fetch)

    command = commands.add_parser("convert", help="convert a checkpoint to .safetensors with metadata")
    command.add_argument("source", metavar="IN", help=_SOURCE_HELP)
    command.add_argument("target", metavar="OUT", help=".safetensors file to write")
    command.add_argument(
        "--dtype", choices=FEATURE_DTYPES, default="float32", help="float16 or float32 (float32)", metavar="TYPE"
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_overrides(command)
    command.set_defaults(act=_convert)

    command = commands.add_parser("info", help="show what a checkpoint holds and how it will be run")
    command.add_argument("source", metavar="MODEL", help=_SOURCE_HELP)
    _add_overrides(command)
    arguments.add_options(command, "output", "json")
    command.set_defaults(act=_info)
    return parser


main = shared.Command(build_parser, lambda args: args.act(args))


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    arguments.add_options(parser, "what the file does not say", *arguments.CHECKPOINT)


def _list(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.download import cache_folder, place_of

    def status_of(entry: registry.Entry) -> str:
        return "built in" if entry.url is None else "cached" if place_of(entry).is_file() else "not cached"

    if args.json:
        for entry in registry.entries().values():
            facts = {"name": entry.name, "megabytes": entry.megabytes, "license": entry.license}
            status = status_of(entry)
            file = path_entries("file", place_of(entry)) if status == "cached" else {}
            shared.print_json({**facts, "status": status, **file, "title": entry.title, "note": entry.note})
        return shared.EXIT_OK
    rows = [("NAME", "MB", "LICENSE", "WHERE", "")]
    for entry in registry.entries().values():
        location = status_of(entry).replace("not cached", "-")
        text = f"{entry.title}. {entry.note}" if entry.note else f"{entry.title}."
        rows.append((entry.name, f"{entry.megabytes:g}", entry.license, location, text))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        streams.print_line("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip())
    streams.print_line()
    streams.print_line(f"Cache: {cache_folder()}")
    streams.print_line(
        f"Fetch one with `{PROG} fetch NAME`; use it with --model NAME. --model takes paths and org/name too."
    )
    return shared.EXIT_OK


def _fetch(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.download import address_of, fetch, is_to_be_fetched

    entry = registry.find(args.name)
    if is_to_be_fetched(entry, args.accept_license):
        shared.say(f"fetching {entry.name}, {entry.megabytes:g} MB, from {address_of(entry)}")
    path, sha256 = fetch(entry.name, accept_license=args.accept_license)
    streams.print_line(str(path))
    shared.say(f"sha256 {sha256}" + ("" if entry.sha256 else " (no page records it; noted beside the file)"))
    return shared.EXIT_OK


def _convert(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.load import load_vit
    from vitnp.checkpoints.safetensors_io import write_safetensors

    target = pathlib.Path(args.target)
    if target.suffix != ".safetensors":
        raise UsageError(f"OUT must end in .safetensors, got {target}")
    if target.exists() and not args.overwrite:
        raise OutputError(f"{target} exists already; choose another name, or give --overwrite")
    vit = load_vit(args.source, **arguments.checkpoint_arguments(args))
    weights = {name: _as_dtype(name, tensor, args.dtype) for name, tensor in vit.weights.items()}
    config = vit.config
    metadata = {
        "format": "np",
        "name": vit.name,
        "heads": str(config.heads),
        "patch": str(config.patch),
        "grid": ",".join(map(str, config.grid)),
        "norm_eps": repr(config.eps),
        **({} if config.rotary else {"pos_embed": config.pos_embed}),
        "mean": ",".join(map(repr, config.mean)),
        "std": ",".join(map(repr, config.std)),
        "source_sha256": vit.sha256,
    }
    write_safetensors(target, weights, metadata)
    streams.print_line(str(target))
    return shared.EXIT_OK


def _as_dtype(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a tensor as float16 or float32; periods of rotary positions stay float32.

    Raises
    ------
    CheckpointError
        If float16 cannot hold the numbers.
    """
    import numpy as np

    if name == "rope_embed.periods":
        dtype = "float32"
    with np.errstate(over="ignore"):
        converted = tensor.astype(dtype, copy=False)
    if dtype == "float16" and not np.isfinite(converted).all():
        raise CheckpointError(f"tensor {name!r} has numbers beyond float16; convert with --dtype float32")
    return converted


def _info(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.load import describe

    facts = describe(args.source, **arguments.checkpoint_arguments(args))
    if args.json:
        shared.print_json(_as_json(facts))
        return shared.EXIT_OK
    width = max(map(len, facts))
    for key, value in facts.items():
        streams.print_line(f"{key:<{width}}  {value}")
    return shared.EXIT_OK


def _as_json(facts: dict[str, str]) -> dict[str, object]:
    """Return the facts of a checkpoint by names without spaces, with the file's metadata as an object of their own.

    Examples
    --------
    >>> _as_json({"file": "a.pth", "mean, std": "(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)", "metadata format": "np"})
    {'file': 'a.pth', 'mean_std': '(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)', 'metadata': {'format': 'np'}}
    """
    metadata = {key.removeprefix("metadata "): text for key, text in facts.items() if key.startswith("metadata ")}
    names = {key: key.replace(",", "").replace(" ", "_") for key in facts if not key.startswith("metadata ")}
    named = {names[key]: text for key, text in facts.items() if key in names}
    return {**named, **path_entries("file", facts["file"]), "metadata": metadata}
