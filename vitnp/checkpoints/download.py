"""Bring a known checkpoint into the cache folder: once, whole, and only when its name is asked for.

Environment: ``VITNP_CACHE`` is the cache folder (otherwise the platform's), ``VITNP_MIRROR`` takes the place of the
server in every address (``https://mirror.example/path``), ``HTTPS_PROXY`` and its kin are respected.
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
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
_PIECE = 2**20  # bytes


def cache_folder() -> pathlib.Path:
    """Where fetched checkpoints lie; the folder may not exist yet."""
    chosen = os.environ.get("VITNP_CACHE")
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    import pooch

    return pathlib.Path(pooch.os_cache("vitnp"))


def place_of(entry: Entry) -> pathlib.Path:
    """Where the file of an entry is, or goes once fetched."""
    return (cache_folder() if entry.url else FOLDER) / entry.file_name


def address_of(entry: Entry) -> str:
    """The URL that an entry is fetched from, VITNP_MIRROR considered."""
    mirror = os.environ.get("VITNP_MIRROR")
    if not mirror:
        return str(entry.url)
    if not mirror.startswith(("http://", "https://")):
        raise CheckpointError(f"VITNP_MIRROR should be an http:// or https:// address, not {mirror!r}")
    return mirror.rstrip("/") + urllib.parse.urlsplit(entry.url).path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises
    ------
    CheckpointError
        The file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    return digest.hexdigest()


def fetch(name: str) -> tuple[pathlib.Path, str]:
    """The file of a known checkpoint, downloaded unless it is there already.

    What arrives is checked against the recorded SHA-256, else against what the server says of it, and the hash is kept
    beside the file. So a file that changed on disk is noticed, and fetched again.

    Parameters
    ----------
    name : str
        A name of the registry.

    Returns
    -------
    path : pathlib.Path
    sha256 : str
        Of the file as it lies there now.

    Raises
    ------
    CheckpointError
        Unknown name, no network, a wrong file: the sentence says where to put the file by hand.
    """
    entry = find(name)
    path = place_of(entry)
    if path.is_file():
        sha256 = file_sha256(path)
        expected = entry.sha256 or _remembered(path)
        if expected in (None, sha256):
            if not entry.sha256 and expected is None:
                _remember(path, sha256)
            return path, sha256
    if entry.url is None:
        raise CheckpointError(f"the built-in checkpoint {path} is missing or changed: install vitnp again")
    _download(entry, path)
    sha256 = file_sha256(path)
    if not entry.sha256:
        _remember(path, sha256)
    return path, sha256


def _download(entry: Entry, path: pathlib.Path) -> None:
    """Fetch into place, with one more try after a failure that may pass."""
    import pooch
    import requests

    url = address_of(entry)
    by_hand = f"bring {url} by hand to {path}, or give your own file as the model"
    pooch.get_logger().setLevel("ERROR")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # only a damaged file gets here; pooch would take it as it is
            known = f"sha256:{entry.sha256}" if entry.sha256 else None
            pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=_stream)
            os.chmod(path, 0o644)
            return
        except requests.HTTPError as error:
            reason = f"the server answers {error.response.status_code} {error.response.reason}".rstrip()
            if error.response.status_code < 500:  # asking again won't help
                break
        except requests.RequestException as error:
            reason = _network_reason(error)
        except ValueError:
            reason = "what arrives hasn't the recorded SHA-256"
        except OSError as error:
            raise CheckpointError(f"{path} can't be written: {error.strerror or error}") from None
    raise CheckpointError(f"{entry.name} can't be fetched ({reason}): {by_hand}")


def _stream(url: str, output_file: str, _: object) -> None:
    """Pooch's downloader interface; checks length and, where the server tells, SHA-256."""
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        digest, count = hashlib.sha256(), 0
        title = pathlib.PurePath(output_file).parent.name
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty(), leave=False)
        with bar, open(output_file, "wb") as file:
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                digest.update(piece)
                count += len(piece)
                bar.update(len(piece))
        if total is not None and count != total:
            raise requests.ConnectionError(f"the connection broke after {count:,} of {total:,} bytes")
        # The hub sends the hash of a large file with the redirection to where it lies.
        for hop in (*response.history, response):
            linked = re.fullmatch(r'"?([0-9a-f]{64})"?', hop.headers.get("X-Linked-ETag", ""))
            if linked and linked[1] != digest.hexdigest():
                raise ValueError("hash")


def _network_reason(error: Exception) -> str:
    """The gist of an exception of requests, whose own text is a page long."""
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


def _remembered(path: pathlib.Path) -> str | None:
    """The hash noted when the file came, or None."""
    try:
        words = _sidecar(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else None


def _remember(path: pathlib.Path, sha256: str) -> None:
    """Note a hash beside the file, as ``sha256sum --check`` reads it. A cache that can't be written to is no error."""
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
