"""Strict YAML -> a frozen, typed configuration.  Imports no torch, so a mistake in a file is answered at once."""

from config.schema import *  # noqa: F403
