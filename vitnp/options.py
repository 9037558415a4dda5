"""The table of options: name, choices, default, allowed values and help text of each.

The Python API checks values with :func:`check`, and the command line builds its parsers from the same table (see
:mod:`vitnp.cli.arguments`). This module imports nothing heavy, so that ``--help`` and errors about options are fast.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vitnp.errors import UsageError
from vitnp.option import Option as Option
from vitnp.option import enumerate_words as enumerate_words

FACETS = ("key", "key_rotated", "query", "value", "token")
FEATURES = (*FACETS, "cls", "register", "attention", "cls_state")
POS_EMBED_INTERPS = ("offset", "exact", "antialias")
NORMALIZATIONS = ("imagenet", "half", "sat493m")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16", "int8")
REFINEMENTS = ("solver", "crf", "guided", "color", "none")
DOMAINS = ("photo", "texture", "lines")
LEVELS = ("auto", "image", "single", "all")
CONSISTENCIES = ("mean", "majority", "intersection")
REGIONS = ("image", "components", "split")
ALPHAS = ("background", "mask", "ignore")
OUTPUTS = ("mask", "overlay", "cutout", "soft", "score", "keys", "npz", "objects")
EXPORT_FORMATS = ("coco", "yolo", "voc", "labelme", "labelstudio")
FEATURE_OUTPUTS = ("features", "pca", "attention", "maps")
FEATURE_FORMATS = ("npz", "safetensors", "parquet")
FEATURE_DTYPES = ("float16", "float32")
DESCRIBED = ("image", "object", "layout")
TASKS = ("saliency", "semantic", "discovery")
LAYOUTS = ("auto", "voc", "coco", "coseg", "folder")
MATCHINGS = ("hungarian", "many-to-one")
VOC_LABELS = ("SegmentationClass", "SegmentationClassAug")

SHORT_SIDE = 320
MAX_TOKENS = 4096
MAX_PIXELS = 120_000_000
MAX_CLASSES = 65_535
# Most objects of a photograph: as many as COCO's scores consider. Label images hold 255, VOC's 254.
MAX_OBJECTS = 100

# Neighbors of a query, and correspondences of a pair of photographs.
N_NEIGHBORS = 12
N_MATCHES = 20

# The command line fits at least this many photographs as a set; fewer are segmented one by one.
MIN_PHOTOGRAPHS_FOR_A_SET = 30


_TABLE = (
    # The network.
    Option("model", "known name, file, folder or org/name (built-in)", default="auto", metavar="NAME|PATH"),
    Option("heads", "attention heads (by the checkpoint)", int, minimum=1, metavar="N"),
    Option(
        "pos_embed",
        "offset, exact or antialias (by the checkpoint)",
        choices=POS_EMBED_INTERPS,
        metavar="NAME",
        flag="--pos-embed-interp",
        old_flags=("--pos-embed",),
    ),
    Option(
        "normalization",
        "imagenet, half or sat493m (by the checkpoint)",
        choices=NORMALIZATIONS,
        metavar="NAME",
        old_flags=("--normalise", "--normalize"),
    ),
    Option(
        "grid",
        "patches that positions were trained on, as 14x16",
        metavar="ROWSxCOLS",
        pattern="[1-9][0-9]{0,3}[xX][1-9][0-9]{0,3}",
        example="rows x columns of patches, such as 14x16",
    ),
    Option("device", "cpu, cuda or auto: cuda if available (auto)", default="auto", choices=DEVICES, metavar="D"),
    Option(
        "precision",
        "fp32, tf32, bf16, fp16, int8; auto: fp32, cuda fp16",
        default="auto",
        choices=PRECISIONS,
        metavar="P",
    ),
    # The features.
    Option(
        "short_side",
        f"short side of the network's input ({SHORT_SIDE} for most)",
        int,
        minimum=1,
        metavar="PX",
        old_flags=("--size",),
    ),
    Option("facet", "key, key_rotated, query, value or token (key)", default="key", choices=FACETS, metavar="NAME"),
    Option("layer", "block to read; negative from the last (-1)", int, metavar="N"),
    Option("stride", "pixels between patches (the patch size)", int, minimum=1, metavar="PX"),
    Option("max_tokens", f"most patches per photograph ({MAX_TOKENS})", int, MAX_TOKENS, minimum=1, metavar="N"),
    Option("max_pixels", "most pixels per photograph (120e6)", int, MAX_PIXELS, minimum=1, metavar="N"),
    Option(
        "alpha",
        "transparency: background, mask, ignore (background)",
        default="background",
        choices=ALPHAS,
        metavar="NAME",
    ),
    # The mask.
    Option(
        "domain", "photo; texture: many small parts; lines (photo)", default="photo", choices=DOMAINS, metavar="NAME"
    ),
    Option("refine", "solver, crf, guided, color or none (solver)", choices=REFINEMENTS, metavar="NAME"),
    Option("seed", "seed of k-means: same seed, same masks (0)", int, default=0, minimum=0, metavar="N"),
    Option(
        "min_confidence",
        "empty mask below this confidence, 0 to 1 (0)",
        float,
        default=0.0,
        minimum=0,
        maximum=1,
        metavar="C",
    ),
    Option("instances", "separate the objects of a mask, ranked", bool, default=False),
    Option(
        "objects", "keep the N first objects; implies --instances", int, minimum=1, maximum=MAX_OBJECTS, metavar="N"
    ),
    # The collection.
    Option(
        "levels",
        f"image, single, all; auto: all from {MIN_PHOTOGRAPHS_FOR_A_SET} photographs",
        default="auto",
        choices=LEVELS,
        metavar="L",
        old_values={"each": "single"},
    ),
    Option("collection", "apply a saved collection, or none (built-in)", default="auto", metavar="FILE"),
    Option(
        "n_classes",
        "find N classes, write NAME_labels.png",
        int,
        minimum=1,
        maximum=MAX_CLASSES,
        metavar="N",
        flag="--classes",
    ),
    Option(
        "n_categories", "groups of similar photographs (one per 20)", int, minimum=1, metavar="N", flag="--categories"
    ),
    Option(
        "consistency", "mean, majority or intersection (mean)", default="mean", choices=CONSISTENCIES, metavar="NAME"
    ),
    Option(
        "regions", "what gets a class: image, components, split (image)", default="image", choices=REGIONS, metavar="R"
    ),
    Option("fit_patches", "patches to fit on, or all (60000)", int, minimum=1, words=("all",), metavar="N"),
    Option("cache", "folder that keeps features for the next run", metavar="DIR"),
    Option("scheduler", "dask workers: tcp:// or tls://HOST:PORT, or local", metavar="URL"),
    Option(
        "save_collection",
        "save the fitted collection; implies --levels all",
        Path,
        metavar="FILE",
        old_flags=("--fit-to",),
    ),
    # The outputs.
    Option("out", "output folder (that of each photograph)", Path, metavar="DIR"),
    Option("save", "of mask,overlay,cutout,soft,score,keys,npz,objects", default="mask,overlay", metavar="LIST"),
    Option(
        "background",
        "behind cutouts: transparent, blur or a color",
        default="transparent",
        metavar="COLOR",
        example='"transparent", "blur" or an opaque color such as white, #ff8800 or hsl(30, 100%, 50%)',
    ),
    Option(
        "crop",
        "crop cutouts to the object, plus PX or 5% (0)",
        metavar="MARGIN",
        const="0",
        pattern=r"[0-9]+([.][0-9]+)?%?",
        example="a margin in pixels or percent, such as 20 or 5%",
    ),
    Option("video", "each folder holds the frames of a clip", bool, default=False),
    Option("overwrite", "redo finished photographs, replace any file", bool, default=False),
    Option(
        "formats",
        "also as coco,yolo,voc,labelme,labelstudio",
        metavar="LIST",
        flag="--format",
    ),
    Option(
        "polygons",
        "polygons within PX pixels, not run lengths (1)",
        float,
        minimum=0,
        const=1.0,
        metavar="PX",
    ),
    Option("copy", "copy photographs instead of linking to them", bool, default=False),
    Option(
        "validation",
        "share for validation, in yolo and voc (0.2)",
        float,
        0.2,
        minimum=0,
        maximum=1,
        metavar="SHARE",
        flag="--split",
    ),
    Option(
        "format",
        "npz or safetensors; parquet with --mask (npz)",
        default="npz",
        choices=FEATURE_FORMATS,
        metavar="NAME",
    ),
    Option("dtype", "float16 or float32 (float16)", default="float16", choices=FEATURE_DTYPES, metavar="TYPE"),
    Option("prune", "remove all other photographs from the cache", bool, default=False),
    # Pictures and tables of features.
    Option("basis", "colors of a saved basis (fitted to all given)", Path, metavar="FILE"),
    Option("save_basis", "save the fitted basis, for --basis", Path, metavar="FILE"),
    Option(
        "foreground",
        "color what is above T on component 1 (auto)",
        float,
        const="auto",
        words=("auto",),
        metavar="T",
    ),
    Option("nearest", "one color per patch, not interpolated", bool, default=False),
    Option("mask", "a table: masked CLS and mean key of each region", bool, default=False),
    Option("masks", "masks or labels in DIR, not own; implies --mask", Path, metavar="DIR"),
    # Similar photographs, near duplicates, correspondences.
    Option("query", "photograph to compare with; may be repeated", metavar="PHOTO"),
    Option("k", f"neighbors per query ({N_NEIGHBORS})", int, N_NEIGHBORS, minimum=1, metavar="N", flag="-k"),
    Option("of", "what to compare: image, object, layout (image)", default="image", choices=DESCRIBED, metavar="WHAT"),
    Option("index", "file that keeps vectors, made or renewed", Path, metavar="FILE"),
    Option(
        "threshold",
        "cosine of near duplicates (0.96; CLS: 0.95)",
        float,
        minimum=-1,
        maximum=1,
        metavar="C",
    ),
    Option("exact", "only files with the same bytes; no network", bool, default=False),
    Option("whole", "match all patches, not only objects", bool, default=False),
    Option(
        "n_matches",
        f"most correspondences, or all ({N_MATCHES})",
        int,
        N_MATCHES,
        minimum=1,
        words=("all",),
        metavar="N",
        flag="--matches",
    ),
    # The run.
    Option("n_threads", "photographs at a time (all cores)", int, minimum=1, metavar="N", flag="--threads"),
    Option("batch", "photographs per forward pass (by memory)", int, minimum=1, metavar="N"),
    Option("quiet", "print errors only", bool, default=False),
    Option("json", "print JSON", bool, default=False),
    # The evaluation.
    Option("task", "saliency, semantic or discovery (saliency)", default="saliency", choices=TASKS, metavar="TASK"),
    Option("layout", "auto, voc, coco, coseg or folder (auto)", choices=LAYOUTS, metavar="NAME"),
    Option("split", "image list of a VOC set (val; discovery: trainval)", metavar="NAME"),
    Option("labels", "SegmentationClass or SegmentationClassAug", choices=VOC_LABELS, metavar="DIR"),
    Option("names", "file of class names, one per line", Path, metavar="FILE"),
    Option("merge", "file with two columns: class and coarser class", Path, metavar="FILE"),
    Option("clusters", "over-cluster into N, matched many-to-one", int, minimum=1, metavar="N"),
    Option("matching", "hungarian or many-to-one (hungarian)", choices=MATCHINGS, metavar="NAME"),
    Option("seeds", "mean and standard deviation over N seeds", int, minimum=1, metavar="N"),
    Option("ablate", "score the method with parts left out", bool, default=False),
    Option("csv", "write the table in full precision", Path, metavar="FILE"),
    Option("report", "write overlays of the best, median and worst", Path, metavar="DIR"),
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


# Refinement of each domain, unless it is given.
_REFINEMENT_OF = {"photo": "solver", "texture": "color", "lines": "none"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the method: how a photograph is segmented, whatever the network.

    Attributes
    ----------
    short_side : int, optional
        Short side of the network's input in pixels; by default that of the checkpoint, 320 for most.
    facet : {"key", "key_rotated", "query", "value", "token"}
        Feature to cluster. "key_rotated" is the key after its rotation in networks with rotary position embeddings.
    layer : int, optional
        Block to read; negative numbers count from the last. By default the last one; for other domains than
        photographs None stays, which stands for the middle one.
    stride : int, optional
        Pixels between patches, a divisor of the patch size; the patch size by default.
    max_tokens : int
        Maximum number of patches; a larger grid is made coarser.
    max_pixels : int
        Larger photographs are refused before they are decoded.
    refine : {"solver", "crf", "guided", "color", "none"}, optional
        Bilateral solver, dense CRF, guided filter, a division by color, or bilinear enlargement alone. By default the
        solver; for textures the division by color. Lines have no refinement.
    seed : int
        Seed of k-means. The same seed and photograph give the same result, bit for bit.
    min_confidence : float
        A photograph below this confidence gets an empty mask.
    alpha : {"background", "mask", "ignore"}
        What transparent parts of a picture are: a white background; that, and never foreground; or nothing, with the
        colors that the file stores beneath.
    domain : {"photo", "texture", "lines"}
        Photographs of objects; pictures of many small parts on an even ground, see :mod:`vitnp.method.texture`; or of
        lines thinner than a patch, see :mod:`vitnp.method.lines`.
    instances : bool
        Whether the objects of a mask are separated and ranked.
    objects : int, optional
        Number of objects to keep, also in the mask, the first of the ranking; implies `instances`. All by default.

    Raises
    ------
    UsageError
        If a value is not allowed.
    """

    short_side: int | None = None
    facet: str = "key"
    layer: int | None = None
    stride: int | None = None
    max_tokens: int = MAX_TOKENS
    max_pixels: int = MAX_PIXELS
    refine: str | None = None
    seed: int = 0
    min_confidence: float = 0.0
    alpha: str = "background"
    domain: str = "photo"
    instances: bool = False
    objects: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))
        if self.domain == "lines" and self.refine not in (None, "none"):
            raise UsageError(
                f"the domain lines finds pixels without a refinement, got refine {self.refine!r}; leave refine out"
            )
        if self.refine is None:
            object.__setattr__(self, "refine", _REFINEMENT_OF[self.domain])
        if self.layer is None and self.domain == "photo":
            object.__setattr__(self, "layer", -1)
        object.__setattr__(self, "instances", bool(self.instances) or self.objects is not None)

    @property
    def of_features(self) -> dict[str, Any]:
        """Options that the features depend on, as keyword arguments."""
        names = ("short_side", "facet", "layer", "stride", "max_tokens", "alpha")
        return {name: getattr(self, name) for name in names}
