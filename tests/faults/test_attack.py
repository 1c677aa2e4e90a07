"""The attacks at random, for a few seconds."""

import re

import pytest
from helpers.program import finish, start


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_family_of_attacks_is_survived() -> None:
    status, out, err = finish(start("-m", "tests.attack", "--minutes", "0", "--seed", "1"), 800)
    assert re.findall(r"^(\w+) +tried +1, survived +1$", out, re.MULTILINE) == [
        "kills", "signals", "streams", "disks", "files",
    ], out + err  # fmt: skip
    assert status == 0
