"""Every option, once."""

from __future__ import annotations

FACETS = ("key", "query", "value", "token")
FEATURES = (*FACETS, "cls", "register", "attention", "cls_state")
DEVICES = ("auto", "cpu", "cuda")
