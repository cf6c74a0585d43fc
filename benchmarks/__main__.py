"""``python -m benchmarks``: the command line. ``benchmarks/README.md`` says what is measured, and how."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from . import environment


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what parses comma-separated words of these."""

    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected {', '.join(known)}, comma-separated, got {unknown[0]!r}")
        return list(dict.fromkeys(words))

    return parse


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def _writable(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():  # said before the hours, not after
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _shapes(family: ModuleType) -> Callable[[str], Any]:
    """Return what parses a family's shapes."""

    def parse(text: str) -> Any:
        try:
            return family.parse_shapes(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _family(argv: Sequence[str] | None) -> str:
    """Return the family, which says what all other arguments may be."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--family", default="recurrent")
    return str(first.parse_known_args(argv)[0].family)


def _parser(name: str) -> argparse.ArgumentParser:
    import pyrnn

    from .cases import FAMILIES
    from .contenders import FORCED

    family = FAMILIES.get(name, FAMILIES["recurrent"])  # an unknown name is refused when arguments are parsed
    forced = environment.forced_level()
    threads = pyrnn.get_num_threads()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time pyrnn beside its peers, in turns, in one run.",
        epilog="benchmarks/README.md says what is measured, and how.",
    )
    parser.add_argument(
        "--family", choices=FAMILIES, default="recurrent", help="what else can be asked for is its own; --help shows it"
    )
    ops, modes = list(family.OPS), list(family.MODES)
    usual = [mode for mode in ("forward", "train") if mode in modes] or modes
    parser.add_argument("--ops", type=_words(ops), default=ops, metavar="OPS", help=",".join(ops))
    parser.add_argument("--mode", type=_words(modes), default=usual, help=f"{', '.join(modes)}; ({','.join(usual)})")
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--shapes",
        type=_shapes(family),
        help=f"{family.FORM} or {', '.join(family.SETS)}, comma-separated (each mode has its own)",
    )
    given.add_argument("--grid", dest="shapes", action="store_const", const=family.SETS["grid"], help="--shapes grid")
    given.add_argument("--random", type=_count, metavar="N", help="draw N shapes, log-uniformly")
    parser.add_argument("--seed", type=int, default=0, help="of --random (0)")
    parser.add_argument(
        "--peers",
        type=_words([*family.PEERS, "none"]),
        default=[peer for peer in family.PEERS if not forced or peer in FORCED],
        help=f"{', '.join(family.PEERS)} or none (all; with PYRNN_ISA those that follow it: {', '.join(FORCED)})",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=_count, default=threads, help=f"of every contender ({threads})")
    parser.add_argument("--rounds", type=_count, default=15, help="samples of each contender (15)")
    parser.add_argument("--budget", type=_seconds, default=math.inf, metavar="SECONDS", help="fewer rounds if need be")
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=_writable, metavar="FILE.png", help="draw ratios and a roofline")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; return 1 where a peer's results were not pyrnn's, 130 after Ctrl-C, else 0."""
    environment.hold_peers_to_level()  # before anything imports NumPy
    import json

    from .cases import FAMILIES
    from .run import Settings, plan, run

    parser = _parser(_family(argv))
    arguments = parser.parse_args(argv)
    family = FAMILIES[arguments.family]
    if "none" in arguments.peers and len(arguments.peers) > 1:
        parser.error(f"argument --peers: none stands alone, got {','.join(arguments.peers)}")
    if arguments.plot and not find_spec("matplotlib"):
        parser.error("argument --plot: matplotlib is not installed; pip install 'pyrnn[bench]'")
    if arguments.plot and not any(mode in family.TIMED for word in arguments.mode for mode in family.MODES[word]):
        parser.error(f"argument --plot: there is nothing to draw of {', '.join(arguments.mode)}")
    if "end-to-end" in arguments.mode and arguments.dtype != "float32":
        parser.error(f"argument --dtype: end-to-end is float32, got {arguments.dtype}")
    settings = Settings(
        family=arguments.family,
        ops=arguments.ops,
        modes=arguments.mode,
        shapes=family.draw_shapes(arguments.random, arguments.seed) if arguments.random else arguments.shapes,
        peers=[peer for peer in arguments.peers if peer != "none"],
        dtype=arguments.dtype,
        threads=arguments.threads,
        rounds=arguments.rounds,
        budget=arguments.budget,
    )
    cases, notes = plan(settings)
    if not cases:
        parser.error(f"argument --shapes: none is left for this mode ({'; '.join(notes)})")
    record = run(settings, cases, notes)
    document = record.to_json()
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if arguments.plot and record.cells:
        from .plot import draw

        draw(document, arguments.plot)
    if record.interrupted:
        return 130
    return 1 if any(cell.wrong for cell in record.cells) else 0


if __name__ == "__main__":
    raise SystemExit(main())
