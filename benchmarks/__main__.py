"""``python -m benchmarks``: the command line. ``benchmarks/README.md`` says what is measured, and how."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
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


def _shapes(text: str) -> Any:
    from .cases import parse_shapes

    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    import pyrnn

    from .cases import GATES, MODES, SETS
    from .contenders import FORCED, PEERS

    forced = environment.forced_level()
    threads = pyrnn.get_num_threads()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time pyrnn beside its peers, in turns, in one run.",
        epilog="benchmarks/README.md says what is measured, and how.",
    )
    parser.add_argument("--ops", type=_words(list(GATES)), default=list(GATES), metavar="OPS", help="rnn,lstm,gru")
    parser.add_argument(
        "--mode", type=_words(list(MODES)), default=["forward", "train"], help=f"{', '.join(MODES)}; (forward,train)"
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--shapes", type=_shapes, help=f"BxTxH, BxTxIxH or {', '.join(SETS)}, comma-separated (each mode has its own)"
    )
    given.add_argument("--grid", dest="shapes", action="store_const", const=SETS["grid"], help="--shapes grid")
    given.add_argument("--random", type=_count, metavar="N", help="draw N shapes, log-uniformly")
    parser.add_argument("--seed", type=int, default=0, help="of --random (0)")
    parser.add_argument(
        "--peers",
        type=_words([*PEERS, "none"]),
        default=[peer for peer in PEERS if not forced or peer in FORCED],
        help=f"{', '.join(PEERS)} or none (all; with PYRNN_ISA those that follow it: {', '.join(FORCED)})",
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

    from .cases import MODES, TIMED, draw_shapes
    from .run import Settings, plan, run

    parser = _parser()
    arguments = parser.parse_args(argv)
    if "none" in arguments.peers and len(arguments.peers) > 1:
        parser.error(f"argument --peers: none stands alone, got {','.join(arguments.peers)}")
    if arguments.plot and not find_spec("matplotlib"):
        parser.error("argument --plot: matplotlib is not installed; pip install 'pyrnn[bench]'")
    if arguments.plot and not any(mode in TIMED for word in arguments.mode for mode in MODES[word]):
        parser.error(f"argument --plot: there is nothing to draw of {', '.join(arguments.mode)}")
    if "end-to-end" in arguments.mode and arguments.dtype != "float32":
        parser.error(f"argument --dtype: end-to-end is float32, got {arguments.dtype}")
    settings = Settings(
        ops=arguments.ops,
        modes=arguments.mode,
        shapes=draw_shapes(arguments.random, arguments.seed) if arguments.random else arguments.shapes,
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
