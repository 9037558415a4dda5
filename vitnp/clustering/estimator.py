"""The conventions of scikit-learn's estimators, without scikit-learn.

An estimator stores its parameters unchanged and checks them in ``fit``, so that it can be cloned, searched over, and
put into pipelines.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, TypeVar

import numpy as np

from vitnp.errors import UsageError

Self = TypeVar("Self", bound="Estimator")


class Estimator:
    """Base of the classes with ``fit``: parameters by name, and the tags that scikit-learn asks for."""

    n_features_in_: int
    feature_names_in_: np.ndarray

    @classmethod
    def _parameter_names(cls) -> list[str]:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return sorted(item.name for item in parameters if item.kind is not inspect.Parameter.VAR_KEYWORD)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; `deep` makes no difference, because none of them is an estimator."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Set parameters by name and return this object.

        Raises
        ------
        UsageError
            If a name is not that of a parameter.
        """
        names = self._parameter_names()
        for name, value in params.items():
            if name not in names:
                raise UsageError(f"a parameter must be one of {', '.join(names)}, got {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if isinstance(value, np.ndarray) or value != defaults[name].default
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def _note_columns(self, x: Any, n_features: int) -> None:
        """Remember the number of columns, and their names if X is a data frame whose names are all text."""
        self.n_features_in_ = n_features
        names = column_names(x)
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_columns(self, x: Any) -> None:
        """Check that columns are those of fit.

        Raises
        ------
        UsageError
            If their number or their names differ.
        """
        shape: tuple[int, ...] = tuple(getattr(x, "shape", ()))
        if len(shape) == 2 and shape[1] != self.n_features_in_:
            raise UsageError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input; give rows like those of fit"
            )
        names, fitted = column_names(x), getattr(self, "feature_names_in_", None)
        if names is not None and fitted is not None and not np.array_equal(names, fitted):
            raise UsageError(f"the columns must be named as in fit, {', '.join(fitted)}, got {', '.join(names)}")


def column_names(x: Any) -> np.ndarray | None:
    """Return the names of a data frame's columns if all are text; None for anything else."""
    columns = getattr(x, "columns", None)
    if columns is None or not all(isinstance(name, str) for name in columns):
        return None
    return np.asarray(columns, dtype=object)


def not_fitted(estimator: object) -> UsageError:
    """Return the error for an estimator that was used before ``fit``.

    It is a ValueError and an AttributeError, as scikit-learn's NotFittedError is; and where scikit-learn is loaded, it
    is a NotFittedError as well.
    """
    bases: tuple[type[Exception], ...] = (UsageError, AttributeError)
    exceptions = sys.modules.get("sklearn.exceptions")
    if exceptions is not None:
        bases = (UsageError, exceptions.NotFittedError)
    error = type("NotFittedError", bases, {"__module__": __name__, "__doc__": "An estimator is used before fit."})
    found: UsageError = error(f"this {type(estimator).__name__} is not fitted yet; call fit first")
    return found


def check_rows(x: Any) -> Any:
    """Return rows that a user gave, as something that can be sliced; refuse what is no table of real numbers.

    Parameters
    ----------
    x : array, memory map, data frame, list of lists, or iterable of blocks
        Blocks, arrays on a GPU, and objects with ``shape`` that are read slice by slice are returned as they are.

    Raises
    ------
    UsageError
        If X is sparse, complex, not a table, or empty.
    """
    if hasattr(x, "tocsr") or (hasattr(x, "sparse") and hasattr(x, "dtypes")):
        raise UsageError("X must be dense, got a sparse matrix or a data frame with sparse columns; use X.toarray()")
    if isinstance(x, list) and (not x or np.ndim(x[0]) != 1):
        return x  # blocks
    foreign = hasattr(x, "__array__") and not hasattr(x, "shape")
    if isinstance(x, (list, tuple)) or foreign or hasattr(x, "iloc") or getattr(x, "dtype", None) == np.dtype(object):
        x = _as_numbers(x)
    shape = getattr(x, "shape", None)
    if shape is None or not hasattr(x, "dtype"):
        return x
    if np.dtype(x.dtype).kind == "c":
        raise UsageError("Complex data not supported: X must be real numbers")
    if len(shape) != 2:
        raise UsageError(
            f"Expected 2D array, got {len(shape)}D array instead: X must be rows of numbers, (N, D), got the shape "
            f"{tuple(shape)}. Reshape your data with X.reshape(-1, 1) if each row is one number, or X.reshape(1, -1) "
            "if it is one row"
        )
    for axis, what in ((0, "sample"), (1, "feature")):
        if shape[axis] == 0:
            raise UsageError(
                f"0 {what}(s) (shape={tuple(shape)}) while a minimum of 1 is required: X must not be empty"
            )
    return x


def check_weights(sample_weight: Any, x: Any) -> np.ndarray:
    """Return the weights of rows, (N,) float64.

    Raises
    ------
    UsageError
        If they are not one finite number of at least 0 per row, or all are 0.
    """
    weights = np.asarray(sample_weight, np.float64)
    shape = getattr(x, "shape", None)
    if shape is None:
        raise UsageError("sample_weight needs rows in one array, got blocks of rows; join them first")
    if weights.ndim == 0:
        weights = np.full(shape[0], float(weights))
    if weights.shape != (shape[0],):
        raise UsageError(f"sample_weight must have one number per row, ({shape[0]},), got the shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise UsageError("sample_weight must be finite numbers of at least 0, and not all zero")
    return weights


def _as_numbers(x: Any) -> np.ndarray:
    """Return anything like an array as an array of numbers."""
    try:
        array = np.asarray(x)
        return array.astype(np.float64) if array.dtype == object else array
    except (TypeError, ValueError) as error:
        raise UsageError(f"X must be a table of real numbers, (N, D): {error}") from None
