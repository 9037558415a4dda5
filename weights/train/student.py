"""The student as it learns: its weights, their running average, and what moves them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from vitnp.weights.train.muon import Muon

OPTIMIZERS = ("muon", "adamw")

_MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
_DECAY = 0.02
_BETAS = (0.9, 0.98)
_LONGEST_GRADIENT = 1.0


class Student:
    """Weights that learn.

    AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) moves everything, or everything but the blocks' matrices, which
    Muon moves. Vectors, such as biases and norms, don't decay.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Where to begin; copied.
    optimizer : {"muon", "adamw"}
    rate, muon_rate : float
        Peak learning rates of AdamW and of Muon.
    """

    def __init__(self, weights: Mapping[str, Tensor], optimizer: str, rate: float, muon_rate: float):
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}
        self._rate, self._muon_rate, self._steps = rate, muon_rate, 0
        matrices = [w for name, w in self.weights.items() if optimizer == "muon" and name.endswith(_MATRICES)]
        others = [w for w in self.weights.values() if not any(w is matrix for matrix in matrices)]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [w for w in others if w.ndim > 1], "weight_decay": _DECAY},
                {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=rate,
            betas=_BETAS,
        )
        self._muon = Muon(matrices, self.weights["cls_token"].shape[-1]) if matrices else None

    def learn(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of a loss, `rate` of the peak learning rate long."""
        weights = list(self.weights.values())
        for weight in weights:
            weight.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, _LONGEST_GRADIENT)
        for group in self._adamw.param_groups:
            group["lr"] = self._rate * rate
        self._adamw.step()
        if self._muon:
            self._muon.step(self._muon_rate * rate)
        self._steps += 1
        # The average forgets where it began, and spans a thousand steps in the end.
        memory = min(0.999, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - memory)

    def state_dict(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "average": self.average,
            "steps": self._steps,
            "adamw": self._adamw.state_dict(),
            "muon": self._muon.state_dict() if self._muon else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        with torch.no_grad():
            for mine, kept in ((self.weights, state["weights"]), (self.average, state["average"])):
                for name, weight in mine.items():
                    weight.copy_(kept[name])
        self._steps = state["steps"]
        self._adamw.load_state_dict(state["adamw"])
        if self._muon:
            self._muon.load_state_dict(state["muon"])
