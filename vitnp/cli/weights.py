"""``python -m vitnp.weights``: what is known, bring it, convert it, look into it."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from vitnp.checkpoints import registry
from vitnp.cli import shared
from vitnp.cli.arguments import positive
from vitnp.errors import CheckpointError, OutputError, UsageError

PROG = "python -m vitnp.weights"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _parser().parse_args(arguments)
    return args.act(args)


def _parser() -> argparse.ArgumentParser:
    made = shared.parser(
        PROG,
        "Checkpoints: list the known ones, fetch one by name, convert and inspect files.",
        epilog="VITNP_CACHE: folder for fetched files. VITNP_MIRROR: address that replaces the server of every download. "
        "HTTPS_PROXY is respected. Nothing is fetched unless its name is given.",
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(made))

    add = commands.add_parser("list", help="what is known, what is here and where")
    add.set_defaults(act=_list)

    add = commands.add_parser("fetch", help="download a known checkpoint into the cache, once")
    add.add_argument("name", metavar="NAME", help="one of the list")
    add.set_defaults(act=_fetch)

    add = commands.add_parser("convert", help="any known file to a canonical .safetensors with metadata")
    add.add_argument("source", metavar="IN", help="file, or name of the list")
    add.add_argument("target", metavar="OUT", help=".safetensors file to write")
    add.add_argument("--dtype", choices=("float16", "float32"), default="float32", help="of the numbers (float32)")
    add.add_argument("--overwrite", action="store_true", help="replace OUT when it exists")
    _add_overrides(add)
    add.set_defaults(act=_convert)

    add = commands.add_parser("info", help="what a file holds and how it will be run")
    add.add_argument("source", metavar="FILE", help="file, or name of the list")
    _add_overrides(add)
    add.set_defaults(act=_info)
    return made


def _add_overrides(to: argparse.ArgumentParser) -> None:
    to.add_argument("--heads", type=positive, metavar="N", help="attention heads, where the file doesn't tell")
    to.add_argument(
        "--pos-embed", choices=("offset", "exact", "antialias"), help="resampling of positions (file's own)"
    )
    to.add_argument(
        "--normalization",
        "--normalise",
        choices=tuple(registry.NORMALIZATIONS),
        help="input normalization (file's own)",
    )


def _list(_: argparse.Namespace) -> int:
    from vitnp.checkpoints.download import cache_folder, place_of

    rows = [("NAME", "MB", "LICENSE", "HERE", "")]
    for entry in registry.entries().values():
        here = "built in" if entry.url is None else "cached" if place_of(entry).is_file() else "-"
        text = f"{entry.title}. {entry.note}" if entry.note else f"{entry.title}."
        rows.append((entry.name, f"{entry.megabytes:g}", entry.license, here, text))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip())
    print(f"\nCache: {cache_folder()}")
    print(f"Bring one with `{PROG} fetch NAME`; use it with --model NAME. A path to a file works as --model too.")
    return shared.EXIT_OK


def _fetch(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.download import address_of, fetch, place_of

    entry = registry.find(args.name)
    if entry.url and not place_of(entry).is_file():
        shared.say(f"fetching {entry.name}, {entry.megabytes:g} MB, from {address_of(entry)}")
    path, sha256 = fetch(entry.name)
    print(path)
    shared.say(f"sha256 {sha256}" + ("" if entry.sha256 else " (no page records it; noted beside the file)"))
    return shared.EXIT_OK


def _convert(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.load import load_vit
    from vitnp.checkpoints.safetensors_io import write_safetensors

    target = pathlib.Path(args.target)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target} should end in .safetensors")
    if target.exists() and not args.overwrite:
        raise OutputError(f"{target} exists already: choose another name, or give --overwrite")
    vit = load_vit(args.source, heads=args.heads, pos_embed=args.pos_embed, normalization=args.normalization)
    weights = {}
    for name, tensor in vit.weights.items():
        weights[name] = _as_dtype(name, tensor, args.dtype)
    config = vit.config
    metadata = {
        "format": "np",
        "name": vit.name,
        "heads": str(config.heads),
        "patch": str(config.patch),
        "grid": ",".join(map(str, config.grid)),
        "norm_eps": repr(config.eps),
        "pos_embed": config.pos_embed,
        "mean": ",".join(map(repr, config.mean)),
        "std": ",".join(map(repr, config.std)),
        "source_sha256": vit.sha256,
    }
    write_safetensors(target, weights, metadata)
    print(target)
    return shared.EXIT_OK


def _as_dtype(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as float16 or float32; refuses what float16 can't hold."""
    with np.errstate(over="ignore"):
        converted = tensor.astype(dtype, copy=False)
    if dtype == "float16" and not np.isfinite(converted).all():
        raise CheckpointError(f"tensor {name!r} has numbers beyond float16: convert with --dtype float32")
    return converted


def _info(args: argparse.Namespace) -> int:
    from vitnp.checkpoints.load import describe

    facts = describe(args.source, heads=args.heads, pos_embed=args.pos_embed, normalization=args.normalization)
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {value}")
    return shared.EXIT_OK


if __name__ == "__main__":
    shared.run(main)
