"""The page ``gallery.html``: template, style and scripts put together, and the decisions that it begins with."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitnp import __version__
from vitnp.errors import OutputError
from vitnp.io.path_text import ascii_json, printable
from vitnp.io.write import replacing
from vitnp.masks.palette import bright_colors

# Parts of the script, in order: what is decided, what is shown, what a person does.
_SCRIPTS = ("gallery_decisions.js", "gallery_view.js", "gallery.js")

# Where the cards go, and the element that holds the decisions.
CARDS = "<!-- cards -->\n"
_BEGIN, _END = '<script type="application/json" id="decisions">', "</script>"


def page(title: str, *, run: Mapping[str, Any], summary: str, failures: Sequence[Mapping[str, str]] = ()) -> str:
    """Return the page, with `CARDS` where the cards go.

    Parameters
    ----------
    title : str
        Headline.
    run : mapping
        Data for the scripts: "run" (its key), "classes" (their names) and "photographs" (number and name of each).
    summary : str
        Number of photographs in words.
    failures : sequence of mapping
        "photograph" and "error" of each, as in ``run.json``.
    """
    script = "".join(map(_part, _SCRIPTS))
    return string.Template(_part("gallery.html")).substitute(
        generator=f"vitnp {__version__}",
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=html.escape(title),
        summary=summary,
        style=_part("gallery.css"),
        colors=_colors(len(run["classes"])),
        failures=_failures(failures),
        run=script_json(run),
        script=script,
    )


def set_decisions(path: str | os.PathLike[str], record: Mapping[str, Any]) -> bool:
    """Make decisions those that an existing page begins with.

    Parameters
    ----------
    path : path
        ``gallery.html``.
    record : mapping
        Content of ``decisions.json``; empty for none.

    Returns
    -------
    bool
        Whether that was possible: False if there is no page, or it is of an older version.

    Raises
    ------
    OutputError
        If the page cannot be read or written.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    begin = content.find(_BEGIN.encode())
    end = content.find(_END.encode(), begin)
    if begin < 0 or end < 0:
        return False
    text = script_json(record) if record else "null"
    with replacing(path) as file:
        file.write(content[: begin + len(_BEGIN)] + text.encode() + content[end:])
    return True


def script_json(value: object) -> str:
    r"""Return ASCII JSON that can stand in a ``script`` element.

    Examples
    --------
    >>> print(script_json(["</script>"]))
    ["\u003c/script>"]
    """
    return ascii_json(value, separators=(",", ":")).replace("<", "\\u003c")


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _colors(count: int) -> str:
    """Return the style rules of the colors of the classes."""
    colors = [f"#{bytes(color).hex()}" for color in bright_colors()[1 : count + 1].tolist()]
    variables = "".join(f"--c{number}:{color};" for number, color in enumerate(colors, 1))
    return f":root{{{variables}}}" + "".join(f".k{number}{{--k:var(--c{number})}}" for number in range(1, count + 1))


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    """Return the list of the photographs that could not be segmented."""
    if not failures:
        return ""
    items = "".join(
        f"<li>{_failure(printable(failure['photograph']), printable(failure['error']))}</li>" for failure in failures
    )
    photographs = f"{len(failures):,} photograph{'s' * (len(failures) != 1)}"
    return f'<details id="failures"><summary>{photographs} failed</summary><ul>{items}</ul></details>'


def _failure(photograph: str, error: str) -> str:
    """Return an error with the name of the photograph set apart, which may be written from right to left."""
    if not error.startswith(photograph):
        return html.escape(error)
    return f"<bdi>{html.escape(photograph)}</bdi>{html.escape(error[len(photograph) :])}"


def run_failures(path: Path) -> list[dict[str, str]]:
    """Return the failures in ``run.json``; none if there is no such file or it is damaged."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return []
    try:
        failures = json.loads(path.read_bytes())["failures"]
        return [{key: str(failure[key]) for key in ("photograph", "error")} for failure in failures]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
