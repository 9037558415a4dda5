"""Damaged and hostile checkpoints, one for each number, made from intact ones.

    PYTHONPATH=.:tests/support python tests/support/fuzz_checkpoints.py FIRST LAST      # try those of these numbers

Half of the damage is done inside the containers, behind correct lengths and checksums, where it reaches the readers.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import pathlib
import pickletools
import random
import struct
import sys
import tempfile
import zipfile

import numpy as np

SHARD = "shard.safetensors"
TORCH_FILES = pathlib.Path(__file__).resolve().parent.parent / "golden" / "torch_files"

# Numbers at which counts, sizes and offsets go wrong.
_NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 65, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**61 - 1, 2**62)
_NUMBERS += (2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, -2, -(2**31), -(2**63))
_VALUES = (
    *_NUMBERS,
    0.5,
    1e308,
    None,
    True,
    "",
    "F32",
    "x" * 5000,
    [],
    {},
    [[]],
    "\ud800",
    "__metadata__",
    "../a",
    "\0",
)
_NAMES = ("cls_token", "embeddings.cls_token", "blocks.0.norm1.weight", "blocks.9999.norm1.weight", "pos_embed", ".")
_GLOBALS = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n"),
    *(b"ccollections\ndefaultdict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cpathlib\nPosixPath\n", b"ctorch\nBFloat16Storage\n"),
    b"ctorch._utils\n_rebuild_parameter\n",
)


def mutated_checkpoint(number: int) -> tuple[str, bytes]:
    """Return the name and the content of a damaged file; the same number always gives the same file."""
    rng = random.Random(number)
    name, intact = rng.choice(_intact())
    kind = pathlib.PurePath(name).suffix
    if rng.random() < 0.3:
        return name, _bytes(rng, intact)
    if kind == ".json":
        return name, json.dumps(_json(rng, json.loads(intact))).encode("utf-8", "surrogatepass")
    if kind == ".safetensors":
        return name, _safetensors(rng, intact)
    if intact.startswith(b"PK"):
        return name, _zip(rng, intact)
    return name, _legacy(rng, intact)


def write_shard(folder: pathlib.Path) -> None:
    """Write the file that the intact index names into the folder of the damaged ones."""
    (folder / SHARD).write_bytes(dict(_intact())["model.safetensors"])


def try_checkpoint(path: pathlib.Path) -> bool:
    """Load a file and read every number of it; return whether it was loaded, False if it was refused in a sentence."""
    from vitnp.checkpoints.load import load_vit
    from vitnp.errors import CheckpointError

    try:
        weights = load_vit(path, heads=1, normalization="imagenet").weights
    except CheckpointError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < 1000, message
        return False
    assert all(np.isfinite(array).all() for array in weights.values())
    return True


@functools.cache
def _intact() -> list[tuple[str, bytes]]:
    import safetensors.numpy
    from random_vit import random_weights

    from vitnp.vit.config import ViTConfig

    config = ViTConfig(width=4, depth=1, heads=1, patch=2, grid=(3, 3))
    weights = random_weights(config, seed=0, hidden=4, class_position=True, dtype=np.float32)
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, SHARD)}
    files = [(path.name, path.read_bytes()) for path in sorted(TORCH_FILES.glob("*.pth"))]
    files += [
        ("model.safetensors", safetensors.numpy.save(weights, {"grid": "3,3", "heads": "1"})),
        ("half.safetensors", safetensors.numpy.save(half)),
        ("model.safetensors.index.json", json.dumps(index).encode()),
    ]
    return files + files[-3:] * 2 + [("dinov3.safetensors", safetensors.numpy.save(_dinov3()))]


def _dinov3() -> dict[str, np.ndarray]:
    """Return a DINOv3 under the names of its own code, with a masked bias and a SwiGLU of three layers."""
    from random_vit import random_weights

    from vitnp.vit.config import ViTConfig

    config = ViTConfig(width=4, depth=1, heads=1, patch=2, grid=(3, 3), registers=1, swiglu=True, rotary=True)
    weights = random_weights(config, seed=0, hidden=4, class_position=False, dtype=np.float32)
    weights["storage_tokens"] = weights.pop("register_tokens")
    weights["blocks.0.attn.qkv.bias_mask"] = np.full(12, np.nan, np.float32)
    for kind in ("weight", "bias"):
        gate, up = np.split(weights.pop(f"blocks.0.mlp.w12.{kind}"), 2)
        weights |= {f"blocks.0.mlp.w1.{kind}": gate, f"blocks.0.mlp.w2.{kind}": up}
    return weights


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, cut the end off, move, double or remove a part."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, to = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
        match rng.randrange(7):
            case 0:
                del changed[at : min(to, at + 64)]
            case 1:
                changed[at:at] = changed[at : min(to, at + 64)]
            case 2:
                changed[at : at + 8] = struct.pack("<Q", rng.choice(_NUMBERS) % 2**64)
            case 3 if rng.random() < 0.3:
                del changed[at:]
            case _:
                changed[at : at + 1] = bytes([rng.randrange(256)])
        if not changed:
            break
    return bytes(changed)


def _json(rng: random.Random, tree: object, depth: int = 0) -> object:
    """Replace, remove, rename or add something in a tree of JSON."""
    if isinstance(tree, dict) and tree and (depth < 1 or rng.random() < 0.85):
        key = rng.choice(list(tree))
        match rng.randrange(8):
            case 0:
                del tree[key]
            case 1:
                tree[rng.choice([*_NAMES, "x" * rng.choice((10, 2000)), key + ".weight"])] = tree[key]
            case 2:
                tree = {(rng.choice(_NAMES) if name == key else name): value for name, value in tree.items()}
            case _:
                tree[key] = _json(rng, tree[key], depth + 1)
        return tree
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        match rng.randrange(5):
            case 0:
                del tree[at]
            case 1:
                tree *= rng.choice((2, 20, 40))
            case 2:
                tree.insert(at, rng.choice(_VALUES))
            case _:
                tree[at] = _json(rng, tree[at], depth + 1)
        return tree
    return rng.choice(_VALUES)


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    """Damage the header, often so that it stays consistent: shapes that keep their product, sides of zero and one."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice((1, 1, 2, 3))):
        tensors = [key for key, value in header.items() if isinstance(value, dict) and "shape" in value]
        shape = header[rng.choice(tensors)]["shape"] if tensors and rng.random() < 0.6 else None
        if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
            header = _json(rng, header)
            if not isinstance(header, dict):
                break
            continue
        match rng.randrange(5):
            case 0:
                shape += [1] * rng.choice((1, 30, 33, 64, 65, 300))
            case 1:
                shape.reverse()
            case 2:
                shape[:] = [int(np.prod(shape))] if abs(sum(shape)) < 1e6 else []
            case 3:
                header[f"extra{rng.randrange(9)}"] = {
                    "dtype": rng.choice(("F32", "BF16", "F8_E4M3", "BOOL", "U64", "F64", "C64", "F4")),
                    "shape": [0, *(rng.choice(_NUMBERS) for _ in range(rng.randrange(4)))],
                    "data_offsets": [len(data)] * 2,
                }
            case _:
                shape.append(rng.choice(_NUMBERS))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:  # a name twice
        text = text[:-1] + b", " + text[1:]
    return struct.pack("<Q", len(text)) + text + data


def _zip(rng: random.Random, content: bytes) -> bytes:
    """Damage an entry, mostly the pickle, and write the archive anew with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    chosen = next(name for name in entries if name.endswith("data.pkl"))
    if rng.random() < 0.15:
        chosen = rng.choice(list(entries))
        entries[chosen] = _bytes(rng, entries[chosen] or b"\0")
    else:
        entries[chosen] = _pickle(rng, entries[chosen])
    if rng.random() < 0.1:
        entries.pop(rng.choice(list(entries)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _legacy(rng: random.Random, content: bytes) -> bytes:
    """Damage the main pickle of the older container, which is its fourth."""
    stream = io.BytesIO(content)
    ends = []
    for _ in range(4):
        for _opcode in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return content[: ends[2]] + _pickle(rng, content[ends[2] : ends[3]]) + content[ends[3] :]


def _pickle(rng: random.Random, pickled: bytes) -> bytes:
    """Remove, double, move or insert instructions of a pickle, or change their arguments."""
    if rng.random() < 0.2:
        return _bytes(rng, pickled)
    starts = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    parts = [pickled[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts))
        part = parts[at]
        match rng.randrange(8):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, part)
            case 2:
                parts.insert(rng.randrange(len(parts)), part)
            case 3:
                parts.insert(at, rng.choice(_GLOBALS))
            case 4:
                parts.insert(
                    at, rng.choice((b"N", b"}", b"]", b")", b"(", b"0", b"R", b"\x81", b"b", b"s", b"u", b"Q", b"t"))
                )
            case 5 if part[:1] in b"KMJ":  # a count, a side, a stride, an offset
                parts[at] = b"L%dL\n" % rng.choice(_NUMBERS)
            case 5 if part[:1] in b"X\x8c":
                word = rng.choice(("", "0", "1", "../data.pkl", "cls_token", "x" * 3000, "storage", "a.b", "\0"))
                parts[at] = b"X" + struct.pack("<I", len(word)) + word.encode()
            case 6:
                parts[at:at] = [b"}", b"X\x01\0\0\0a"] * rng.choice((1, 50)) + [b"s"]
            case _:
                parts[at] = _bytes(rng, part)
        if not parts:
            break
    return b"".join(parts)


def main() -> None:
    """Try the checkpoints of the numbers FIRST to LAST - 1, and print those that are neither loaded nor refused."""
    logging.disable(logging.WARNING)  # guesses about a network are no news here
    first, last = map(int, sys.argv[1:])
    loaded = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        write_shard(pathlib.Path(folder))
        for number in range(first, last):
            name, content = mutated_checkpoint(number)
            path = pathlib.Path(folder, name)
            path.write_bytes(content)
            try:
                loaded += try_checkpoint(path)
            except Exception as error:
                wrong += 1
                print(f"{number} ({name}): {type(error).__name__}: {error}"[:300], flush=True)
            path.unlink()
    print(f"{last - first} files: {loaded} loaded, {wrong} wrong")


if __name__ == "__main__":
    main()
