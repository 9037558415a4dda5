"""U^2-Net-p as an ONNX graph with random weights: what background removers such as rembg run, for its speed alone.

Another method for the same user. It learned from masks; with random weights its masks mean nothing, and its time is
that of the trained network, because all of its operations take the same time for any numbers. See Qin et al., "U^2-Net:
Going deeper with nested U-structure for salient object detection", Pattern Recognition 106 (2020), figure 5, table 1.

This module imports nothing of vitnp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIDE = 320
_OPSET, _IR_VERSION = 17, 8

# Inner channels and output channels of every block, and depths of the blocks: RSU-7 to RSU-4, and twice RSU-4F, whose
# convolutions are dilated instead of pooled.
_INNER, _OUTER = 16, 64
_ENCODER = (7, 6, 5, 4, 0, 0)
_DILATIONS = (1, 2, 4, 8)


class _Graph:
    """Nodes and weights; a call appends a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.side = {"images": SIDE}
        self.n_parameters = 0
        self._rng = np.random.default_rng(0)

    def __call__(self, operation: str, *inputs: str, side: int | None = None, **attributes: Any) -> str:
        name = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        self.side[name] = self.side[inputs[0]] if side is None else side
        return name

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, dilation: int = 1, size: int = 3, *, relu: bool = True) -> str:
        """Convolve, with batch normalization folded into the weights."""
        scale = np.sqrt(2 / (size * size * inputs))
        kernel = (scale * self._rng.standard_normal((outputs, inputs, size, size))).astype(np.float32)
        bias = np.zeros(outputs, np.float32)
        self.n_parameters += kernel.size + bias.size
        pad = [dilation * (size // 2)] * 4
        y = self("Conv", x, self.weight(kernel), self.weight(bias), pads=pad, dilations=[dilation] * 2)
        return self("Relu", y) if relu else y

    def pool(self, x: str) -> str:
        return self("MaxPool", x, side=self.side[x] // 2, kernel_shape=[2, 2], strides=[2, 2])

    def enlarge(self, x: str, side: int) -> str:
        if self.side[x] == side:
            return x
        scale = self.weight(np.array([1, 1, side / self.side[x], side / self.side[x]], np.float32))
        return self("Resize", x, "", scale, side=side, mode="linear", coordinate_transformation_mode="half_pixel")

    def join(self, x: str, y: str) -> str:
        return self("Concat", x, y, axis=1)


def u2netp() -> tuple[bytes, int]:
    """Return the model, from images (1, 3, 320, 320) to masks (1, 1, 320, 320), and its number of parameters."""
    graph = _Graph()
    x, channels, stages = "images", 3, []
    for index, depth in enumerate(_ENCODER):
        x = _block(graph, graph.pool(x) if index else x, depth, channels)
        channels = _OUTER
        stages.append(x)
    decoded = [stages[-1]]
    for depth, stage in zip(_ENCODER[-2::-1], stages[-2::-1]):
        x = graph.join(graph.enlarge(x, graph.side[stage]), stage)
        x = _block(graph, x, depth, 2 * _OUTER)
        decoded.append(x)
    sides = [graph.enlarge(graph.conv(each, _OUTER, 1, relu=False), SIDE) for each in reversed(decoded)]
    joined = graph("Concat", *sides, axis=1)
    mask = graph("Sigmoid", graph.conv(joined, len(sides), 1, size=1, relu=False))
    tensor = onnx.TensorProto.FLOAT
    whole = helper.make_graph(
        graph.nodes,
        "u2netp",
        [helper.make_tensor_value_info("images", tensor, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(mask, tensor, [1, 1, SIDE, SIDE])],
        graph.weights,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content, graph.n_parameters


def _block(graph: _Graph, x: str, depth: int, inputs: int) -> str:
    """Append a residual U-block: a small U-Net, added to the convolution of its input; depth 0 is RSU-4F."""
    entry = x = graph.conv(x, inputs, _OUTER)
    # Dilations of the convolutions on the way down; the last one is the bottom.
    dilations = (*[1] * (depth - 1), 2) if depth else _DILATIONS
    levels = []
    for level, dilation in enumerate(dilations):
        if depth and 0 < level < depth - 1:
            x = graph.pool(x)
        x = graph.conv(x, _INNER if level else _OUTER, _INNER, dilation)
        levels.append(x)
    for level in reversed(range(len(levels) - 1)):
        x = graph.join(graph.enlarge(x, graph.side[levels[level]]), levels[level])
        dilation = 1 if depth else dilations[level]
        x = graph.conv(x, 2 * _INNER, _OUTER if level == 0 else _INNER, dilation)
    return graph("Add", x, entry)
