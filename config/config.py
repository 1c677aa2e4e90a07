"""The whole configuration: sections that fit together."""

from typing import Self

from pydantic import model_validator

from config.constraints import contradictions
from config.schema import DataConfig, ModelConfig, Section, TestDataConfig, TestSpec, TrainDataConfig, TrainSpec

_STEPS_PER_EPOCH = 1000


def cell_name(max_batch_cls: int, timesteps: int) -> str:
    """That of a cell of the test grid, wherever it is drawn or stored."""
    return f"C={max_batch_cls} M={timesteps}"


class Config(Section):
    """Everything that defines a run.  Its parts fit together: an instance that contradicts itself cannot be made."""

    model: ModelConfig
    train_data: TrainDataConfig
    val_data: DataConfig
    test_data: TestDataConfig
    train_spec: TrainSpec
    test_spec: TestSpec

    @property
    def steps_per_epoch(self) -> int:
        return self.train_data.iter or _STEPS_PER_EPOCH

    @property
    def val_every(self) -> int:
        """Steps between two validations."""
        return self.train_spec.val_every or self.steps_per_epoch

    @property
    def save_every(self) -> int:
        """Steps between two saved states."""
        return self.train_spec.save_every or self.steps_per_epoch

    @property
    def test_checkpoint(self) -> str:
        """The checkpoint that the test reads."""
        return self.test_spec.checkpoint_path or self.train_spec.checkpoint_path

    @property
    def test_cells(self) -> list[tuple[int, int]]:
        """(max_batch_cls, timesteps) of every cell of the test grid."""
        params = self.test_spec.test_params
        return [(c, m) for c in params.max_batch_cls for m in params.timesteps]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := [f"{path}: {text}" for path, text in contradictions(dict(self))]:
            raise ValueError("\n".join(problems))
        return self
