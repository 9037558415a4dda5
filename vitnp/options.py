"""Every option once: its name, its choices, its default, the check of its value and its help text.

The Python API checks values with :func:`check`, the command line builds its parsers from the same table (see
:mod:`vitnp.cli.arguments`). This module imports nothing heavy, so that ``--help`` and wrong options are answered at
once.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitnp.errors import UsageError

FACETS = ("key", "query", "value", "token")
FEATURES = (*FACETS, "cls", "register", "attention", "cls_state")
POS_EMBED_INTERPS = ("offset", "exact", "antialias")
NORMALIZATIONS = ("imagenet", "half")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
REFINEMENTS = ("solver", "crf", "guided", "none")
LEVELS = ("auto", "image", "single", "all")
CONSISTENCIES = ("mean", "majority", "intersection")
REGIONS = ("image", "components", "split")
OUTPUTS = ("mask", "overlay", "cutout", "soft", "score", "keys", "npz")
FEATURE_FORMATS = ("npz", "safetensors")
FEATURE_DTYPES = ("float16", "float32")
TASKS = ("saliency", "semantic", "discovery")
LAYOUTS = ("auto", "voc", "coco", "coseg", "folder")
MATCHINGS = ("hungarian", "many-to-one")
VOC_LABELS = ("SegmentationClass", "SegmentationClassAug")

SHORT_SIDE = 320
MAX_TOKENS = 4096
MAX_PIXELS = 120_000_000
MAX_CLASSES = 65_535

# From this many photographs on, fitting them as a set teaches more than it costs.
MIN_PHOTOGRAPHS_FOR_A_SET = 30


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of the Python API, of the command line, or of both.

    Attributes
    ----------
    name : str
        Name of the parameter in Python, and of the attribute that the command line sets.
    help : str
        One line for ``--help``.
    type : type
        ``int``, ``float``, ``str``, ``Path`` or ``bool`` (a switch).
    default : object
        Value when nothing is given. None is always accepted where it is the default.
    choices : tuple of str
        Allowed words; empty for any.
    minimum, maximum : float, optional
        Range of a number, both ends included.
    words : tuple of str
        Words allowed in place of a number, such as "all".
    metavar : str, optional
        Placeholder for the value in ``--help``.
    flag : str, optional
        Name on the command line; by default ``--name`` with hyphens.
    old_flags : tuple of str
        Former names on the command line: still accepted, not shown.
    old_values : mapping of str to str
        Former words for a choice, on the command line.
    """

    name: str
    help: str
    type: type = str
    default: object = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    words: tuple[str, ...] = ()
    metavar: str | None = None
    flag: str = ""
    old_flags: tuple[str, ...] = ()
    old_values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def long_flag(self) -> str:
        """Name on the command line, such as ``--short-side``."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """Allowed values in words.

        Examples
        --------
        >>> OPTIONS["seed"].allowed
        'a whole number of at least 0'
        """
        if self.choices:
            return f"one of {enumerate_words(self.choices)}"
        kind = {int: "a whole number", float: "a number"}.get(self.type, "text")
        if self.minimum is not None and self.maximum is not None:
            kind += f" from {self.minimum:g} to {self.maximum:.10g}"
        elif self.minimum is not None:
            kind += f" of at least {self.minimum:g}"
        return " or ".join([kind, *(f'"{word}"' for word in self.words)])

    def accepts(self, value: object) -> bool:
        """Tell whether a value is allowed."""
        if value is None:
            return self.default is None
        if isinstance(value, str) and value in self.words:
            return True
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.type in (int, float):
            number = numbers.Integral if self.type is int else numbers.Real
            if isinstance(value, bool) or not isinstance(value, number):
                return False
            low = -float("inf") if self.minimum is None else self.minimum
            high = float("inf") if self.maximum is None else self.maximum
            return low <= value <= high
        return True

    def check(self, value: Any) -> Any:
        """Return a value that is allowed, a number as Python's own ``int`` or ``float``.

        Raises
        ------
        UsageError
            If the value is not allowed.

        Examples
        --------
        >>> OPTIONS["facet"].check("keys")
        Traceback (most recent call last):
        vitnp.errors.UsageError: facet must be one of key, query, value or token, got 'keys'
        """
        if not self.accepts(value):
            raise UsageError(f"{self.name} must be {self.allowed}, got {value!r}")
        if self.type in (int, float) and isinstance(value, numbers.Real):
            return self.type(value)
        return value


def enumerate_words(words: tuple[str, ...] | list[str]) -> str:
    """Join words for a sentence.

    Examples
    --------
    >>> enumerate_words(("npz", "safetensors", "csv"))
    'npz, safetensors or csv'
    """
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_TABLE = (
    # The network.
    Option("model", "registered name or checkpoint file (built-in)", default="auto", metavar="NAME|FILE"),
    Option("heads", "attention heads, if the file does not say", int, minimum=1, metavar="N"),
    Option(
        "pos_embed",
        "resampling of positions: offset, exact, antialias",
        choices=POS_EMBED_INTERPS,
        metavar="NAME",
        flag="--pos-embed-interp",
        old_flags=("--pos-embed",),
    ),
    Option(
        "normalization",
        "input normalization: imagenet or half",
        choices=NORMALIZATIONS,
        metavar="NAME",
        old_flags=("--normalise", "--normalize"),
    ),
    Option("device", "cpu, cuda or auto: cuda if it works (auto)", default="auto", choices=DEVICES, metavar="D"),
    Option(
        "precision",
        "fp32, tf32, bf16, fp16 or auto: fp32, on cuda fp16",
        default="auto",
        choices=PRECISIONS,
        metavar="P",
    ),
    # The features.
    Option(
        "short_side",
        f"short side of the network's input ({SHORT_SIDE})",
        int,
        minimum=1,
        metavar="PX",
        old_flags=("--size",),
    ),
    Option("facet", "key, query, value or token (key)", default="key", choices=FACETS, metavar="NAME"),
    Option("layer", "block to read, from 0, or from the end: -1 (-1)", int, default=-1, metavar="N"),
    Option("stride", "pixels between patches (the patch size)", int, minimum=1, metavar="PX"),
    Option("max_tokens", f"limit of patches per photograph ({MAX_TOKENS})", int, MAX_TOKENS, minimum=1, metavar="N"),
    Option("max_pixels", "refuse larger photographs (120e6)", int, MAX_PIXELS, minimum=1, metavar="N"),
    # The mask.
    Option("refine", "solver, crf, guided or none (solver)", default="solver", choices=REFINEMENTS, metavar="NAME"),
    Option("seed", "same seed, same masks (0)", int, default=0, minimum=0, metavar="N"),
    Option(
        "min_confidence",
        "empty mask below this confidence, 0 to 1 (0)",
        float,
        default=0.0,
        minimum=0,
        maximum=1,
        metavar="C",
    ),
    # The collection.
    Option(
        "levels",
        f"image, single or all; auto: all from {MIN_PHOTOGRAPHS_FOR_A_SET} on",
        default="auto",
        choices=LEVELS,
        metavar="L",
        old_values={"each": "single"},
    ),
    Option("collection", "apply a saved collection, or none (built-in)", default="auto", metavar="FILE"),
    Option(
        "n_classes",
        "find N classes: NAME_labels.png",
        int,
        minimum=1,
        maximum=MAX_CLASSES,
        metavar="N",
        flag="--classes",
    ),  # fmt: skip
    Option(
        "n_categories", "categories of similar photographs (1 per 20)", int, minimum=1, metavar="N", flag="--categories"
    ),  # fmt: skip
    Option(
        "consistency", "mean, majority or intersection (mean)", default="mean", choices=CONSISTENCIES, metavar="NAME"
    ),
    Option(
        "regions", "one class per image, components or split (image)", default="image", choices=REGIONS, metavar="R"
    ),  # fmt: skip
    Option("fit_patches", "patches to fit on, or all (60000)", int, minimum=1, words=("all",), metavar="N"),
    Option("cache", "folder that keeps features for the next run", metavar="DIR"),
    Option("scheduler", "fit on dask workers: tcp://HOST:PORT, or local", metavar="URL"),
    Option(
        "save_collection", "save what was fitted; implies --levels all", Path, metavar="FILE", old_flags=("--fit-to",)
    ),
    # The outputs.
    Option("out", "folder to write to (that of each photograph)", Path, metavar="DIR"),
    Option("save", "of mask,overlay,cutout,soft,score,keys,npz", default="mask,overlay", metavar="LIST"),
    Option("overwrite", "redo finished work, replace existing files", bool, default=False),
    Option("polygons", "polygons in annotations.json, not run lengths", bool, default=False),
    Option("format", "npz or safetensors (npz)", default="npz", choices=FEATURE_FORMATS, metavar="NAME"),
    Option("dtype", "float16 or float32 (float16)", default="float16", choices=FEATURE_DTYPES, metavar="TYPE"),
    Option("prune", "remove from the cache all but these photographs", bool, default=False),
    # The run.
    Option("n_threads", "photographs in flight (all cores)", int, minimum=1, metavar="N", flag="--threads"),
    Option("batch", "photographs per forward pass (by memory)", int, minimum=1, metavar="N"),
    Option("quiet", "print errors only", bool, default=False),
    Option("json", "print JSON", bool, default=False),
    # The evaluation.
    Option("task", "saliency, semantic or discovery (saliency)", default="saliency", choices=TASKS, metavar="TASK"),
    Option("layout", "auto, voc, coco, coseg or folder (auto)", choices=LAYOUTS, metavar="NAME"),
    Option("split", "list of a VOC set (val; discovery: trainval)", metavar="NAME"),
    Option("labels", "SegmentationClass or SegmentationClassAug", choices=VOC_LABELS, metavar="DIR"),
    Option("names", "file of class names, one per line", Path, metavar="FILE"),
    Option("merge", "file with two columns: class, coarser class", Path, metavar="FILE"),
    Option("clusters", "over-cluster: N, matched many-to-one", int, minimum=1, metavar="N"),
    Option("matching", "hungarian or many-to-one (hungarian)", choices=MATCHINGS, metavar="NAME"),
    Option("seeds", "mean and deviation over N seeds", int, minimum=1, metavar="N"),
    Option("ablate", "score the method without each of its parts", bool, default=False),
    Option("csv", "write the table in full precision", Path, metavar="FILE"),
    Option("report", "write pictures: best, median and worst", Path, metavar="DIR"),
)

OPTIONS: dict[str, Option] = {option.name: option for option in _TABLE}


def check(name: str, value: Any) -> Any:
    """Return the value of an option if it is allowed; see :meth:`Option.check`.

    Raises
    ------
    UsageError
        If the value is not allowed: what was given and what is allowed.

    Examples
    --------
    >>> check("n_classes", 20)
    20
    """
    return OPTIONS[name].check(value)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a photograph is segmented; the options that do not depend on the network.

    Attributes
    ----------
    short_side : int, optional
        Short side in pixels of what the network sees; 320 by default.
    facet : {"key", "query", "value", "token"}
        Feature to cluster.
    layer : int
        Block to read; negative numbers count from the last.
    stride : int, optional
        Pixels between patches, a divisor of the patch size; the patch size by default.
    max_tokens : int
        Limit of patches; a larger grid is made coarser.
    max_pixels : int
        Larger photographs are refused before they are decoded.
    refine : {"solver", "crf", "guided", "none"}
        Bilateral solver, dense CRF, guided filter, or bilinear enlargement alone.
    seed : int
        Same seed and photograph, same answer, bit for bit.
    min_confidence : float
        A photograph below this confidence gets an empty mask.

    Raises
    ------
    UsageError
        If a value is not allowed.
    """

    short_side: int | None = None
    facet: str = "key"
    layer: int = -1
    stride: int | None = None
    max_tokens: int = MAX_TOKENS
    max_pixels: int = MAX_PIXELS
    refine: str = "solver"
    seed: int = 0
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    @property
    def of_features(self) -> dict[str, Any]:
        """The settings that the features depend on, as keyword arguments."""
        return {name: getattr(self, name) for name in ("short_side", "facet", "layer", "stride", "max_tokens")}
