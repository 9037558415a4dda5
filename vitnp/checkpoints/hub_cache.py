"""Find models in the local cache of the Hugging Face Hub. Nothing is fetched, and huggingface_hub isn't needed.

The layout is the same since huggingface_hub 0.8: ``models--ORG--NAME/refs/main`` holds a commit, whose files are in
``models--ORG--NAME/snapshots/COMMIT/``, as links to ``blobs/`` where links work.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re

from vitnp.checkpoints import registry
from vitnp.errors import CheckpointError

_PREFIX = re.compile(r"hf[-_]hub:")  # as timm writes it
_REPO_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9_][\w.-]{0,95})(?:@([\w.-]{1,100}))?")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".json")
_COMMIT = re.compile("[0-9a-f]{40}")


def is_repo_id(name: str) -> bool:
    """Return whether a name can be that of a model on the Hub: "org/name", "org/name@revision", "hf-hub:org/name".

    Examples
    --------
    >>> is_repo_id("timm/vit_small_patch16_224.dino"), is_repo_id("folder/model.pth"), is_repo_id("../model")
    (True, False, False)
    """
    bare = _PREFIX.sub("", name, count=1)
    return bool(_REPO_ID.fullmatch(bare)) and not bare.lower().endswith(_FILE_SUFFIXES)


def cache_folder() -> pathlib.Path:
    """Return the folder of the Hub's cache, found by the environment variables of huggingface_hub."""
    environ = os.environ
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return pathlib.Path(os.path.expandvars(chosen)).expanduser()


def find_snapshot(name: str) -> tuple[pathlib.Path, str]:
    """Return the folder of a model's files in the cache, and the name of the model without prefix and revision.

    Parameters
    ----------
    name : str
        "org/name", or "org/name@revision" where the revision is a branch, a tag or a commit; by default "main".

    Raises
    ------
    CheckpointError
        If the model or the revision isn't in the cache; the message says how to bring it.
    """
    match = _REPO_ID.fullmatch(_PREFIX.sub("", name, count=1))
    assert match, name
    org, model, revision = match.groups()
    repo_id, repo = f"{org}/{model}", cache_folder() / f"models--{org}--{model}"
    bring = f"bring it with `hf download {repo_id}{f' --revision {revision}' if revision else ''}`"
    if not repo.is_dir():
        registered = [name for name, entry in registry.entries().items() if f"/{repo_id}/" in (entry.url or "")]
        instead = f"use its name in the registry, {registered[0]}" if registered else "give a checkpoint file"
        raise CheckpointError(
            f"{repo_id} is neither a file nor in the cache of the Hugging Face Hub, {cache_folder()}: "
            f"{bring}, or {instead}"
        )
    snapshot = snapshot_of(repo, revision)
    if snapshot is None:
        raise CheckpointError(f"{repo} has no snapshot of the revision {revision or 'main'}: {bring}")
    return snapshot, repo_id


def snapshot_of(repo: pathlib.Path, revision: str | None = None) -> pathlib.Path | None:
    """Return the snapshot of a revision in the cache folder of one model, ``models--ORG--NAME``; None if it has none.

    Without a revision that of ``refs/main`` is taken, or the only snapshot that there is.
    """
    reference, commit = repo / "refs" / (revision or "main"), revision or ""
    with contextlib.suppress(OSError, ValueError):
        if reference.is_file():  # opening a pipe would wait for its writer
            with open(reference, encoding="ascii") as file:
                commit = file.read(100).strip()
    if _COMMIT.fullmatch(commit):
        snapshot = repo / "snapshots" / commit
        return snapshot if snapshot.is_dir() else None
    snapshots = [path for path in (repo / "snapshots").glob("*") if path.is_dir()]
    return snapshots[0] if revision is None and len(snapshots) == 1 else None


def repo_id_of(folder: pathlib.Path) -> str | None:
    """Return "org/name" for a folder inside a cache of the Hub, else None.

    Examples
    --------
    >>> repo_id_of(pathlib.Path("hub/models--facebook--dino-vits8/snapshots/483f2fc"))
    'facebook/dino-vits8'
    """
    for part in reversed(folder.absolute().parts[-3:]):
        kind, *names = part.split("--")
        if kind == "models" and len(names) >= 2:
            return f"{names[0]}/{'--'.join(names[1:])}"
    return None
