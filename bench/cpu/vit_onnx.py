"""The network of :mod:`bench.cpu.vit_peers` as an ONNX graph, for onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.cpu.vit_peers import Weights
from vitnp.vit.config import ViTConfig

# The latest versions of ONNX's operators and file format that both runtimes support.
OPSET, IR_VERSION = 20, 10
# float32 in ONNX's numbering of types.
FLOAT32 = 1


def onnx_model(
    config: ViTConfig, weights: Weights, grid: tuple[int, int], batch: int, *, features: bool = False
) -> bytes:
    """Build an ONNX model of the forward pass, or of the part of it that segmentation needs.

    Parameters
    ----------
    config : ViTConfig
        Without registers, gates or LayerScale.
    weights : mapping of str to array
        Under DINO's names, with position embeddings for this grid.
    grid : (int, int)
        Rows and columns of patches.
    batch : int
        Number of images per call.
    features : bool
        Compute what vitnp reads from the last block, and nothing else, instead of all tokens: keys (B, N, D), CLS
        attention (B, N) averaged over heads, CLS (B, D) after the final norm.

    Returns
    -------
    bytes
        The serialized model.
    """
    graph = _Graph(weights)
    width, heads, tokens = config.width, config.heads, 1 + grid[0] * grid[1]
    patch = graph.weighted(
        "Conv", "images", "patch_embed.proj", strides=[config.patch] * 2, kernel_shape=[config.patch] * 2
    )
    patch = graph("Transpose", graph.reshape(patch, batch, width, tokens - 1), perm=[0, 2, 1])
    cls = graph.constant(np.repeat(weights["cls_token"], batch, axis=0))
    x = graph("Add", graph("Concat", cls, patch, axis=1), graph.constant(weights["pos_embed"]))
    # Matrix products take all tokens of a batch as rows; only attention has to tell the images apart.
    x = graph.reshape(x, batch * tokens, width)
    for index in range(config.depth):
        name = f"blocks.{index}"
        y = graph.norm(x, f"{name}.norm1", config.eps)
        query, key, value = (
            graph.reshape(graph.qkv_part(y, f"{name}.attn.qkv", i), batch, tokens, width) for i in range(3)
        )
        if features and index == config.depth - 1:
            return _features(graph, config, x, (query, key, value), grid, batch)
        y = graph("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=heads)
        x = graph.block_tail(x, graph.reshape(y, batch * tokens, width), name, config.eps)
    x = graph.reshape(graph.norm(x, "norm", config.eps), batch, tokens, width)
    sides = [batch, 3, grid[0] * config.patch, grid[1] * config.patch]
    return graph.model(sides, {"tokens": (x, [batch, tokens, width])})


def _features(
    graph: _Graph, config: ViTConfig, x: str, projected: tuple[str, str, str], grid: tuple[int, int], batch: int
) -> bytes:
    """Finish the model with the last block, computed for the CLS token only."""
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
    cls = graph.norm(graph.block_tail(x, y, f"blocks.{config.depth - 1}", config.eps), "norm", config.eps)
    mean = graph.reshape(graph("ReduceMean", attention, graph.constant(np.array([1])), keepdims=0), batch, tokens, 1)
    sides = [batch, 3, grid[0] * config.patch, grid[1] * config.patch]
    outputs = {
        "keys": (rows(key, 1, tokens), [batch, tokens - 1, width]),
        "attention": (graph.reshape(rows(mean, 1, tokens), batch, tokens - 1), [batch, tokens - 1]),
        "cls": (cls, [batch, width]),
    }
    return graph.model(sides, outputs)


class _Graph:
    """An ONNX graph under construction; calling it with an operator and its inputs returns the name of the output."""

    def __init__(self, weights: Weights):
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self.weights, self.nodes, self.constants = weights, [], []

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator}.{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        name = f"constant.{len(self.constants)}"
        self.constants.append(self._numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.constant(np.array(shape)))

    def weighted(self, operator: str, x: str, name: str, rows: slice = slice(None), **attributes: Any) -> str:
        weight, bias = (self.constant(self.weights[f"{name}.{part}"][rows]) for part in ("weight", "bias"))
        return self(operator, x, weight, bias, **attributes)

    def linear(self, x: str, name: str, rows: slice = slice(None)) -> str:
        return self.weighted("Gemm", x, name, rows, transB=1)

    def qkv_part(self, x: str, name: str, part: int) -> str:
        third = len(self.weights[f"{name}.weight"]) // 3
        return self.linear(x, name, slice(part * third, (part + 1) * third))

    def norm(self, x: str, name: str, eps: float) -> str:
        return self.weighted("LayerNormalization", x, name, epsilon=eps, axis=-1)

    def block_tail(self, x: str, attention: str, block: str, eps: float) -> str:
        """Add the second half of a block: output projection, MLP, residuals."""
        x = self("Add", x, self.linear(attention, f"{block}.attn.proj"))
        y = self("Gelu", self.linear(self.norm(x, f"{block}.norm2", eps), f"{block}.mlp.fc1"))
        return self("Add", x, self.linear(y, f"{block}.mlp.fc2"))

    def model(self, sides: list[int], outputs: Mapping[str, tuple[str, list[int]]]) -> bytes:
        helper = self._helper
        renamed = [helper.make_node("Identity", [inner], [name]) for name, (inner, _) in outputs.items()]
        input_info = [helper.make_tensor_value_info("images", FLOAT32, sides)]
        output_info = [helper.make_tensor_value_info(name, FLOAT32, shape) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph(self.nodes + renamed, "vit", input_info, output_info, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
