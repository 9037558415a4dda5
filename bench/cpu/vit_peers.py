"""One vision transformer in several runtimes, with the same random weights: vitnp, torch, onnxruntime and OpenVINO.

Each runtime gets the form in which it is fastest: torch its fused attention, onnxruntime its own attention operator
(matrix products and a softmax take 2 to 15 % longer), OpenVINO its hints for latency and precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.cpu.comparison import Missing, WrongAnswer
from vitnp.errors import UsageError
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

Weights = Mapping[str, np.ndarray]
Forward = Callable[[np.ndarray], np.ndarray]

# Allowed difference from the tokens of torch: in float32 the largest difference relative to the largest token, in
# bfloat16, whose significand has 8 bits, and in int8 the mean difference relative to the mean token.
FLOAT32_TOLERANCE, TOLERANCES = 1e-4, {"bf16": 2e-2, "int8": 5e-2}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, an image size and a batch size.

    Attributes
    ----------
    size : {"S", "B"}
        ViT-S has width 384 and 6 heads, ViT-B width 768 and 12 heads; both have 12 blocks.
    patch, side : int
        Side of a patch and of the square images in pixels.
    batch : int
        Number of images per call.
    """

    size: str
    patch: int
    side: int
    batch: int

    @property
    def config(self) -> ViTConfig:
        """Architecture of the network."""
        width, heads = {"S": (384, 6), "B": (768, 12)}[self.size]
        return ViTConfig(width, 12, heads, self.patch, (self.side // self.patch,) * 2)

    @property
    def label(self) -> str:
        """Description for tables."""
        return f"ViT-{self.size}/{self.patch}, {self.side} px, batch {self.batch}"

    @property
    def tokens(self) -> int:
        """Number of tokens per image, CLS included."""
        return 1 + (self.side // self.patch) ** 2

    @property
    def flops(self) -> float:
        """Number of multiplications and additions in the matrix products of a forward pass.

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
        """Return random images, (batch, 3, side, side) float32."""
        return np.random.default_rng(1).standard_normal((self.batch, 3, self.side, self.side), np.float32)


def random_weights(config: ViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights under DINO's names, scaled so that attention is neither uniform nor on a single token."""
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
    """Check that a runtime's tokens agree with the expected ones.

    Raises
    ------
    WrongAnswer
    """
    if found.shape != expected.shape:
        raise WrongAnswer(f"{name} must return tokens of shape {expected.shape}, got {found.shape}")
    if precision == "fp32":
        error, tolerance = np.abs(found - expected).max() / np.abs(expected).max(), FLOAT32_TOLERANCE
    else:
        error, tolerance = np.abs(found - expected).mean() / np.abs(expected).mean(), TOLERANCES[precision]
    if not error <= tolerance:  # also true for NaN
        raise WrongAnswer(f"{name} computes something else: its tokens are off by {error:.2g}, more than {tolerance:g}")


# --- The runtimes. Each returns a function of images (B, 3, height, width), whose result is tokens (B, T, D) with or
# without CLS.


def ours(config: ViTConfig, weights: Weights, precision: str = "fp32", feature: str = "token") -> Forward:
    """Return vitnp's forward pass to the patch tokens after the last block, or to their keys."""
    vit = ViT(config, weights)
    if precision != "fp32":
        try:
            vit = vit.to(precision=precision)
        except UsageError as error:
            raise Missing(str(error)) from None
    return lambda images: vit(images, (feature,))[feature]


def torch_eager(config: ViTConfig, weights: Weights, n_threads: int) -> Forward:
    """Return the forward pass in eager torch, with its fused attention."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(n_threads)
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


def onnxruntime(model: bytes, n_threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that runs an ONNX model in onnxruntime and returns all its outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda batch: session.run(None, {images.name: batch})


def openvino(model: bytes, n_threads: int, precision: str = "f32") -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that runs an ONNX model in OpenVINO and returns all its outputs."""
    import openvino as ov

    core = ov.Core()
    return _compiled(core, core.read_model(model), n_threads, precision)


def openvino_int8(model: bytes, n_threads: int, images: np.ndarray) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that runs an ONNX model in OpenVINO in int8, and in bfloat16 where the processor has that.

    NNCF quantizes it with its preset for transformers, which needs images to calibrate it: those that are timed.
    """
    import nncf
    import openvino as ov

    core = ov.Core()
    quantized = nncf.quantize(
        core.read_model(model), nncf.Dataset([images]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1
    )
    return _compiled(core, quantized, n_threads, "bf16" if _has_bf16(core) else "f32")


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compiled(core: Any, model: Any, n_threads: int, precision: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    if precision == "bf16" and not _has_bf16(core):
        raise Missing("OpenVINO has no bf16 on this processor")
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": n_threads}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda batch: list(request.infer([batch]).values())
