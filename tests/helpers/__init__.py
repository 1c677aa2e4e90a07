"""What many tests need, one job a module."""

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]  # of the project
CPU = torch.device("cpu")
