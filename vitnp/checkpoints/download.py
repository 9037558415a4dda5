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
import urllib.parse
from typing import TYPE_CHECKING

from vitnp.checkpoints.architecture import check_tensors, infer_architecture
from vitnp.checkpoints.checksum import file_sha256, read_sidecar, write_sidecar
from vitnp.checkpoints.container import container_format
from vitnp.checkpoints.read import read_checkpoint
from vitnp.checkpoints.registry import FOLDER, Entry, find
from vitnp.errors import CheckpointError

if TYPE_CHECKING:
    import requests

_ATTEMPTS = 2
_TIMEOUT = (10, 60)  # seconds to connect, and to wait for more bytes
_CHUNK_BYTES = 2**20
_SIZE_TOLERANCE = 0.02  # the registry rounds to three digits


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


def is_to_be_fetched(entry: Entry, accept_license: bool = False) -> bool:
    """Return whether :func:`fetch` will download an entry: it isn't in the cache, and its license is no obstacle."""
    return bool(entry.url) and not place_of(entry).is_file() and (accept_license or not entry.license_url)


def fetch(name: str, accept_license: bool = False) -> tuple[pathlib.Path, str]:
    """Return the file of a registered checkpoint, downloaded unless it is in the cache.

    A download is checked against the SHA-256 of the registry. Where the registry has none, the file must come over
    https, have the size and the architecture of the entry and the SHA-256 that the server sends, if it sends one; its
    SHA-256 is then written beside it. A file that has changed on disk is therefore noticed, and downloaded again.

    Parameters
    ----------
    name : str
        Name in the registry, or "auto".
    accept_license : bool
        Whether the user accepts the license of the checkpoint. Without that, those that have a license of their own,
        as DINOv3, are not downloaded; what is in the cache is used.

    Returns
    -------
    path : pathlib.Path
    sha256 : str
        SHA-256 of the file as it is now.

    Raises
    ------
    CheckpointError
        If the name is unknown, its license isn't accepted, or the download fails; the message says what to do.

    Examples
    --------
    >>> fetch("vitnp_tiny")[0].name
    'vitnp_tiny.safetensors'
    """
    entry = find(name)
    path = place_of(entry)
    if path.is_file():
        sha256 = file_sha256(path)
        expected = entry.sha256 or read_sidecar(path)
        if expected in (None, sha256):
            if not entry.sha256 and expected is None:
                write_sidecar(path, sha256)
            return path, sha256
    if entry.url is None:
        raise CheckpointError(f"the built-in checkpoint {path} is missing or changed: install vitnp again")
    if entry.license_url and not accept_license:
        raise CheckpointError(
            f"{entry.name} is under the {entry.license} License, {entry.license_url}: read it and accept it with "
            f"`vitnp weights fetch {entry.name} --accept-license`, or get the file from {entry.gate} and give it as "
            "--model FILE"
        )
    _download(entry, path)
    sha256 = file_sha256(path)
    if not entry.sha256:
        write_sidecar(path, sha256)
    return path, sha256


def _download(entry: Entry, path: pathlib.Path) -> None:
    """Download a file to its path, with a second attempt after a failure that may be temporary."""
    import pooch
    import requests

    url = address_of(entry)
    by_hand = (
        f"get the file from {entry.gate} and give it as --model FILE"
        if entry.gate
        else f"download {url} by hand to {path}, or give the path of another checkpoint as the model"
    )
    if not entry.sha256:
        _require_encryption(entry, url, by_hand)
    pooch.get_logger().setLevel("ERROR")
    for _ in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # only a damaged file gets here, which pooch would accept
            known = f"sha256:{entry.sha256}" if entry.sha256 else None
            pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=_Downloader(entry))
            os.chmod(path, 0o644)
            return
        except requests.HTTPError as error:
            assert error.response is not None  # raise_for_status sets it
            reason = f"the server answers {error.response.status_code} {error.response.reason}".rstrip()
            if error.response.status_code < 500:  # a second attempt would fail too
                break
        except requests.RequestException as error:
            reason = _network_reason(error)
        except _WrongFileError as error:
            reason = str(error)
            break
        except ValueError:
            reason = "the file doesn't have the expected SHA-256"
        except OSError as error:
            raise CheckpointError(f"{path} can't be written: {error.strerror or error}") from None
    raise CheckpointError(f"{entry.name} can't be fetched ({reason}): {by_hand}")


class _WrongFileError(Exception):
    """What the server sends is another file than the registry describes; the message is a clause about it."""


class _Downloader:
    """Downloads a file for pooch, which keeps it only if nothing is raised.

    The length of the file, and its SHA-256 where the server sends one, are checked. Without one in the registry, so are
    its container, its architecture and that nobody on the way could change it.
    """

    def __init__(self, entry: Entry):
        self.entry = entry

    def __call__(self, url: str, output_file: str, _: object) -> None:
        import requests

        with requests.get(url, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            hops = (*response.history, response)
            if not self.entry.sha256:
                for hop in hops:
                    if not _is_encrypted(str(hop.url)):
                        raise _WrongFileError(f"it comes over an open connection, {hop.url}, and no SHA-256 is known")
            sha256 = self._receive(response, pathlib.Path(output_file))
        # Model hubs send the SHA-256 of a large file with the redirection to its address.
        for hop in hops:
            linked = re.fullmatch(r'"?([0-9a-f]{64})"?', hop.headers.get("X-Linked-ETag", ""))
            if linked and linked[1] != sha256:
                raise ValueError("wrong SHA-256")
        if not self.entry.sha256:
            _check_unrecorded(self.entry, pathlib.Path(output_file))

    def _receive(self, response: requests.Response, path: pathlib.Path) -> str:
        """Write the body of a response to a file, up to the size of the registry, and return its SHA-256."""
        import requests
        from tqdm import tqdm

        length = response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        expected = self.entry.megabytes * 1e6
        most = expected * (1 + _SIZE_TOLERANCE)
        too_long = f"the server sends more than {most / 1e6:.0f} MB, but the checkpoint has {self.entry.megabytes:g} MB"
        if total is not None and total > most:
            raise _WrongFileError(too_long)
        digest, received = hashlib.sha256(), 0
        title = self.entry.name
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty(), leave=False)
        with bar, open(path, "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                received += len(chunk)
                if received > most:
                    raise _WrongFileError(too_long)
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        if total is not None and received != total:
            raise requests.ConnectionError(f"the connection broke after {received:,} of {total:,} bytes")
        if not self.entry.sha256 and received < expected * (1 - _SIZE_TOLERANCE):
            raise _WrongFileError(
                f"the server sends {received / 1e6:.3g} MB, but the checkpoint has {self.entry.megabytes:g} MB"
            )
        return digest.hexdigest()


def _check_unrecorded(entry: Entry, path: pathlib.Path) -> None:
    """Check that a file of which the registry has no SHA-256 is a safetensors file of the entry's architecture."""
    try:
        if container_format(path) != "safetensors":
            raise CheckpointError("it isn't a safetensors file")
        checkpoint = read_checkpoint(path)
        dialect = checkpoint.dialect
        architecture = infer_architecture(
            checkpoint.weights, class_position=dialect.class_position, rotary=dialect.rotary
        )
        check_tensors(checkpoint.weights, architecture)
        entry.check_architecture(architecture)
    except CheckpointError as error:
        reason = str(error).replace(str(path), "it")
        raise _WrongFileError(f"the file isn't the one that the registry describes: {reason}") from None


def _require_encryption(entry: Entry, url: str, by_hand: str) -> None:
    if not _is_encrypted(url):
        raise CheckpointError(
            f"{entry.name} isn't fetched over the open connection of VITNP_MIRROR={os.environ.get('VITNP_MIRROR')}: no "
            f"SHA-256 of it is recorded, so that a changed file would pass; use an https:// mirror, or {by_hand}"
        )


def _is_encrypted(url: str) -> bool:
    return url.startswith("https://")


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
