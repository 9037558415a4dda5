"""Links, options, names and code in the documentation are those of the checkout, and the site builds."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import pathlib
import re
import subprocess
import sys

import pytest
from vitnp.kernels import reference

import vitnp
from vitnp.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "weights/README.md")),
    ROOT / "tests/photographs/README.md",
    *PAGES,
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")

named = pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """Return the code blocks of a language in a Markdown file."""
    return [code for name, code in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def anchors(path: pathlib.Path) -> set[str]:
    """Return the anchors of a Markdown file's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def shown_options(main, *command: str) -> set[str]:
    """Return the options that a command's --help shows."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", printed.getvalue())) | {"--help", "--version"}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command."""
    mains = {name: importlib.import_module(f"vitnp.cli.{name}").main for name in COMMANDS}
    known = {name: shown_options(main) for name, main in mains.items()}
    known["weights"] |= set().union(*(shown_options(mains["weights"], sub) for sub in ("convert", "info", "fetch")))
    return known


@named
def test_links_lead_somewhere(text):
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", text.read_text(encoding="utf-8"))):
        if ":" in target:
            continue
        path = (text.parent / target).resolve() if target else text
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert not broken


@named
def test_commands_have_the_options_that_are_shown(text, options):
    wrong = []
    for line in "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines():
        line = line.partition(" #")[0]
        for command, rest in re.findall(r"(?:python -m vitnp[. ]|\bvitnp[ -])(\w+)((?: [^&|;]*)?)", line):
            assert command in options, line
            shown = re.findall(r"--[a-z][a-z-]*", rest)
            wrong += [f"{command} {option}" for option in shown if option not in options[command]]
    assert not wrong


@named
def test_options_in_the_text_exist(text, options):
    if text.name == "CHANGELOG.md":
        pytest.skip("lists former names")
    known = set().union(*options.values())
    quoted = re.findall(r"`([^`]+)`", FENCE.sub("", text.read_text(encoding="utf-8")))
    quoted = [code for code in quoted if not code.startswith(("mkdocs", "pytest", "ruff"))]
    found = set(re.findall(r"--[a-z][a-z-]*", " ".join(quoted)))
    benchmarks = (ROOT / "bench").rglob("*.py")
    trainers = (ROOT / "weights" / "train").rglob("*.py")
    others = "".join(path.read_text(encoding="utf-8") for path in (*benchmarks, *trainers))
    assert [option for option in sorted(found - known) if f'"{option}"' not in others] == []


@named
def test_python_in_the_text_compiles_and_names_what_exists(text):
    for code in blocks(text, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vitnp":
                assert hasattr(vitnp, node.attr), node.attr
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_every_page_is_in_the_navigation():
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f": {page.name}\n" not in configuration] == []


def test_the_reference_shows_every_public_name():
    shown = set(re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    for path in shown - {"vitnp.errors"}:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(vitnp, name)
    names = {path.rpartition(".")[2] for path in shown}
    errors = {name for name in vitnp.__all__ if getattr(vitnp, name) in vars(vitnp.errors).values()}
    assert names - {"errors"} == set(vitnp.__all__) - errors - {"__version__"}


def test_the_operations_named_exist():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    table = text[text.index("## The operations") : text.index("## CPU")]
    names = re.findall(r"`(\w+)`", table)
    assert len(names) > 15 and [name for name in names if not hasattr(reference, name)] == []


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {vitnp.__version__}\n" in text and "2311.18628" in text


@pytest.mark.slow(reason="builds the site")
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "method.html").read_text(encoding="utf-8")
    assert 'href="source/vitnp/method/foreground.py.html"' in page
    assert "--save LIST" in (tmp_path / "site" / "cli.html").read_text(encoding="utf-8")
    fetched = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="?(?:https?:)?//')
    for path in (tmp_path / "site").rglob("*.html"):
        assert not fetched.search(path.read_text(encoding="utf-8")), path
