"""Docker, systems without POSIX, public continuous integration: what of them can be checked without them."""

import re
import sys

import pytest
from helpers import ROOT

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
    assert set(named) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)) == {"BASE", "PIP_EXTRA_INDEX_URL"}
    instructions = re.findall(r"^(ARG \w+|FROM \S+|RUN own)", DOCKERFILE, re.MULTILINE)
    assert instructions == ["ARG BASE", "FROM ${BASE}", "ARG PIP_EXTRA_INDEX_URL", "RUN own"]
