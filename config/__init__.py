"""Strict YAML -> a frozen, typed configuration.  Imports no torch, so a mistake in a file is answered at once."""

from config.comparing import HELD_OUT_KEYS, INITIAL_KEYS, MAY_CHANGE_ON_RESUME, MODEL_KEYS, differences
from config.config import Config, cell_name
from config.reading import ConfigError, load, parse
from config.schema import DataConfig, MixtureConfig, ModelConfig, SchedulerSpec, TestSpec, TrainDataConfig, TrainSpec
from config.writing import dump, overrides

__all__ = [
    "HELD_OUT_KEYS", "INITIAL_KEYS", "MAY_CHANGE_ON_RESUME", "MODEL_KEYS", "Config", "ConfigError", "DataConfig",
    "MixtureConfig", "ModelConfig", "SchedulerSpec", "TestSpec", "TrainDataConfig", "TrainSpec", "cell_name",
    "differences", "dump", "load", "overrides", "parse",
]  # fmt: skip
