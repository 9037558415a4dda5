"""Read the JSON files that lie beside a checkpoint."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from vitnp.checkpoints import registry
from vitnp.checkpoints.declared import DeclaredConfig
from vitnp.checkpoints.timm_json import read_timm_config
from vitnp.checkpoints.transformers_json import read_preprocessor_config, read_transformers_config
from vitnp.errors import CheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

_MAX_JSON = 2**24  # bytes; those of real checkpoints have some kilobytes
_TRANSFORMERS_FIELDS = {
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "layer_norm_eps",
    "hidden_act",
    "patch_size",
}


def read_files_beside(folder: pathlib.Path) -> tuple[DeclaredConfig, tuple[registry.MeanAndStd | None, str]]:
    """Read the config.json and the preprocessor_config.json in a folder, as far as they are there."""
    config = _read_json(folder / CONFIG)
    declared = DeclaredConfig()
    if "architecture" in config or "pretrained_cfg" in config or config.get("model_type") == "timm_wrapper":
        declared = read_timm_config(config)
    elif _TRANSFORMERS_FIELDS & set(config) or "backbone_config" in config:
        declared = read_transformers_config(config)
    return declared, read_preprocessor_config(_read_json(folder / PREPROCESSOR))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file."""
    if not path.is_file():  # a pipe would never end
        return {}
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MAX_JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path.name} beside it can't be read: repair it or move it away") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} beside it should be a table, not {str(content)[:40]!r}: repair it or move it away"
        )
    return content
