"""Download a registered checkpoint into the cache folder, once, when its name is used.

Environment variables: ``VITNP_CACHE`` is the cache folder (by default that of the platform), ``VITNP_MIRROR`` replaces
the server in every address (``https://mirror.example``), and the usual ones for proxies such as ``HTTPS_PROXY``.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import sys
import tempfile
import urllib.parse

from vitnp.checkpoints.registry import FOLDER, Entry, find
from vitnp.errors import CheckpointError

_ATTEMPTS = 2
_TIMEOUT = (10, 60)  # seconds to connect, and to wait for more bytes
_CHUNK_BYTES = 2**20


def cache_folder() -> pathlib.Path:
    """Return the folder of downloaded checkpoints; it may not exist yet."""
    chosen = os.environ.get("VITNP_CACHE")
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    import pooch

    return pathlib.Path(pooch.os_cache("vitnp"))


def place_of(entry: Entry) -> pathlib.Path:
    """Return the path of an entry's file, whether it has been downloaded or not."""
    return (cache_folder() if entry.url else FOLDER) / entry.file_name


def address_of(entry: Entry) -> str:
    """Return the URL to download an entry from, on the server that VITNP_MIRROR names if it is set.

    Raises
    ------
    CheckpointError
        If VITNP_MIRROR isn't an address.
    """
    url, mirror = str(entry.url), os.environ.get("VITNP_MIRROR")
    if not mirror:
        return url
    if not mirror.startswith(("http://", "https://")):
        raise CheckpointError(f"VITNP_MIRROR must be an http:// or https:// address, got {mirror!r}")
    return mirror.rstrip("/") + urllib.parse.urlsplit(url).path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a file, in hexadecimal.

    Raises
    ------
    CheckpointError
        If the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    return digest.hexdigest()


def fetch(name: str) -> tuple[pathlib.Path, str]:
    """Return the file of a registered checkpoint, downloaded unless it is in the cache.

    A download is checked against the SHA-256 of the registry, or against the one that the server sends. A SHA-256 that
    the registry lacks is written beside the file. A file that has changed on disk is therefore noticed, and downloaded
    again.

    Parameters
    ----------
    name : str
        Name in the registry, or "auto".

    Returns
    -------
    path : pathlib.Path
    sha256 : str
        SHA-256 of the file as it is now.

    Raises
    ------
    CheckpointError
        If the name is unknown, or the download fails; the message says where to put the file by hand.

    Examples
    --------
    >>> fetch("vitnp_tiny")[0].name
    'vitnp_tiny.safetensors'
    """
    entry = find(name)
    path = place_of(entry)
    if path.is_file():
        sha256 = file_sha256(path)
        expected = entry.sha256 or _read_sidecar(path)
        if expected in (None, sha256):
            if not entry.sha256 and expected is None:
                _write_sidecar(path, sha256)
            return path, sha256
    if entry.url is None:
        raise CheckpointError(f"the built-in checkpoint {path} is missing or changed: install vitnp again")
    _download(entry, path)
    sha256 = file_sha256(path)
    if not entry.sha256:
        _write_sidecar(path, sha256)
    return path, sha256


def _download(entry: Entry, path: pathlib.Path) -> None:
    """Download a file to its path, with a second attempt after a failure that may be temporary."""
    import pooch
    import requests

    url = address_of(entry)
    by_hand = f"download {url} by hand to {path}, or give the path of another checkpoint as the model"
    pooch.get_logger().setLevel("ERROR")
    for _ in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # only a damaged file gets here, which pooch would accept
            known = f"sha256:{entry.sha256}" if entry.sha256 else None
            pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=_stream)
            os.chmod(path, 0o644)
            return
        except requests.HTTPError as error:
            assert error.response is not None  # raise_for_status sets it
            reason = f"the server answers {error.response.status_code} {error.response.reason}".rstrip()
            if error.response.status_code < 500:  # a second attempt would fail too
                break
        except requests.RequestException as error:
            reason = _network_reason(error)
        except ValueError:
            reason = "the file doesn't have the expected SHA-256"
        except OSError as error:
            raise CheckpointError(f"{path} can't be written: {error.strerror or error}") from None
    raise CheckpointError(f"{entry.name} can't be fetched ({reason}): {by_hand}")


def _stream(url: str, output_file: str, _: object) -> None:
    """Download a file as pooch's `downloader`; check its length and SHA-256 where the server sends them."""
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        digest, received = hashlib.sha256(), 0
        title = pathlib.PurePath(output_file).parent.name
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty(), leave=False)
        with bar, open(output_file, "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if total is not None and received != total:
            raise requests.ConnectionError(f"the connection broke after {received:,} of {total:,} bytes")
        # Model hubs send the SHA-256 of a large file with the redirection to its address.
        for hop in (*response.history, response):
            linked = re.fullmatch(r'"?([0-9a-f]{64})"?', hop.headers.get("X-Linked-ETag", ""))
            if linked and linked[1] != digest.hexdigest():
                raise ValueError("wrong SHA-256")


def _network_reason(error: Exception) -> str:
    """Return the reason of an exception of requests in a few words; its own text fills a page."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy can't be reached"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate isn't trusted"
    if isinstance(error, requests.Timeout):
        return "the server doesn't answer in time"
    text = str(error)
    if "broke after" in text or "IncompleteRead" in text or isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke midway"
    return "the server can't be reached; is there a network?"


def _sidecar(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".sha256")


def _read_sidecar(path: pathlib.Path) -> str | None:
    """Return the SHA-256 that was written beside a file, or None."""
    try:
        words = _sidecar(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else None


def _write_sidecar(path: pathlib.Path, sha256: str) -> None:
    """Write a SHA-256 beside a file, in the format of ``sha256sum --check``; a read-only cache is no error."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="ascii") as file:
            temporary = file.name
            file.write(f"{sha256}  {path.name}\n")
        os.replace(temporary, _sidecar(path))
        temporary = None
    except OSError:
        pass
    finally:
        if temporary is not None:
            os.unlink(temporary)
