"""What is run: a case is an op, a mode and a shape; each family names, parses, draws and counts its own.

A family's module has

- ``OPS``, ``MODES`` (what ``--mode`` takes, and the modes that a word stands for), ``TIMED`` of the modes, ``PEERS``,
  ``SETS`` of shapes by name, ``FORM`` and ``COLUMN`` (how a shape is written, and what heads its column), ``BESIDE``;
- ``parse_shapes``, ``draw_shapes``, ``plan`` (the cases of a mode), ``draw_data`` (what a case is run on);
- ``Case``, with ``family``, ``op``, ``mode``, ``dtype``, ``shape``, ``sizes``, ``trains``, ``flops``, ``bytes``, and
  what the modes of ``BESIDE`` and of memory need.
"""

from __future__ import annotations

from types import ModuleType

from . import attention, conv, models, recurrent

FAMILIES: dict[str, ModuleType] = {"recurrent": recurrent, "attention": attention, "conv": conv, "models": models}
