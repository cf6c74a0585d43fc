"""Models and training runs in files, and weights from and to PyTorch.

- `models`: `save`, `load`, `read_metadata`.
- `checkpoints`: `save_checkpoint`, `load_checkpoint`.
- `torch_weights`: `load_torch_state_dict`, `to_torch_state_dict`.

Below them: `container`, the file; `architecture`, which models a file may describe; `tree`, nested values as
JSON and arrays; `strict_json`. A file that is refused gives a `FileError`.
"""

from __future__ import annotations

from .checkpoints import load_checkpoint, save_checkpoint
from .container import FileError
from .models import load, read_metadata, save
from .torch_weights import load_torch_state_dict, to_torch_state_dict

__all__ = [
    "FileError",
    "load",
    "load_checkpoint",
    "load_torch_state_dict",
    "read_metadata",
    "save",
    "save_checkpoint",
    "to_torch_state_dict",
]
