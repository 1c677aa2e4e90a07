"""README.md and docs/: links lead somewhere, and the commands are ones that the program takes."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT

import config as configuration
import run

PAGES = [ROOT / "README.md", ROOT / "pretrained" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(page, command) for every `python ...` in a block of code; continued lines are joined."""
    lines = [
        (path.name, line)
        for path in PAGES
        for block in _BLOCK.findall(path.read_text())
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [
        (page, re.search(r"\b(?:python|torchrun) (?:.*? )?((?:-m \w|\w\S*\.py\b).*)", line)) for page, line in lines
    ]
    return [(page, match[1]) for page, match in found if match]


COMMANDS = commands()


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert "@@" not in page.read_text()  # a gap to be filled
    for link in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):  # https:
            continue
        if workflow := re.match(r"\.\./\.\./actions/(workflows/[^/]+)", link):  # pages that GitHub makes
            assert (ROOT / ".github" / workflow[1]).exists()
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_commands() -> None:
    assert {"--train", "--test", "--sample"} <= {word for _, command in COMMANDS for word in command.split()}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_name_what_is_there(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts and modules exist; those of run.py have only flags, configurations and keys that there are."""
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command, comments=True)
    if program == "-m":
        module = words[0].split(".")
        assert module[0] not in ("studies", "benchmarks") or Path(*module).with_suffix(".py").exists()
    elif program == "run.py":
        words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)]
        args = run.parser().parse_args(words)
        if args.config:
            configuration.load(args.config, args.overrides)
        else:
            assert args.checkpoint.parts[0] == "runs" or args.checkpoint.exists()
    else:
        assert Path(program).exists()


def test_every_failure_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\| [^*].*\|$", (ROOT / "docs" / "failures.md").read_text(), re.MULTILINE)[1:]
    tests = {
        name
        for file in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert rows and not [row for row in rows if not (named := re.findall(r"`(test_\w+)`", row)) or set(named) - tests]
