"""Weights that are drawn for a test."""

from torch import nn


def draw_weights(module: nn.Module, gain: float) -> None:
    """Draw all weights but the dummies such that signals neither die nor explode."""
    for name, value in module.named_parameters():
        if not name.endswith("dummies"):
            inputs = value[0].numel() if value.dim() > 1 else 4
            nn.init.normal_(value, std=gain * (2 / inputs) ** 0.5)
