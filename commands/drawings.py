"""--sample --memory: samples of a model whose memory is a folder of drawings, and --score: how likely it finds one."""

from pathlib import Path

import torch
from torch import Tensor

from commands.session import Session
from data import drawings
from data.drawings import Drawing
from data.images import resample
from models.base import Explanation
from reports import pictures
from runtime.errors import DataError, UserError
from runtime.randomness import StepNoise

_SAMPLES = 16


def picture(folder: Path, score: Path | None, output: Path) -> Path:
    """In the folder `output`, by the name of that of the memory.  Raises UserError: there it is among the drawings."""
    path = output / f"{folder.resolve().name}.png"
    if output.resolve() == folder.resolve() or (score and path.resolve() == score.resolve()):
        raise UserError(f"{path}: the picture would be among the drawings; choose another folder by --output")
    return path


def run(session: Session, folder: Path, score: Path | None, path: Path) -> None:
    """Write one picture to `path`, and print what was scored.  Raises UserError, DataError, OSError."""
    device, spec = session.device_for(session.config.test_spec), session.config.test_spec
    model = session.load_model(device)
    if not session.processes.main:
        return
    memory, target = _read(folder, score)
    m = _as_the_model_sees(session, memory).to(device)[None]  # [1, M, H, W]
    samples, picked = model.sample(m, StepNoise(device, "memory", spec.seed), _SAMPLES)
    sheet = pictures.MemorySheet(
        f"{folder} as the model sees it, {m.shape[3]} x {m.shape[2]} pixels",
        model.slot_images(m)[0],
        [one.path.stem for one in memory],
        samples[:, 0],
        picked if picked is None else picked[:, 0],
        f"samples of p(x|M), {model.pictured}",
    )
    if target is not None:
        x = _as_the_model_sees(session, [target]).to(device)[None]  # [1, 1, H, W]
        found = model.explain(x, m, StepNoise(device, "score", spec.seed), spec.importance_num)
        sheet.target[title := f"{target.path.name}: {_said(found)}"] = x[0, 0]
        print(title)
        if found.p_a is not None:
            sheet.p_a = found.p_a[0, 0]
            by = "" if found.k is None else " by importance weights"
            print(f"p(a|x,M){by}: {_listed(memory, sheet.p_a)}")
    sheet.write(path)
    print(f"written: {path}")


def _read(folder: Path, score: Path | None) -> tuple[list[Drawing], Drawing | None]:
    """The memory, which never holds the target, and the target."""
    memory = drawings.read_folder(folder)
    target = None if score is None else drawings.read(score)
    if target is not None:
        others = [one for one in memory if one.path.resolve() != target.path.resolve()]
        if len(others) < len(memory):
            print(f"{target.path}: scored, so it is left out of the memory")
        if not others:
            raise DataError(f"{folder}: nothing is left for the memory; put more drawings there")
        memory = others
    for one in [*memory, *([target] if target else [])]:
        if one.inverted:
            print(f"{one.path}: light on dark, inverted")
    return memory, target


def _as_the_model_sees(session: Session, drawn: list[Drawing]) -> Tensor:
    """float32 [N, H, W], 0 or 1, resampled as the images that the model was trained with."""
    data = session.config.train_data
    return resample(drawings.as_images(drawn), data.resize, data.resample).images.float()


def _said(found: Explanation) -> str:
    nats = -found.log_p.item()
    if found.k is None:
        return f"NLL {nats:.2f} nats (exact)"
    return f"ELBO@{found.k} {nats:.2f} nats (in expectation an upper bound on the NLL)"


def _listed(memory: list[Drawing], p_a: Tensor) -> str:
    """The slots by falling p(a|x,M), as far as two digits show it."""
    names = [one.path.name for one in memory] + [f"dummy {d + 1}" for d in range(len(p_a) - len(memory))]
    order = torch.argsort(p_a, descending=True).tolist()
    return ", ".join(f"{names[a]} {p_a[a]:.2f}" for a in order if p_a[a] >= 0.005)
