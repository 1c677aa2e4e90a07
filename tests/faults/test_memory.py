"""Memory that is too small: the keys to lower, exit 1, no traceback."""

from pathlib import Path

import pytest
import torch
from helpers.config import arguments
from helpers.program import finish, main, start

from data.episodes import EpisodeLoader, Episodes

_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import commands, run

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 1_500_000_000  # enough for all but the one tensor that is far too large
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run.standalone(run.main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    "large", ["train_data.batch_size=800000", pytest.param("model.importance_num=20000", marks=pytest.mark.slow)]
)
def test_too_large_a_step_for_the_memory_names_the_keys_to_lower(tmp_path: Path, large: str) -> None:
    status, _, err = finish(start("-c", _LITTLE_MEMORY, *arguments(tmp_path, "--train", large)))
    assert status == 1
    assert "train_data.batch_size" in err and "MemoryError" in err
    assert "Traceback" not in err


def test_too_small_a_gpu_names_the_keys_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As PyTorch says it; no GPU is needed here."""

    def at(loader: EpisodeLoader, step: int) -> Episodes:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(EpisodeLoader, "at", at)
    assert main(tmp_path, "--train") == 1
    err = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in err and "lower train_data.batch_size" in err
    assert "Traceback" not in err and len(err.strip().splitlines()[-1]) < 300
