"""The command line: ``pyrnn check BACKEND`` holds a backend to its promises, ``pyrnn config`` prints what runs here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ._version import __version__
from .config import show_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 where a check failed, or 2 where it could not be run."""
    parser = argparse.ArgumentParser(prog="pyrnn", description="Sequence models on arrays.")
    parser.add_argument("--version", action="version", version=f"pyrnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("config", help="print version, instruction set, threads and backends")
    check = commands.add_parser(
        "check",
        help="run the property kit on a backend",
        description="Hold a backend to what its ops must do and what it claims. Exit status 0: it does.",
    )
    check.add_argument("backend", help="a name that `pyrnn config` lists")
    check.add_argument("--ops", help="comma-separated, as lstm,gru (default: all that it has)")
    check.add_argument("--properties", help="comma-separated (default: all)")
    check.add_argument(
        "--max-examples", type=int, default=100, metavar="N", help="calls drawn a property (default: 100)"
    )
    check.add_argument("--seed", type=int, default=0, help="the same one draws the same calls (default: 0)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    arguments = parser.parse_args(argv)
    if arguments.command == "config":
        show_config()
        return 0
    return _check(arguments)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def _check(arguments: argparse.Namespace) -> int:
    try:
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():  # before minutes of checks
            raise ValueError(f"--json: there is no folder {arguments.json.parent}")
        from .testing import check_backend

        report = check_backend(
            arguments.backend,
            _words(arguments.ops),
            properties=_words(arguments.properties),
            max_examples=arguments.max_examples,
            seed=arguments.seed,
        )
    except (ImportError, ValueError) as error:  # Hypothesis or the backend is missing, or a word is not known
        print(f"pyrnn check: {error}", file=sys.stderr)
        return 2
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(report.to_json() + "\n")
    return 0 if report.ok else 1
