"""The student during training: its weights, their moving average, and its optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vitnp.weights.train.muon import Muon

_MUON_WEIGHTS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
_BETAS = (0.9, 0.98)
_MAX_GRAD_NORM = 1.0


class Student:
    """Trainable weights with their optimizers and exponential moving average.

    AdamW updates all weights, or all but the matrices of the blocks, which Muon updates. Vectors, such as biases and
    norms, have no weight decay.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Initial weights; copied.
    optimizer : {"muon", "adamw"}
        Optimizer of the matrices of the blocks.
    lr, muon_lr : float
        Peak learning rates of AdamW and Muon.
    lr_factors : mapping of str to float, optional
        Factors of AdamW's learning rate for weights that differ from the others, by name.
    weight_decay : float
        Weight decay of matrices under AdamW.
    average_decay : float
        Largest decay of the moving average; 1 / (1 - average_decay) is the number of steps that it covers.

    Attributes
    ----------
    weights : dict of str to Tensor
        Current weights.
    average : dict of str to Tensor
        Exponential moving average of the weights.

    References
    ----------
    Loshchilov and Hutter 2019, Decoupled weight decay regularization, arXiv 1711.05101.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        optimizer: str,
        lr: float,
        muon_lr: float = 0.0,
        *,
        lr_factors: Mapping[str, float] | None = None,
        weight_decay: float = 0.02,
        average_decay: float = 0.999,
    ) -> None:
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}
        self._lr, self._muon_lr, self._steps, self._average_decay = lr, muon_lr, 0, average_decay
        muon = {name for name in self.weights if optimizer == "muon" and name.endswith(_MUON_WEIGHTS)}
        factors = lr_factors or {}
        # One group per factor, matrices before vectors.
        groups: dict[tuple[float, bool], list[Tensor]] = {(1.0, False): [], (1.0, True): []}
        for name, weight in self.weights.items():
            if name not in muon:
                groups.setdefault((factors.get(name, 1.0), weight.ndim <= 1), []).append(weight)
        groups = {key: group for key, group in groups.items() if group}
        self._lr_factors = [factor for factor, _ in groups]
        self._adamw = torch.optim.AdamW(
            [
                {"params": group, "weight_decay": 0.0 if is_vector else weight_decay}
                for (_, is_vector), group in groups.items()
            ],
            lr=lr,
            betas=_BETAS,
        )
        matrices = [weight for name, weight in self.weights.items() if name in muon]
        self._muon = Muon(matrices, self.weights["cls_token"].shape[-1]) if matrices else None

    def step(self, loss: Tensor, lr_factor: float) -> None:
        """Backpropagate a loss and update all weights, at learning rates relative to their peaks."""
        weights = list(self.weights.values())
        for weight in weights:
            weight.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, _MAX_GRAD_NORM)
        for group, factor in zip(self._adamw.param_groups, self._lr_factors, strict=True):
            group["lr"] = self._lr * factor * lr_factor
        self._adamw.step()
        if self._muon:
            self._muon.step(self._muon_lr * lr_factor)
        self._steps += 1
        # A short memory at first, to forget the initial weights.
        decay = min(self._average_decay, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, average and state of the optimizers."""
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "average": self.average,
            "steps": self._steps,
            "adamw": self._adamw.state_dict(),
            "muon": self._muon.state_dict() if self._muon else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        with torch.no_grad():
            for tensors, saved in ((self.weights, state["weights"]), (self.average, state["average"])):
                for name, tensor in tensors.items():
                    tensor.copy_(saved[name])
        self._steps = state["steps"]
        self._adamw.load_state_dict(state["adamw"])
        if self._muon:
            self._muon.load_state_dict(state["muon"])
