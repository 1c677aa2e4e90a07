"""Which devices a run uses."""

import torch

from runtime.errors import UserError


def devices_of(gpus: tuple[int, ...] | str, argument: str | None = None) -> list[torch.device]:
    """The devices that `--device` names or else the key `gpus`.  Raises UserError for one that is not there."""
    there = torch.cuda.device_count()
    wanted = argument or gpus
    if wanted in ("cpu", ()) or (wanted == "auto" and not there):
        return [torch.device("cpu")]
    if wanted == "auto":
        numbers = tuple(range(there))
    elif isinstance(wanted, str):  # cuda, cuda:N
        numbers = (int(wanted.partition(":")[2] or 0),)
    else:
        numbers = wanted
    if missing := [number for number in numbers if number >= there]:
        shown = f"device cuda:{missing[0]}" if argument is None else f"device {argument}"
        raise UserError(f"{shown}: this machine shows {there} GPUs to PyTorch; use --device cpu or gpus: []")
    return [torch.device("cuda", number) for number in numbers]
