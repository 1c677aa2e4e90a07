"""The whole configuration: sections that fit together."""

import contextlib
from typing import Any, Self

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator

from config.constraints import contradictions
from config.schema import (
    CORRECTED,
    DataConfig,
    ModelConfig,
    Section,
    TestDataConfig,
    TestSpec,
    TrainDataConfig,
    TrainSpec,
    key,
    mistake,
    mistakes_of,
)

_STEPS_PER_EPOCH = 1000


class Config(Section):
    """Everything that defines a run.  Its parts fit together: an instance that contradicts itself cannot be made."""

    model: ModelConfig = key(..., "the networks")
    train_data: TrainDataConfig = key(..., "the images of training, and the composition of its memories")
    val_data: DataConfig = key(..., "the validation, on the held-out classes of train_data")
    test_data: TestDataConfig = key(..., "the images of the test")
    train_spec: TrainSpec = key(..., "the training")
    test_spec: TestSpec = key(..., "the test")

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

    @model_validator(mode="wrap")
    @classmethod
    def _fits_together(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """All mistakes at once: in single sections, and between those that are right by themselves."""
        try:
            config, errors = handler(values), []
            sections = dict(config)
        except ValidationError as error:
            config, errors, sections = None, mistakes_of(error), {}
            for name in cls.model_fields.keys() & values:
                with contextlib.suppress(ValidationError):
                    schema: Any = cls.model_fields[name].annotation
                    sections[name] = schema.model_validate(values[name], context=CORRECTED)
        for path, text in contradictions(sections):
            errors.append(mistake((path,), "contradiction", f"{path}: {text}"))
        if config is None or errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return config
