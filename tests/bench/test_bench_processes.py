"""Programs that ``python -m bench gpu`` starts: none is left behind, and what the others have found is kept."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import fake_cupy
import pytest

from tests.bench import test_bench_gpu

# At the end of the path, so that an installed vitnp stays the one tested.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from bench import gpu
from bench.gpu import processes, sanitizer, steps
from bench.gpu.report import Report, read

LONG = 600
# A child, and a grandchild in a session of its own; both outlast their parent, and write their numbers into a file.
FAMILY = f"""
import os, subprocess, sys, time
inner = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'a'), flush=True); time.sleep({LONG})"
outer = "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]], "
outer += "start_new_session=True); print(os.getpid(), file=open(sys.argv[1], 'a'), flush=True); time.sleep({LONG})"
subprocess.Popen([sys.executable, "-c", outer, FILE, inner])
while not os.path.exists(FILE) or len(open(FILE).readlines()) < 2: time.sleep(0.01)
"""
HANG = f"time.sleep({LONG})\n"


def family(path: pathlib.Path) -> str:
    """The program's text, with the file where it writes."""
    return FAMILY.replace("FILE", repr(str(path)))


def alive(path: pathlib.Path) -> list[int]:
    """Processes named in a file that still run."""
    return [number for number in map(int, path.read_text().split() if path.is_file() else ()) if _runs(number)]


def _runs(number: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def await_lines(path: pathlib.Path, count: int) -> None:
    """Wait until a file has so many."""
    until = time.monotonic() + 60
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/environ").exists(), reason="marks are read from /proc")


# --- One program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest, seconds, status", [("", 60, 0), ("raise SystemExit(3)", 60, 3), (HANG, None, None)])
def test_no_process_outlasts_the_program_that_started_it(tmp_path, rest, seconds, status):
    path = tmp_path / "numbers"
    command = [sys.executable, "-c", family(path) + rest]
    if seconds is None:  # as long as it takes to have a family
        waited = subprocess.Popen.wait

        def wait(self, timeout=None):
            await_lines(path, 2)
            return waited(self, timeout=0.1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                subprocess.Popen, "wait", lambda self, timeout=None: (wait if timeout else waited)(self, timeout)
            )
            assert processes.run(command, 1) is None
    else:
        assert processes.run(command, seconds) == status
    assert len(path.read_text().split()) == 2 and alive(path) == []


def test_what_a_program_prints_is_kept(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        assert (
            processes.run(
                [sys.executable, "-c", "import sys; print(1, flush=True); print(2, file=sys.stderr)"], 60, file
            )
            == 0
        )
    assert (tmp_path / "log").read_text().split() == ["1", "2"]


@pytest.mark.slow(reason="waits for processes to end")
@pytest.mark.parametrize("rest, kind", [("print('every kernel ran')", "check"), (HANG, "skipped")])
def test_a_sanitizer_leaves_no_process(tmp_path, monkeypatch, rest, kind):
    """One that starts others, as the real one does, and comes to its end or doesn't."""
    path, program = tmp_path / "numbers", tmp_path / sanitizer.SANITIZER
    program.write_text(f"#!{sys.executable}\n{family(path)}{rest}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    report = Report(tmp_path / "records", 63 if kind == "check" else 7, "memcheck")
    sanitizer.memcheck(report, argparse.Namespace())
    (record,) = read(tmp_path / "records")
    assert record["kind"] == kind
    assert alive(path) == []


def test_a_sanitizer_that_knows_no_filters_looks_at_everything(tmp_path, monkeypatch):
    program = tmp_path / sanitizer.SANITIZER
    refuses = "if '--kernel-name' in sys.argv: sys.exit('unrecognized option --kernel-name')"
    program.write_text(f"#!{sys.executable}\nimport sys\n{refuses}\nprint('every kernel ran')\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sanitizer.racecheck(Report(tmp_path / "records", 60, "racecheck"), argparse.Namespace())
    (record,) = read(tmp_path / "records")
    assert record["passed"] and record["detail"] == "nothing found"


# --- A whole run -----------------------------------------------------------------------------------------------------


TIMING = "from bench.gpu.measure import Timing\n"
SCRIPTS = {
    "keys": "r.check('keys in fp16', False, '0.5, at most 0.002; 1 of 4 differ: (0, 1) is 7, expected 3')",
    "masks": "r.check('masks', True)\nraise SystemExit('illegal memory access')",
    "ceilings": TIMING + "r.time({'ceiling': 'copy'}, 'copy', Timing(1, 1, 1, 3), rate=4e12)",
    "kmeans": "r.check('k-means', True)\n",
    "attention": "r.check('attention', True)",
}


@pytest.mark.slow(reason="waits for a time limit")
def test_failing_wrong_and_hanging_steps_cost_the_others_nothing(tmp_path, monkeypatch, capsys):
    numbers = tmp_path / "numbers"
    scripts = {**SCRIPTS, "kmeans": SCRIPTS["kmeans"] + family(numbers) + HANG}
    test_bench_gpu.scripted(monkeypatch, scripts)
    chosen = [step for step in steps.STEPS if step.name in scripts]
    chosen[3] = dataclasses.replace(chosen[3], seconds=4.0)  # kmeans
    monkeypatch.setattr(gpu, "STEPS", tuple(chosen))
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    monkeypatch.setattr(gpu, "FEWEST_SECONDS", 0.5)
    seen, written = [], gpu._replace

    def noted(path: pathlib.Path, text: str) -> None:
        written(path, text)
        if path.name == "gpu.json":
            seen.append({record["step"] for record in json.loads(path.read_text())["records"]})

    monkeypatch.setattr(gpu, "_replace", noted)
    with fake_cupy.installed("fast") as fake:
        test_bench_gpu.complete(fake)
        assert gpu.main(["--out", str(tmp_path / "out")]) == gpu.EXIT_WRONG
    said = capsys.readouterr()
    assert "wrong: keys in fp16 (0.5, at most 0.002; 1 of 4 differ: (0, 1) is 7, expected 3)" in said.err
    assert "masks runs to its end (exit status 1: illegal memory access)" in said.err
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())
    passed = {record["name"]: record["passed"] for record in kept["records"] if record["kind"] == "check"}
    assert passed["k-means"] and passed["attention"] and passed["masks"] and not passed["keys in fp16"]
    assert any(record["kind"] == "time" for record in kept["records"])
    assert "kmeans, the rest of it: stopped after" in (tmp_path / "out" / "gpu.txt").read_text()
    # After each step there was a file with all up to it; the checks came first, then the rest in their order.
    assert len(seen) == 1 + len(scripts) and all(one < other for one, other in itertools.pairwise(seen))
    assert [seen[2]] + [later - earlier for earlier, later in itertools.pairwise(seen[2:])] == [
        {"keys", "masks"}, {"ceilings"}, {"kmeans"}, {"attention"}
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.json", "gpu.log", "gpu.txt"]
    assert alive(numbers) == []


RUN = """
import sys
sys.path[:0] = {path!r}
import pytest, fake_cupy, test_bench_gpu
from bench import gpu
with pytest.MonkeyPatch.context() as patch, fake_cupy.installed("fast") as fake:
    test_bench_gpu.complete(fake)
    test_bench_gpu.scripted(patch, {scripts!r})
    status = gpu.main(["--out", {out!r}, "--only", *{scripts!r}])
sys.exit(status)
"""


@pytest.mark.slow(reason="waits for processes")
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_steps_and_leaves_what_there_is(tmp_path, number, status):
    hanging, numbers = tmp_path / "hanging", tmp_path / "numbers"
    scripts = {**SCRIPTS, "keys": "r.check('keys', True)", "masks": "r.check('masks', True)"}
    scripts["kmeans"] += family(numbers) + f"open({str(hanging)!r}, 'w').write('x')\n" + HANG
    here = pathlib.Path(__file__).resolve().parent
    code = RUN.format(
        path=[str(here), str(here.parent / "support"), str(processes.ROOT)], scripts=scripts, out=str(tmp_path / "out")
    )
    with (tmp_path / "said").open("wb") as said:
        run = subprocess.Popen([sys.executable, "-c", code], cwd=processes.ROOT, stdout=said, stderr=said)
    try:
        await_lines(hanging, 1)
        run.send_signal(number)
        assert run.wait(timeout=60) == status, (tmp_path / "said").read_text()
    finally:
        run.kill()
    assert alive(numbers) == []
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["records"]
    assert {record["name"] for record in kept if record["kind"] == "check"} == {"keys", "masks", "k-means"}
    why = {record["name"]: record["why"] for record in kept if record["kind"] == "skipped"}
    assert why["attention"] == f"stopped by {signal.Signals(number).name}" and "kmeans, the rest of it" in why
    assert "not done: attention: stopped by" in (tmp_path / "out" / "gpu.txt").read_text()


# --- Machines where something is missing
# --------------------------------------------------------------------------------


BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    "absent, said",
    [
        (
            ["platformdirs", "pooch", "cupy"],
            "platformdirs and pooch are not installed, and .*; install them .*RUN.md.*, and r",
        ),
        (["pooch", "cupy"], "pooch is not installed, and .*; install it "),
        (["cupy"], "no NVIDIA driver|CuPy isn't installed"),
        (["numpy", "cupy"], "numpy is not installed; install it "),
    ],
)
def test_a_bare_environment_says_in_one_sentence_what_is_missing(tmp_path, absent, said):
    (tmp_path / "sitecustomize.py").write_text(BARE.format(names=absent))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "bench", "gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=processes.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"vitnp: error: [^\n]+\n", done.stderr) and re.search(said, done.stderr)
    assert "--device cpu" not in done.stderr and not (tmp_path / "out").exists()


# --- The two prepared calls
# ---------------------------------------------------------------------------------------------


def test_the_prepared_calls_are_short_enough_and_name_what_there_is():
    text = (pathlib.Path(gpu.__file__).parent / "RUN.md").read_text(encoding="utf-8")
    calls = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    limits = [int(limit) for limit in re.findall(r"^## Call [AB]: limit (\d+) s", text, re.MULTILINE)]
    assert len(calls) == len(limits) == 2
    names = {step.name for step in steps.STEPS}
    for call, limit in zip(calls, limits):
        assert len(call) < 2000
        assert subprocess.run(["bash", "-n", "-c", call]).returncode == 0
        # What is waited for, all in all, with something left for the wheels; what runs in the background is in
        # brackets.
        assert sum(map(int, re.findall(r"(?<!\()timeout (\d+)", call))) <= limit - 15
        seconds = int(re.search(r"--seconds (\d+)", call)[1])
        assert seconds + 2 * gpu.GRACE < int(re.search(r"timeout (\d+) python3 -m bench gpu", call)[1])
        only = re.search(r"--only ([a-z ]+)", call)
        assert not only or set(only[1].split()) <= names
        for module in re.findall(r"python3 -m ((?:bench|vitnp)[.\w]*)", call):
            assert (processes.ROOT / module.replace(".", "/")).with_suffix(".py").is_file() or module == "bench"
        files = set(re.findall(r"\$OUT/([\w.]+)", call)) | {"gpu.json", "gpu.txt", "gpu.log"}
        assert len(files) <= 8 and all(f"`{name}`" in text for name in files)


@pytest.mark.slow(reason="every kernel on the emulator")
def test_what_a_profiler_looks_at_is_launched(monkeypatch):
    with fake_cupy.installed("fast") as fake:
        test_bench_gpu.forget()
        test_bench_gpu.complete(fake)
        from bench.gpu import launches, typical

        monkeypatch.setattr(typical, "ROWS", 90)
        monkeypatch.setattr(typical, "IMAGES", 1)
        monkeypatch.setattr(typical, "TOKENS", 70)
        with launches.recorded(fake) as found:
            assert typical.main() == 0
        names = [launch.function.name for launch in found]
    test_bench_gpu.forget()
    assert names.count("attention_half") == 1 and names.count("kmeans_step") == 4
