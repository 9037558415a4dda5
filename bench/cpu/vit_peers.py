"""One vision transformer for several runtimes: the same random weights in vitnp, torch, onnxruntime and OpenVINO.

Every peer gets the form it is fastest in: torch its fused attention, onnxruntime its own operator for attention (a
graph of plain matrix products and a softmax takes it 2 to 15 % longer), OpenVINO its hints for latency and precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from bench.cpu.comparison import Missing, WrongAnswer
from vitnp.errors import UsageError
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

Weights = Mapping[str, np.ndarray]
Forward = Callable[[np.ndarray], np.ndarray]

# Largest difference of a peer's tokens from torch's, both float32, relative to the largest token; and in bfloat16,
# where a number has 8 bits, the mean difference relative to the mean token.
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 2e-2

# The last version of ONNX's operators that all of them know.
OPSET, IR_VERSION = 20, 10


@dataclasses.dataclass(frozen=True)
class Case:
    """One network at one size.

    Attributes
    ----------
    size : {"S", "B"}
        ViT-S is 384 wide with 6 heads, ViT-B 768 with 12; both have 12 blocks.
    patch, side, batch : int
        Patch and square image in pixels, images at once.
    """

    size: str
    patch: int
    side: int
    batch: int

    @property
    def config(self) -> ViTConfig:
        """The network."""
        width, heads = {"S": (384, 6), "B": (768, 12)}[self.size]
        return ViTConfig(width, 12, heads, self.patch, (self.side // self.patch,) * 2)

    @property
    def label(self) -> str:
        """In words."""
        return f"ViT-{self.size}/{self.patch}, {self.side} px, batch {self.batch}"

    @property
    def tokens(self) -> int:
        """Of one image, CLS included."""
        return 1 + (self.side // self.patch) ** 2

    @property
    def flops(self) -> float:
        """Multiplications and additions of the matrix products of a whole pass; what else there is doesn't count.

        Examples
        --------
        >>> round(Case("S", 16, 224, 1).flops / 1e9, 1)
        9.2
        """
        c, tokens = self.config, self.tokens
        embedding = 2 * (tokens - 1) * 3 * c.patch**2 * c.width
        block = 24 * tokens * c.width**2 + 4 * tokens**2 * c.width
        return float(self.batch * (embedding + c.depth * block))

    def images(self) -> np.ndarray:
        """Something to look at, (batch, 3, side, side) float32."""
        return np.random.default_rng(1).standard_normal((self.batch, 3, self.side, self.side), np.float32)


def random_weights(config: ViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under DINO's names, of a size at which attention looks at more than one token and less than all."""
    rng = np.random.default_rng(seed)
    d = config.width

    def normal(*shape: int, scale: float = 0.02) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    def linear(name: str, outputs: int, inputs: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": normal(outputs, inputs, scale=0.05), f"{name}.bias": normal(outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": 1 + normal(d), f"{name}.bias": normal(d)}

    weights = {"cls_token": normal(1, 1, d), "pos_embed": normal(1, 1 + config.grid[0] * config.grid[1], d)}
    weights["patch_embed.proj.weight"] = normal(d, 3, config.patch, config.patch)
    weights["patch_embed.proj.bias"] = normal(d)
    for block in (f"blocks.{index}" for index in range(config.depth)):
        weights |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * d, d) | linear(f"{block}.attn.proj", d, d)
        weights |= norm(f"{block}.norm2") | linear(f"{block}.mlp.fc1", 4 * d, d) | linear(f"{block}.mlp.fc2", d, 4 * d)
    return weights | norm("norm")


def check_tokens(name: str, found: np.ndarray, expected: np.ndarray, *, precision: str = "fp32") -> None:
    """See that two runtimes made the same of the same images.

    Raises
    ------
    WrongAnswer
    """
    if found.shape != expected.shape:
        raise WrongAnswer(f"{name} gives tokens of the shape {found.shape}, not {expected.shape}")
    # Written so that a NaN fails too.
    if precision == "fp32":
        error, tolerance = np.abs(found - expected).max() / np.abs(expected).max(), FLOAT32_TOLERANCE
    else:
        error, tolerance = np.abs(found - expected).mean() / np.abs(expected).mean(), BFLOAT16_TOLERANCE
    if not error <= tolerance:
        raise WrongAnswer(f"{name} computes something else: its tokens are off by {error:.2g}, more than {tolerance:g}")


# --- The runtimes: each makes a function of images (B, 3, height, width) that gives tokens (B, T, D) or patches (B, N,
# D) ---


def ours(config: ViTConfig, weights: Weights, precision: str = "fp32", want: str = "token") -> Forward:
    """vitnp: all patches after the last block, or their keys alone."""
    vit = ViT(config, weights)
    if precision != "fp32":
        try:
            vit = vit.to(precision=precision)
        except UsageError as error:
            raise Missing(str(error)) from None
    return lambda images: vit(images, (want,))[want]


def torch_eager(config: ViTConfig, weights: Weights, threads: int) -> Forward:
    """Torch as one writes it, op by op, with its fused attention."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    w = {name: torch.from_numpy(np.ascontiguousarray(weight)) for name, weight in weights.items()}

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (config.width,), w[f"{name}.weight"], w[f"{name}.bias"], config.eps)

    def forward(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = F.conv2d(
                torch.from_numpy(images), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], config.patch
            )
            batch, width = x.shape[:2]
            x = torch.cat([w["cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]
            for name in (f"blocks.{index}" for index in range(config.depth)):
                qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
                qkv = qkv.reshape(batch, -1, 3, config.heads, width // config.heads).permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(batch, -1, width)
                x = x + linear(y, f"{name}.attn.proj")
                y = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
                x = x + linear(y, f"{name}.mlp.fc2")
            return norm(x, "norm").numpy()

    return forward


def onnxruntime(model: bytes, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Onnxruntime's session of a model, all outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda batch: session.run(None, {images.name: batch})


def openvino(model: bytes, threads: int, precision: str = "f32") -> Callable[[np.ndarray], list[np.ndarray]]:
    """OpenVINO's compiled model, all outputs."""
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Missing("OpenVINO has no bf16 on this processor")
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    return lambda batch: [value for value in request.infer([batch]).values()]


# --- The same network as an ONNX graph ------------------------------------------------------------------------------


def onnx_model(
    config: ViTConfig, weights: Weights, grid: tuple[int, int], batch: int, *, features: bool = False
) -> bytes:
    """An ONNX model of the whole pass, or of as much of it as segmenting needs.

    Parameters
    ----------
    config : ViTConfig
        Without registers, gates or LayerScale.
    weights : mapping of str to array
        With position embeddings for this grid.
    grid : (int, int)
        Rows and columns of patches.
    batch : int
        Images at once.
    features : bool
        Outputs of the last block that vitnp reads, and nothing that isn't needed for them, instead of all tokens:
        keys (B, N, D), CLS attention (B, N) as the mean over heads, CLS (B, D) after the final norm.

    Returns
    -------
    bytes
        The model, serialized.
    """
    graph = _Graph(weights)
    width, heads, tokens = config.width, config.heads, 1 + grid[0] * grid[1]
    patch = graph.weighted(
        "Conv", "images", "patch_embed.proj", strides=[config.patch] * 2, kernel_shape=[config.patch] * 2
    )
    patch = graph("Transpose", graph.reshape(patch, batch, width, tokens - 1), perm=[0, 2, 1])
    cls = graph.constant(np.repeat(weights["cls_token"], batch, axis=0))
    x = graph("Add", graph("Concat", cls, patch, axis=1), graph.constant(weights["pos_embed"]))
    # Two axes, rows and features, are what the matrix products take at once; attention alone needs to know of images.
    x = graph.reshape(x, batch * tokens, width)
    for index in range(config.depth):
        name = f"blocks.{index}"
        y = graph.norm(x, f"{name}.norm1", config.eps)
        query, key, value = (
            graph.reshape(graph.third(y, f"{name}.attn.qkv", i), batch, tokens, width) for i in range(3)
        )
        if features and index == config.depth - 1:
            return _features(graph, config, x, (query, key, value), grid, batch)
        y = graph("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=heads)
        x = graph.finish(x, graph.reshape(y, batch * tokens, width), name, config.eps)
    x = graph.reshape(graph.norm(x, "norm", config.eps), batch, tokens, width)
    sides = [batch, 3, grid[0] * config.patch, grid[1] * config.patch]
    return graph.model(sides, {"tokens": (x, [batch, tokens, width])})


def _features(
    graph: _Graph, config: ViTConfig, x: str, projected: tuple[str, str, str], grid: tuple[int, int], batch: int
) -> bytes:
    """The last block for the CLS row alone."""
    query, key, value = projected
    width, heads, tokens = config.width, config.heads, 1 + grid[0] * grid[1]
    size = width // heads

    def rows(x: str, start: int, stop: int) -> str:
        return graph("Slice", x, *(graph.constant(np.array([number])) for number in (start, stop, 1)))

    query = graph("Mul", rows(query, 0, 1), graph.constant(np.float32(size**-0.5)))
    query = graph.reshape(query, batch, heads, 1, size)
    key_t = graph("Transpose", graph.reshape(key, batch, tokens, heads, size), perm=[0, 2, 3, 1])
    values = graph("Transpose", graph.reshape(value, batch, tokens, heads, size), perm=[0, 2, 1, 3])
    attention = graph("Softmax", graph("MatMul", query, key_t), axis=-1)  # (B, H, 1, T)
    y = graph.reshape(graph("MatMul", attention, values), batch, width)
    x = graph.reshape(rows(graph.reshape(x, batch, tokens, width), 0, 1), batch, width)
    cls = graph.norm(graph.finish(x, y, f"blocks.{config.depth - 1}", config.eps), "norm", config.eps)
    mean = graph.reshape(graph("ReduceMean", attention, graph.constant(np.array([1])), keepdims=0), batch, tokens, 1)
    sides = [batch, 3, grid[0] * config.patch, grid[1] * config.patch]
    outputs = {
        "keys": (rows(key, 1, tokens), [batch, tokens - 1, width]),
        "attention": (graph.reshape(rows(mean, 1, tokens), batch, tokens - 1), [batch, tokens - 1]),
        "cls": (cls, [batch, width]),
    }
    return graph.model(sides, outputs)


class _Graph:
    """An ONNX graph under construction; called with an operator and its inputs it gives the name of the output."""

    def __init__(self, weights: Weights):
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self.weights, self.nodes, self.constants = weights, [], []

    def __call__(self, operator: str, *inputs: str, **attributes) -> str:
        output = f"{operator}.{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        name = f"constant.{len(self.constants)}"
        self.constants.append(self._numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.constant(np.array(shape)))

    def weighted(self, operator: str, x: str, name: str, rows: slice = slice(None), **attributes) -> str:
        weight, bias = (self.constant(self.weights[f"{name}.{part}"][rows]) for part in ("weight", "bias"))
        return self(operator, x, weight, bias, **attributes)

    def linear(self, x: str, name: str, rows: slice = slice(None)) -> str:
        return self.weighted("Gemm", x, name, rows, transB=1)

    def third(self, x: str, name: str, part: int) -> str:
        third = len(self.weights[f"{name}.weight"]) // 3
        return self.linear(x, name, slice(part * third, (part + 1) * third))

    def norm(self, x: str, name: str, eps: float) -> str:
        return self.weighted("LayerNormalization", x, name, epsilon=eps, axis=-1)

    def finish(self, x: str, attended: str, block: str, eps: float) -> str:
        """What a block does after its attention."""
        x = self("Add", x, self.linear(attended, f"{block}.attn.proj"))
        y = self("Gelu", self.linear(self.norm(x, f"{block}.norm2", eps), f"{block}.mlp.fc1"))
        return self("Add", x, self.linear(y, f"{block}.mlp.fc2"))

    def model(self, sides: list[int], outputs: Mapping[str, tuple[str, list[int]]]) -> bytes:
        helper, kind = self._helper, 1  # float32, by ONNX's numbering of types
        renamed = [helper.make_node("Identity", [inner], [name]) for name, (inner, _) in outputs.items()]
        given = [helper.make_tensor_value_info("images", kind, sides)]
        wanted = [helper.make_tensor_value_info(name, kind, shape) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph(self.nodes + renamed, "vit", given, wanted, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
