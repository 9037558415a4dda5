"""MkDocs hooks: fill the site from the checkout itself, so that it is complete without a network.

- A link out of ``docs/`` to a file of the checkout, such as ``../vitnp/pipeline.py``, becomes a link to a page of the
  site that shows the file. Pictures are copied.
- ``<!-- help: vitnp segment -->`` becomes what ``vitnp segment --help`` prints.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
LANGUAGES = dict.fromkeys((".cu", ".cuh", ".cpp", ".h"), "c++") | dict.fromkeys((".cff", ".yml"), "yaml")
LANGUAGES |= {".py": "python", ".html": "html", ".cfg": "ini", ".toml": "toml", ".json": "json"}

_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?(\))")
_HELP = re.compile(r"<!-- help: ([a-z ]+) -->")

# Pages of the site by the file of the checkout that they show, both with forward slashes.
_pages: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the checkout that a page links to, directly or through another such page."""
    _pages.clear()
    waiting = []
    for file in files.documentation_pages():
        _pages[f"docs/{file.src_uri}"] = file.src_uri
        waiting.append((f"docs/{file.src_uri}", file.content_string))
    while waiting:
        path, text = waiting.pop()
        for target in sorted(_links(path, text)):
            if target in _pages or not (ROOT / target).exists():
                continue  # MkDocs itself warns about a link that leads nowhere
            file, text_of_target = _added(target, config)
            _pages[target] = file.src_uri
            files.append(file)
            waiting.append((target, text_of_target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the checkout at their pages, and insert the help texts."""
    here = page.file.src_uri
    path = next(path for path, uri in _pages.items() if uri == here)

    def relink(link: re.Match[str]) -> str:
        uri = _pages.get(_resolve(path, link[2]))
        if uri is None:
            return link[0]
        return f"{link[1]}{posixpath.relpath(uri, posixpath.dirname(here) or '.')}{link[3] or ''}{link[4]}"

    return _HELP.sub(_help, _outside_fences(markdown, lambda text: _LINK.sub(relink, text)))


def _links(path: str, text: str) -> Iterator[str]:
    """Yield the files and folders of the checkout that a page links to."""
    for part in _FENCE.split(text):
        if not part.startswith("```"):
            yield from filter(None, (_resolve(path, link[2]) for link in _LINK.finditer(part)))


def _resolve(path: str, link: str) -> str:
    """Return where a relative link of a file leads, seen from the root of the checkout; "" for any other link."""
    if not link or ":" in link or link.startswith("/"):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if part.startswith("```") else change(part) for part in _FENCE.split(text))


def _added(target: str, config: MkDocsConfig) -> tuple[File, str]:
    """Return the site's file for a file or folder of the checkout, and the Markdown in which to look for more links."""
    path = ROOT / target
    if path.suffix.lower() in PICTURES:
        return File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)), ""
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
        return File.generated(config, f"checkout/{target}", content=text), text
    if path.is_dir():
        links = [f"- [{entry.name}]({path.name}/{entry.name})" for entry in _listed(path)]
        text = "\n".join([f"# {target}/", "", *links])
        return File.generated(config, f"source/{target}/index.md", content=_unsearched(text)), text
    code = path.read_text(encoding="utf-8")
    text = f"# {target}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{code}\n````\n"
    return File.generated(config, f"source/{target}.md", content=_unsearched(text)), ""


def _listed(folder: Path) -> list[Path]:
    """Return the source files of a folder, and its folders with such files."""
    entries = sorted(folder.iterdir())
    return [entry for entry in entries if entry.suffix in LANGUAGES or (entry.is_dir() and _listed(entry))]


def _unsearched(text: str) -> str:
    """Return a page that the search leaves out: the search is for the documentation."""
    return f"---\nsearch:\n  exclude: true\n---\n\n{text}"


def _help(marker: re.Match[str]) -> str:
    """Return what a command prints for --help, as a code block."""
    _, *command = marker[1].split()
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-m", "vitnp", *command, "--help"], env=environment, cwd=ROOT, text=True, capture_output=True
    )
    if shown.returncode:
        raise RuntimeError(f"`{marker[1]} --help` failed: {shown.stderr.strip()}")
    return f"```text\n{shown.stdout.rstrip()}\n```"
