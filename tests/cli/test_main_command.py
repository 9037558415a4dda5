"""The command `vitnp`: its commands, their help, exit statuses, and former names of options."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys

import pytest

from vitnp.cli import arguments, shared
from vitnp.cli.main import COMMANDS, main
from vitnp.errors import UsageError
from vitnp.options import OPTIONS

OLD_FLAGS = {old: option for option in OPTIONS.values() for old in option.old_flags}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def help_of(command: str, capsys, monkeypatch) -> list[str]:
    """Return the lines of a command's help on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(capsys, arguments):
    try:
        assert main(arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: vitnp COMMAND") and all(f"vitnp {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["nonsense"], ["nonsense", "--seed", "1"], ["--nonsense"], ["weights"]])
def test_wrong_commands_are_one_sentence_and_status_2(arguments):
    done = run("-m", "vitnp", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vitnp: error: ") and done.stderr.count("\n") == 1
    assert "nonsense" in done.stderr or "COMMAND" in done.stderr


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    message = capsys.readouterr().err
    commands = "segment, watch, export, apply, features, similar, duplicates, match, evaluate or weights"
    assert f"must be one of {commands}, got 'nonsense'" in message


@pytest.mark.parametrize(
    "command",
    [["-m", "vitnp", "segment"], ["-m", "vitnp.segment"], ["-c", "import vitnp.cli.segment as s; s.console()"]],
)
def test_every_way_to_run_a_command_is_the_same(tmp_path, command):
    done = run(*command, str(tmp_path / "missing.jpg"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vitnp: error: ") and "missing.jpg" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["", *COMMANDS, "weights convert", "weights info", "weights fetch"])
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    lines = help_of(command, capsys, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if re.fullmatch(r"  --[a-z-]+( [A-Z|]+)?", line)]  # help on the same line
    assert not any("==SUPPRESS==" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    heavy = "[name for name in ('numpy', 'scipy', 'numba', 'cupy', 'torch', 'PIL') if name in sys.modules]"
    code = f"import sys, vitnp.cli.{command} as command; command.build_parser().format_help(); print({heavy})"
    assert run("-c", code).stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(command, capsys, monkeypatch):
    lines = help_of(command, capsys, monkeypatch)
    first = lines.index("examples:") + 1
    assert len([line for line in lines[first:] if line.startswith(f"  vitnp {command} ")]) >= 2


@pytest.mark.parametrize("command", ["segment", "features", "evaluate", "weights convert", "weights info"])
def test_former_names_are_not_shown(command, capsys, monkeypatch):
    shown = set(re.findall(r"--[a-z-]+", "\n".join(help_of(command, capsys, monkeypatch))))
    assert shown and not shown & set(OLD_FLAGS)


def test_former_names_are_these():
    former = {"--fit-to", "--size", "--pos-embed", "--normalise", "--normalize"}
    assert set(OLD_FLAGS) == former and OPTIONS["levels"].old_values == {"each": "single"}


VALUES = {"save_collection": "fitted.safetensors", "short_side": "96", "pos_embed": "exact", "normalization": "half"}


@pytest.mark.parametrize("old", sorted(OLD_FLAGS))
def test_former_names_set_the_same_option(old):
    option = OLD_FLAGS[old]
    accepted = 0
    for command in ("segment", "features", "evaluate"):
        parser = importlib.import_module(f"vitnp.cli.{command}").build_parser()
        if option.long_flag not in parser._option_string_actions:
            continue
        now, before = (parser.parse_args(["a", flag, VALUES[option.name]]) for flag in (option.long_flag, old))
        assert now == before and getattr(now, option.name) is not None
        accepted += 1
    assert accepted


def test_the_former_level_each_is_single():
    parser = importlib.import_module("vitnp.cli.segment").build_parser()
    assert parser.parse_args(["a", "--levels", "each"]).levels == "single"


def test_segment_takes_former_names(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"leave out --levels single"):
        main(["segment", str(tmp_path), "--levels", "each", "--fit-to", str(tmp_path / "fitted.safetensors")])
    with pytest.raises(SystemExit) as stop:
        main(["segment", "a", "--size", "0"])
    assert stop.value.code == 2
    assert "--size must be a whole number of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--layer", "x"], "--layer must be a whole number, got 'x'"),
        (["--min-confidence", "nan"], "--min-confidence must be a number from 0 to 1, got 'nan'"),
        (["--classes", "70000"], "--classes must be a whole number from 1 to 65535, got '70000'"),
        (["--fit-patches", "some"], "--fit-patches must be a whole number of at least 1 or \"all\", got 'some'"),
        (["--refine", "magic"], "--refine must be one of solver, crf, guided, color or none, got 'magic'"),
        (["--max-pixels", "1e999"], "--max-pixels must be a whole number of at least 1, got '1e999'"),
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(capsys, given, message):
    with pytest.raises(SystemExit) as stop:
        main(["segment", "a", *given])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"vitnp: error: {message} (see vitnp segment --help)\n"


@pytest.mark.parametrize(
    ("given", "value"), [("120e6", 120_000_000), ("7", 7), ("1e2", 100), ("12345678901234567890", 12345678901234567890)]
)
def test_whole_numbers_may_be_written_with_an_exponent(given, value):
    parser = importlib.import_module("vitnp.cli.segment").build_parser()
    assert parser.parse_args(["a", "--max-pixels", given]).max_pixels == value


def test_numbers_of_options_outside_the_table():
    assert arguments.positive("3") == 3 and arguments.natural("0") == 0
    for convert, text in ((arguments.positive, "0"), (arguments.natural, "-1"), (arguments.natural, "1.5")):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
            convert(text)


def test_progress_closes_a_generator_that_is_not_exhausted():
    closed = []

    def items():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    shown = shared.progress(items(), 3, quiet=True)
    assert next(shown) == 0 and not closed
    shown.close()
    assert closed
    assert list(shared.progress([1, 2], 2, quiet=True)) == [1, 2]
