"""vitnp's vision transformer written in torch, with torch's fused attention, for comparing speed and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vitnp.vit.config import ViTConfig


def forward(
    config: ViTConfig,
    weights: Mapping[str, np.ndarray],
    want: str = "token",
    *,
    device: str = "cuda",
    dtype: str = "float16",
) -> Callable[[object], object]:
    """Return the network as a function of a torch tensor on the device: images (B, 3, height, width).

    Parameters
    ----------
    config : ViTConfig
        Without registers, gates or LayerScale; images have the grid of the position embeddings.
    weights : mapping of str to array
        With DINO's names.
    want : {"token", "key"}
        Output: all patches after the final norm, (B, N, D), or their keys in the last block.
    device, dtype : str

    Returns
    -------
    callable
        Consists of plain torch operations, so that it can be compiled by ``torch.compile``.
    """
    import torch
    from torch.nn import functional as F

    torch.backends.cuda.matmul.allow_tf32 = False
    w = {
        name: torch.from_numpy(np.ascontiguousarray(weight)).to(device, getattr(torch, dtype))
        for name, weight in weights.items()
    }
    width, heads, last = config.width, config.heads, config.depth - 1
    # The third of the fused projection that computes keys.
    key_weight, key_bias = (
        w[f"blocks.{last}.attn.qkv.{part}"][width : 2 * width].contiguous() for part in ("weight", "bias")
    )

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], config.eps)

    def call(images):
        with torch.no_grad():
            x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], config.patch)
            batch = x.shape[0]
            x = torch.cat([w["cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]
            for index in range(config.depth):
                name = f"blocks.{index}"
                y = norm(x, f"{name}.norm1")
                if want == "key" and index == last:
                    return F.linear(y, key_weight, key_bias)[:, 1:]
                qkv = linear(y, f"{name}.attn.qkv").reshape(batch, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(batch, -1, width)
                x = x + linear(y, f"{name}.attn.proj")
                y = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
                x = x + linear(y, f"{name}.mlp.fc2")
            return norm(x, "norm")[:, 1:]

    return call
