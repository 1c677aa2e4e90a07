"""Docker, systems without POSIX, public continuous integration: what of them can be checked without them."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.config import arguments
from helpers.program import finish, start
from packaging.requirements import Requirement

DOCKERFILE = (ROOT / "Dockerfile").read_text()


# --- Docker -----------------------------------------------------------------------------------------------------------


def test_a_torch_of_the_base_image_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the build asks before it installs, and what it asserts after it, given the answer."""
    before, after = re.findall(r'-c "(import .*?)"', DOCKERFILE.replace("\\\n", ""), re.DOTALL)
    exec(before)
    for own in (capsys.readouterr().out.strip(), ""):  # a base without torch gets that of requirements.txt
        monkeypatch.setattr(sys, "argv", ["-c", own])
        exec(after)
    monkeypatch.setattr(sys, "argv", ["-c", "/usr/lib/python3/torch/__init__.py"])
    with pytest.raises(AssertionError, match=r"another torch than requirements\.txt names: /usr/lib/python3/torch"):
        exec(after)


def test_the_image_may_be_built_on_another_base() -> None:
    """Those that Dockerfile and docs/docker.md name are arguments of the build, declared where they have effect."""
    named = re.findall(r"--build-arg (\w+)=", DOCKERFILE + (ROOT / "docs" / "docker.md").read_text())
    assert set(named) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)) == {
        "BASE", "PIP_EXTRA_INDEX_URL", "REQUIREMENTS",
    }  # fmt: skip
    instructions = re.findall(r"^(ARG \w+|FROM \S+|RUN own)", DOCKERFILE, re.MULTILINE)
    assert instructions == [
        "ARG BASE", "FROM ${BASE}", "ARG PIP_EXTRA_INDEX_URL", "ARG REQUIREMENTS", "RUN own",
    ]  # fmt: skip


def test_the_locked_versions_are_ones_that_are_asked_for() -> None:
    """Each with its hash; what is asked for is there, and no place to take it from but torch's own."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M))
    assert len(locked) == len(re.findall(r"^[^\s#]", lock, re.MULTILINE))
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            asked = Requirement(line)
            assert asked.specifier.contains(locked[asked.name]), line
    assert set(re.findall(r"\S+//\S+", lock)) == {"PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"}


# --- systems ----------------------------------------------------------------------------------------------------------

WINDOWS = """\
import os, runpy, signal, sys
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "termios"))
del os.fork, os.fchmod, os.sched_getaffinity, signal.SIGKILL, signal.SIGHUP
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("program", ["run", "studies.gradients"])
def test_windows_gets_one_sentence(tmp_path: Path, program: str) -> None:
    """A system without the modules that Python has on POSIX systems only."""
    given = [*arguments(tmp_path), "--train"] if program == "run" else ["--help"]
    code, out, err = finish(start("-c", WINDOWS, program, *given))
    assert code == 1 and not out
    assert (
        err
        == "this program runs on Linux and macOS; on Windows use it in WSL, or in Docker as docs/docker.md describes\n"
    )
    assert not (tmp_path / "log.jsonl").exists()


# --- public continuous integration ------------------------------------------------------------------------------------


def test_the_workflow_runs_the_commands_of_the_readme_and_the_linters() -> None:
    """The same commands that `.ci/run` takes out of README.md, the linters of docs/development.md, both Pythons."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["checks"]
    done = [step["run"] for step in job["steps"] if "run" in step]
    readme, development = (ROOT / "README.md").read_text(), (ROOT / "docs" / "development.md").read_text()
    asked = re.findall(r"readme '(.*?)'", (ROOT / ".ci" / "run").read_text())
    commands = [line for line in readme.splitlines() if line.startswith(tuple(asked))]
    assert len(asked) == 2 and done[:2] == commands
    linters = re.findall(r"^(?:ruff|mypy|hadolint).*$", development, re.MULTILINE)
    assert done[2:] == [" && ".join(linters)]
    pythons = {case["python"] for case in job["strategy"]["matrix"]["include"]}
    assert pythons == set(re.findall(r"3\.\d+", re.search("Python .* on Linux or macOS", readme)[0]))  # type: ignore[index]
