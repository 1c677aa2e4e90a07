"""A small configuration: glyphs, four channels, ten steps."""

import os
from pathlib import Path

import config as configuration
from config import Config

_CONFIG = """\
model: {{kind: vma, autoencoder: omniglot, likelihood: bernoulli, latent_dim: 4, matching_dim: 4, importance_num: 2,
  channels: [4, 4], hidden: [8, 8]}}
train_data: {{kind: glyphs, batch_size: 8, timesteps: 4, exact: true, max_img_per_class: 2, targets_per_memory: 4,
  held_out_classes: 3, iter: 4, resize: 20, classes: 8}}
val_data: {{kind: glyphs, batch_size: 8, timesteps: 4, exact: true, max_img_per_class: 2, resize: 20, classes: 8}}
test_data: {{kind: glyphs, batch_size: 16, resize: 20, classes: 8}}
train_spec: {{checkpoint_path: "{folder}/vma.pt", log_file: "{folder}/log.jsonl", gpus: [], steps: 10, lr: 1e-2,
  val_targets: 16, log_every: 1}}
test_spec: {{output_file: "{folder}/table.csv", gpus: [], importance_num: 60, targets: 12,
  test_params: {{max_batch_cls: [1, 2], timesteps: [1, 3]}}}}
"""


def small_yaml(folder: Path) -> str:
    """The small configuration; all that is written lies in `folder`."""
    return _CONFIG.format(folder=folder)


def small_config(folder: Path, *overrides: str) -> Config:
    return configuration.parse(small_yaml(folder), "small.yaml", overrides)


def arguments(folder: Path, *more: str) -> list[str]:
    """The command line that runs the small configuration in `folder`; `more` holds flags and `key=value` overrides."""
    path, text = folder / "config" / "small.yaml", small_yaml(folder)
    if not path.exists() or path.read_text() != text:  # once: later the disk may be full
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")  # another process may be reading it
        written.write_text(text)
        written.replace(path)
    flags = [part for one in more for part in ([one] if one.startswith("-") or "=" not in one else ["--set", one])]
    return ["--config", str(path), *flags]
