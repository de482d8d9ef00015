"""Checkpoints: final weights as safetensors with a digest, and a resume file that a killed run goes on from to the same result."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_weights(model: nn.Module, path: Path) -> str:
    """Writes the state dict whole or not at all; returns its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}, beside)
    os.replace(beside, path)
    return digest_of(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a file written by `save_weights`."""
    return load_file(path)


def digest_of(path: Path) -> str:
    """Sixteen hex digits of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a resume file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.part")
    torch.save(dict(state), beside)
    os.replace(beside, path)


def load_resume(path: Path) -> dict[str, Any] | None:
    """The resume file's state, or None when there is none that can be read."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except (RuntimeError, OSError, EOFError, ValueError):
        return None
