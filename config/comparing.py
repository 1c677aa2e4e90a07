"""What differs between two configurations, and which differences matter to what."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from config.config import Config
from config.strict_yaml import one_line

# In all of these a key stands for everything below it.

# What a resumed run may change without becoming another run.
MAY_CHANGE_ON_RESUME = (
    "train_spec.steps", "train_spec.checkpoint_path", "train_spec.log_file", "train_spec.gpus", "train_spec.val_every",
    "train_spec.log_every", "train_spec.save_every", "train_spec.rendezvous", "train_spec.gradient_samples",
    "train_spec.deterministic", "train_data.root", "train_data.iter", "val_data.root", "test_data", "test_spec",
)  # fmt: skip

# What must agree between a checkpoint and the config that begins with its weights.
INITIAL_KEYS = (
    "model.kind", "model.read", "model.autoencoder", "model.likelihood", "model.latent_dim", "model.matching_dim",
    "model.num_dummies", "model.address_prior", "model.address_scale", "model.head_hidden",
    "model.causal.trunk_channels", "model.causal.fusion_channels", "test_data.resize",
)  # fmt: skip

# What must agree between a checkpoint and the config it is tested with; classes of one split's test are among those of
# the other's training.
MODEL_KEYS = (
    *INITIAL_KEYS, "model.causal", "model.max_shift", "model.scales", "model.neighbours",
    "test_data.resample", "test_data.split",
)  # fmt: skip

# What chooses the classes that are trained on and held out.
HELD_OUT_KEYS = (
    "train_data.kind", "train_data.split", "train_data.classes", "train_data.held_out_classes", "train_spec.seed",
)  # fmt: skip


def differences(
    a: Config,
    b: Config,
    ignore: Collection[str] = (),
    only: Collection[str] | None = None,
    names: tuple[str, str] = ("in the checkpoint", "now"),
) -> list[str]:
    """What differs between the config of a checkpoint, `a`, and the present one, `b`, a line for each key.

    `ignore` and `only` hold dotted keys; each stands for everything below it.  `names` are those of the two.
    """
    then, now = dict(_leaves(a.model_dump())), dict(_leaves(b.model_dump()))
    return [
        f"{path}: {then.get(path, 'not set')} {names[0]}, {now.get(path, 'not set')} {names[1]}"
        for path in dict.fromkeys((*then, *now))
        if then.get(path) != now.get(path) and not below(path, ignore) and (only is None or below(path, only))
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, one_line(value)


def below(path: str, keys: Collection[str]) -> bool:
    """Whether `path` is one of the dotted keys, or stands below one."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)
