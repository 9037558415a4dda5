"""Random changes of files: of their bytes, of numbers in their text, of JSON values, of safetensors headers."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Sequence

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]

# Around the ends of the types that formats use.
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 10**30)
TEXT_NUMBERS = (*map(str, NUMBERS), "1e308", "-1e308", "1e400", "NaN", "Infinity", "-0", "0.5", "1e-400", "٣", "0x10")
JSON_VALUES: tuple[object, ...] = (
    *NUMBERS, None, True, False, 0.5, -1e308, float("nan"), float("inf"), "", "a", "é\u0000\ud800", "a" * 300, "../a",
    "/etc/passwd", [], {}, [[]], [None], [0, 0], [2**62, 2**62], [1] * 70, {"": 0}, "1", "-1", [["a"]],
)  # fmt: skip


def pick(rng: np.random.Generator, values: Sequence) -> object:
    """Return one of the values."""
    return values[int(rng.integers(len(values)))]


def change_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a few bytes: flip, set, overwrite by a number, cut, remove, repeat, insert or swap parts."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        kind = int(rng.integers(9))
        # Most structure is at the beginning.
        at = int(len(data) * rng.random() ** pick(rng, (1, 3)))
        length = int(min(len(data) - at, 2 ** rng.integers(8)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            packed = struct.pack(pick(rng, ("<Q", ">Q")), int(pick(rng, NUMBERS)) % 2**64)
            size = int(pick(rng, (1, 2, 4, 8)))
            data[at : at + size] = packed[:size] if rng.random() < 0.5 else packed[-size:]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            data[at:at] = rng.bytes(length)
        elif kind == 7:
            data[at : at + length] = bytes(length)
        else:
            other = int(rng.integers(len(data)))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def change_numbers(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace numbers in a text."""
    places = list(re.finditer(rb"\d+(\.\d+)?", content))
    for _ in range(int(rng.integers(1, 4))):
        if not places:
            return change_bytes(content, rng)
        place = pick(rng, places)
        content = content[: place.start()] + str(pick(rng, TEXT_NUMBERS)).encode() + content[place.end() :]
        places = list(re.finditer(rb"\d+(\.\d+)?", content))
    return content


def change_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Remove, repeat or exchange lines or tags, or insert words that mean something to a parser."""
    parts = re.split(rb"(?<=[\n>])", content)
    words = (b"#", b"\t", b",", b"ignore", b"background", b"255", b"\xef\xbb\xbf", b"\0", b"&amp;", b"<!DOCTYPE a>",
             b"<![CDATA[", b"<a>", b"</a>", b"\r", b"\x85", b"../", b" " * 300)  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(parts)))
        kind = int(rng.integers(4))
        if kind == 0:
            parts[at] = b""
        elif kind == 1:
            parts.insert(at, parts[at])
        elif kind == 2:
            other = int(rng.integers(len(parts)))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            inside = int(rng.integers(len(parts[at]) + 1))
            parts[at] = parts[at][:inside] + bytes(pick(rng, words)) + parts[at][inside:]
    return b"".join(parts)


def change_value(value: object, rng: np.random.Generator) -> object:
    """Return a copy of a JSON value, changed at one to three places: replaced, removed, repeated, renamed."""
    root = [copy.deepcopy(value)]
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(root))
        holder, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(6))
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1 and isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2 and isinstance(holder, dict):
            holder[str(pick(rng, ("", "id", "size", "counts", key + "x")))] = holder.pop(key)
        elif kind == 3:
            holder[key] = copy.deepcopy(pick(rng, [other[place] for other, place in places]))
        else:
            holder[key] = copy.deepcopy(pick(rng, JSON_VALUES))
    return root[0]


def _places(root: list) -> list[tuple]:
    """Return every container within a value with each of its keys."""
    found, waiting = [], [root]
    while waiting and len(found) < 2000:
        holder = waiting.pop()
        for key in list(range(len(holder)) if isinstance(holder, list) else holder):
            found.append((holder, key))
            if isinstance(holder[key], (list, dict)):
                waiting.append(holder[key])
    return found


def change_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Change values of a JSON text."""
    return dump(change_value(json.loads(content), rng))


def change_json_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Change values of one line of JSON Lines."""
    lines = content.splitlines(keepends=True)
    at = int(rng.integers(len(lines)))
    lines[at] = dump(change_value(json.loads(lines[at]), rng)) + b"\n"
    return b"".join(lines)


def dump(value: object) -> bytes:
    """Return JSON; lone surrogates and NaN are written as other programs do."""
    return json.dumps(value).encode()


def change_shape(content: bytes, rng: np.random.Generator) -> bytes:
    """Give a tensor of a safetensors file another shape of as many numbers, so that the file stays consistent."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header[str(pick(rng, [name for name in header if name != "__metadata__"]))]
    size = int(np.prod(entry["shape"]))
    ones = [1] * int(pick(rng, (1, 2, 30, 31, 32, 33, 64, 65, 1000)))
    shapes = [[size], [size, 1], [1, size], entry["shape"][::-1], [*ones, *entry["shape"]], [*entry["shape"], *ones]]
    if size == 0:
        shapes += [[0, 2**62], [2**62, 0], [0, 2**31, 2**31], [0] * 40, [2**63 - 1, 0]]
    entry["shape"] = pick(rng, shapes)
    return _with_header(content, length, header)


def change_header(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of a safetensors file and adapt its length; metadata that is JSON is changed inside."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    inside = [name for name, text in metadata.items() if text[:1] in ("[", "{")]
    if inside and rng.random() < 0.5:
        name = str(pick(rng, inside))
        metadata[name] = dump(change_value(json.loads(metadata[name]), rng)).decode()
    else:
        header = change_value(header, rng)
    return _with_header(content, length, header)


def _with_header(content: bytes, length: int, header: object) -> bytes:
    """Return a safetensors file with another header in the place of that of a length."""
    text = dump(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
