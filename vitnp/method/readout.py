"""The readout level: a linear model of keys that predicts the collection's own refined masks.

The other levels give one answer per cluster, so patches of one cluster cannot differ, and none of them sees the edges
that refinement finds. The readout learns from both. Its targets are the masks that the image, data set and category
levels make together, cleaned and refined, of the collection's own photographs; nobody labels anything. A logistic
model of D + 1 numbers is too small to learn the errors of single photographs by heart, so what it keeps is what the
masks have in common. It is still the clustering's own answer, with the accidents of single photographs averaged out.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp import kernels
from vitnp.method.agreement import OWN_PHOTOGRAPHS


@dataclasses.dataclass(frozen=True)
class ReadoutConfig:
    """Constants of the readout level.

    Attributes
    ----------
    photographs : int
        Maximum number of photographs to fit on. Each of them has to be refined once more.
    patches : int
        Maximum number of patches per photograph to fit on.
    min_confidence : float
        Photographs below this confidence of the image level are left out, unless all are.
    sharpness : float
        Factor by which targets are pushed away from 1/2. Without it, the model would learn the uncertain scores that
        are the mean of several levels.
    ridge : float
        Weight of the squared norm of the weights, beside the mean cross-entropy.
    weights : (float, float, float, float)
        Weights of the image, data set, category and readout level in their mean, see
        :mod:`vitnp.method.agreement`.
    """

    photographs: int = 1_500
    patches: int = 100
    min_confidence: float = 0.3
    sharpness: float = 3.0
    ridge: float = 1e-4
    weights: tuple[float, float, float, float] = OWN_PHOTOGRAPHS


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
    """A fitted readout.

    Attributes
    ----------
    weights : (D,) float32
    bias : float
    """

    weights: np.ndarray
    bias: float

    def soft_foreground(self, keys: np.ndarray) -> np.ndarray:
        """Return the soft foreground of patches: sigmoid(keys . weights + bias).

        Parameters
        ----------
        keys : (N, D) float
            Keys normalized to unit length.

        Returns
        -------
        (N,) float32
            On the device of the keys.

        Examples
        --------
        >>> Readout(np.array([2.0, -2.0], np.float32), 0.0).soft_foreground(np.eye(2, dtype=np.float32)).round(2)
        array([0.88, 0.12], dtype=float32)
        """
        weights = kernels.to_device(self.weights, kernels.device_of(keys))
        return _sigmoid(keys @ weights + np.float32(self.bias))


def readout_targets(soft: np.ndarray, grid: tuple[int, int], sharpness: float) -> np.ndarray:
    """Return what the readout should answer for the patches of a photograph: its soft map y, averaged and sharpened.

    Parameters
    ----------
    soft : (height, width) uint16
        Refined map of the photograph in 16-bit fixed point.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    sharpness : float
        Factor s of clip(s * (y - 1/2) + 1/2, 0, 1).

    Returns
    -------
    (N,) float32
        In row-major order. The average is that of Pillow's box filter, which takes whole pixels.

    Examples
    --------
    >>> soft = np.array([[0, 0, 32768, 32768, 65535, 32768]], np.uint16)
    >>> readout_targets(soft, (1, 3), sharpness=3.0).round(2)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    from PIL import Image

    rows, columns = grid
    mean = np.asarray(Image.fromarray(soft.astype(np.float32)).resize((columns, rows), Image.Resampling.BOX)) / 65535
    return np.clip(sharpness * (mean - 0.5) + 0.5, 0, 1).astype(np.float32).ravel()


def fit_readout(keys: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge: float) -> Readout:
    """Fit a readout: minimize the weighted mean cross-entropy + ridge * |w|^2, which has one minimum.

    Parameters
    ----------
    keys : (M, D) float32
        Keys of patches, normalized to unit length.
    targets : (M,) float
        Foreground of each, 0 to 1.
    weights : (M,) float
        Weight of each patch, positive.
    ridge : float

    Returns
    -------
    Readout

    Notes
    -----
    The same rows give the same bits if BLAS runs in one thread (:mod:`vitnp.kernels.threads.blas`).

    References
    ----------
    D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical Programming
    45, 1989.

    Examples
    --------
    >>> readout = fit_readout(np.eye(2, dtype=np.float32), np.array([1.0, 0.0]), np.ones(2), ridge=0.1)
    >>> bool(readout.weights[0] > 0 > readout.weights[1])
    True
    """
    from scipy.optimize import minimize

    share = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    # Keys have a large part in common. Centered, without a copy of them, the problem needs far fewer steps.
    center = (share.astype(np.float32) @ keys).astype(np.float64)

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, bias = parameters[:-1], parameters[-1]
        logits = (keys @ w.astype(np.float32)) - center @ w + bias
        # log(1 + exp(z)) - y z: the cross-entropy, whatever the sign of z.
        loss = share @ (np.logaddexp(0, logits) - targets * logits) + ridge * (w @ w)
        errors = share * (_sigmoid(logits) - targets)
        slope = errors.astype(np.float32) @ keys - errors.sum() * center + 2 * ridge * w
        return float(loss), np.append(slope, errors.sum())

    start = np.zeros(keys.shape[1] + 1)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-5}).x
    w = found[:-1].astype(np.float32)
    return Readout(w, float(np.float32(found[-1] - center @ w)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * kernels.array_module(x).tanh(0.5 * x)
