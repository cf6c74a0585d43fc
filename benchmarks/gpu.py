"""The cupy backend on a GPU: the property kit first, then times beside PyTorch's, which are cuDNN's and cuBLAS's.

::

    python -m benchmarks.gpu --budget 540 --out benchmarks/results

Every time is of work on the GPU between two events, of as many calls as fill a sample, in turns, on one stream.
Contenders meet only in the same precision of products: float32, TF32, and 16 bits (PyTorch's arrays are then bfloat16
or float16; pyrnn's stay float32 and its products are of bfloat16). With ``graph`` both sides replay a CUDA graph of the
call, which takes Python out of it.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from .measure import geometric_mean, ratio

ROUNDS = 5
SAMPLE = 10.0  # milliseconds
KIT_PROCESSES = 8  # at most, on one GPU
CELLS = ("lstm", "gru", "rnn")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
PRECISIONS = ("float32", "tf32", "16 bits")
COMPUTE = {"float32": None, "tf32": "tf32", "16 bits": "bfloat16"}
ERRORS = {"float32": 1e-4, "tf32": 2e-2, "16 bits": 1e-1}  # of outputs of size 1, against PyTorch in float32


class Case(NamedTuple):
    """What is timed: a family's op in a mode, of a shape, in a precision."""

    op: str
    mode: str
    shape: tuple[int, ...]
    precision: str

    def __str__(self) -> str:
        return f"{self.op} {self.mode} {'×'.join(map(str, self.shape))} {self.precision}"


def cases() -> Iterator[Case]:
    """Go through all cases, those first that say most, so that what a budget cuts off is the rest."""
    recurrent = [
        Case(op, mode, shape, precision)
        for op in CELLS
        for mode in ("forward", "train")
        for shape in itertools.product((1, 16, 64, 256), (128, 1024), (128, 256, 512, 768, 1024, 2048))
        for precision in PRECISIONS
    ]
    others = [
        *(Case("lstm", "ragged", (64, 512, 512), precision) for precision in PRECISIONS),
        *(Case("gru", "ragged", (64, 512, 512), precision) for precision in PRECISIONS),
        *(
            Case(op, mode, (8, 8, length, 64), precision)
            for op in ("attention", "causal attention")
            for mode in ("forward", "train")
            for length in (512, 2048, 8192)
            for precision in PRECISIONS
        ),
        *(
            Case("conv", mode, (16, 1024, channels, taps), precision)
            for mode in ("forward", "train")
            for channels, taps in ((64, 3), (256, 2), (512, 7))
            for precision in PRECISIONS
        ),
    ]
    first = [case for case in recurrent if case.shape == (16, 1024, 768)]
    rest = [case for case in recurrent if case not in first]
    random.Random(0).shuffle(rest)
    yield from (*first, *others, *rest)


# --- the contenders ---------------------------------------------------------------------------------------------------


def contenders(case: Case, rng: Any) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    """Return the calls of a case by name, and a function that gives the largest difference between their outputs."""
    if case.op in CELLS:
        return _recurrent(case, rng)
    if case.op == "conv":
        return _conv(case, rng)
    return _attention(case, rng)


def _torch_types(precision: str) -> dict[str, Any]:
    import torch

    if precision == "16 bits":
        return {"torch bfloat16": torch.bfloat16, "torch float16": torch.float16}
    return {f"torch {precision}": torch.float32}


def _ours(
    op: Callable[..., Any], arrays: list[Any], train: bool, compute: str | None, **options: Any
) -> Callable[[], Any]:
    import pyrnn

    def forward() -> Any:
        with pyrnn.use_backend("cupy", compute=compute):
            return op(*arrays, **options)

    first = forward()
    outputs = first if isinstance(first, tuple) else (first,)
    ones = [None] * len(outputs)
    ones[0] = outputs[0] * 0 + 1

    def training() -> Any:
        with pyrnn.use_backend("cupy", compute=compute):
            y, pullback = pyrnn.vjp(op, *arrays, **options)
            pullback(ones)
        return y

    return training if train else forward


def _theirs(forward: Callable[[], Any], leaves: list[Any], train: bool) -> Callable[[], Any]:
    import torch

    if not train:

        def inference() -> Any:
            with torch.no_grad():
                return forward()

        return inference

    def training() -> Any:
        y = forward()
        torch.autograd.grad(y, leaves, torch.ones_like(y))
        return y

    return training


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _difference(case: Case, calls: dict[str, Callable[[], Any]], turn: Callable[[Any], Any]) -> Callable[[], float]:
    """Compare ours with the first of theirs, on the device; ``turn`` brings theirs into our layout."""

    def difference() -> float:
        import cupy
        import torch

        own = _first(calls["pyrnn"]())
        theirs = turn(_first(next(call for name, call in calls.items() if name != "pyrnn")()))
        return float(abs(own - cupy.from_dlpack(theirs.detach().to(torch.float32).contiguous())).max())

    return difference


def _recurrent(case: Case, rng: Any) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    import cupy
    import numpy as np
    import torch

    import pyrnn

    batch, time_, hidden = case.shape
    gates, train = GATES[case.op], case.mode == "train"
    scale = hidden**-0.5
    x = rng.standard_normal((batch, time_, hidden), np.float32)
    w_ih, w_hh = (rng.uniform(-scale, scale, (gates * hidden, hidden)).astype(np.float32) for _ in range(2))
    b = rng.uniform(-scale, scale, gates * hidden).astype(np.float32)
    b_hn = rng.uniform(-scale, scale, hidden).astype(np.float32)
    arrays = [cupy.asarray(a) for a in (x, w_ih, w_hh, b, *([b_hn] if case.op == "gru" else []))]
    lengths = np.linspace(time_ // 10, time_, batch).astype(np.int64)[::-1].copy() if case.mode == "ragged" else None
    calls = {"pyrnn": _ours(getattr(pyrnn, case.op), arrays, train, COMPUTE[case.precision], lengths=lengths)}
    for name, kind in _torch_types(case.precision).items():
        layer = getattr(torch.nn, case.op.upper())(hidden, hidden, batch_first=True).cuda()
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.from_numpy(w_ih))
            layer.weight_hh_l0.copy_(torch.from_numpy(w_hh))
            layer.bias_ih_l0.copy_(torch.from_numpy(b))
            layer.bias_hh_l0.zero_()
            if case.op == "gru":
                layer.bias_hh_l0[2 * hidden :] = torch.from_numpy(b_hn)
        layer = layer.to(kind)
        given = torch.from_numpy(x).cuda().to(kind).requires_grad_(train)

        def forward(layer: Any = layer, given: Any = given) -> Any:
            if lengths is None:
                return layer(given)[0]
            packed = torch.nn.utils.rnn.pack_padded_sequence(given, torch.from_numpy(lengths), batch_first=True)
            return torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

        calls[name] = _theirs(forward, [given, *layer.parameters()], train)
    return calls, _difference(case, calls, lambda y: y)


def _attention(case: Case, rng: Any) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    import cupy
    import numpy as np
    import torch

    import pyrnn

    train, causal = case.mode == "train", case.op.startswith("causal")
    q, k, v = (rng.standard_normal(case.shape, np.float32) for _ in range(3))
    arrays = [cupy.asarray(a) for a in (q, k, v)]
    calls = {"pyrnn": _ours(pyrnn.attention, arrays, train, COMPUTE[case.precision], causal=causal)}
    for name, kind in _torch_types(case.precision).items():
        leaves = [torch.from_numpy(a).cuda().to(kind).requires_grad_(train) for a in (q, k, v)]

        def forward(leaves: list[Any] = leaves) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)

        calls[name] = _theirs(forward, leaves, train)
    return calls, _difference(case, calls, lambda y: y)


def _conv(case: Case, rng: Any) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    import cupy
    import numpy as np
    import torch

    import pyrnn

    batch, time_, channels, taps = case.shape
    train = case.mode == "train"
    x = rng.standard_normal((batch, time_, channels), np.float32)
    w = (rng.standard_normal((channels, channels, taps)) * (channels * taps) ** -0.5).astype(np.float32)
    b = rng.standard_normal(channels).astype(np.float32)
    arrays = [cupy.asarray(a) for a in (x, w, b)]
    calls = {"pyrnn": _ours(pyrnn.causal_conv1d, arrays, train, COMPUTE[case.precision])}
    for name, kind in _torch_types(case.precision).items():
        leaves = [torch.from_numpy(a).cuda().to(kind).requires_grad_(train) for a in (x.swapaxes(1, 2).copy(), w, b)]

        def forward(leaves: list[Any] = leaves) -> Any:
            return torch.nn.functional.conv1d(torch.nn.functional.pad(leaves[0], (taps - 1, 0)), *leaves[1:])

        calls[name] = _theirs(forward, leaves, train)
    return calls, _difference(case, calls, lambda y: y.transpose(1, 2))


# --- the property kit -------------------------------------------------------------------------------------------------


def _kit_of_op(backend: str, op: str, examples: int) -> Any:
    from pyrnn.testing import check_backend

    return check_backend(backend, ops=[op], max_examples=examples, progress=False)


def kit(backend: str, examples: int) -> Any:
    """Return the kit's report. Ops are shared out to processes, as most of the time compiles kernels, one at a time."""
    from pyrnn.testing import Report
    from pyrnn.testing.subject import BackendSubject

    ops = BackendSubject(backend).ops()
    workers = min(len(ops), os.cpu_count() or 1, KIT_PROCESSES)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_kit_of_op, itertools.repeat(backend), ops, itertools.repeat(examples)))
    return Report(parts[0].subject, parts[0].seed, examples, [result for part in parts for result in part.results])


# --- measuring --------------------------------------------------------------------------------------------------------


def _milliseconds(call: Callable[[], Any], count: int) -> float:
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(begin, end) / count


def _graphed(call: Callable[[], Any], stream: Any, theirs: bool) -> Callable[[], Any]:
    """Return a function that replays a CUDA graph of a call."""
    import cupy

    for _ in range(2):  # so that nothing is left to be compiled or allocated
        call()
    stream.synchronize()
    if theirs:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.ExternalStream(stream.ptr)):
            call()
        return graph.replay
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            outputs = call()
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                stream.end_capture()
            raise
        captured = stream.end_capture()

    def replay(pool: Any = pool) -> Any:  # kept: what the graph writes to would else be others'
        captured.launch(stream)
        return outputs

    return replay


def measure(case: Case, stream: Any, rng: Any) -> dict[str, Any]:
    """Return a case's record: milliseconds and ratios by contender, as called and from a graph."""
    calls, difference = contenders(case, rng)
    for call in calls.values():
        call()
    record: dict[str, Any] = {**case._asdict(), "shape": list(case.shape), "error": difference()}
    record["wrong"] = not record["error"] <= ERRORS[case.precision]
    ways = {"as called": calls}
    if case.mode == "forward":
        ways["graph"] = {}
        for name, call in calls.items():
            try:
                ways["graph"][name] = _graphed(call, stream, name != "pyrnn")
            except Exception as error:
                record.setdefault("no graph", {})[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    for way, chosen in ways.items():
        if "pyrnn" not in chosen:
            continue
        counts = {name: max(1, round(SAMPLE / max(1e-3, _milliseconds(call, 1)))) for name, call in chosen.items()}
        samples: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(ROUNDS):
            for name, call in chosen.items():
                samples[name].append(_milliseconds(call, counts[name]))
        record[way] = {
            name: {
                "ms": statistics.median(times),
                **({} if name == "pyrnn" else {"ratio": ratio(times, samples["pyrnn"]).median}),
            }
            for name, times in samples.items()
        }
    return record


def round_trips() -> dict[str, float]:
    """Return the microseconds of a round of flags, by the blocks that take part: the floor of a persistent step."""
    import cupy
    import numpy as np
    from pyrnn_cupy.modules import kernel

    found = {}
    processors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    run = kernel("rounds.cu", "tell_and_wait", cooperative=True)
    for blocks in (1, 2, 16, 64, processors):
        rounds = 2000

        def call(blocks: int = blocks, rounds: int = rounds) -> None:
            run((blocks,), (256,), (cupy.zeros(blocks, np.uint32), np.int32(rounds)))

        call()
        found[str(blocks)] = min(_milliseconds(call, 1) for _ in range(3)) * 1e3 / rounds
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Return the tables: each case, then the geometric means by op, mode and precision, with the worst case."""
    lines = [
        "| case | precision | way | pyrnn ms | µs a step | peers: time ÷ pyrnn's | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, ...], list[tuple[float, str]]] = {}
    for record in records:
        name = f"{record['op']} {record['mode']} {'×'.join(map(str, record['shape']))}"
        if record.get("failed"):
            lines.append(f"| {name} | {record['precision']} | – | failed: {record['failed']} | | | |")
            continue
        for way in ("as called", "graph"):
            if way not in record:
                continue
            own = record[way]["pyrnn"]["ms"]
            peers = {peer: times["ratio"] for peer, times in record[way].items() if peer != "pyrnn"}
            step = f"{1e3 * own / record['shape'][1]:.2f}" if record["op"] in CELLS else ""
            said = ", ".join(f"{value:.2f} ({peer})" for peer, value in peers.items())
            wrong = " **wrong**" if record["wrong"] else ""
            lines.append(
                f"| {name} | {record['precision']} | {way} | {own:.3f} | {step} | {said} "
                f"| {record['error']:.1e}{wrong} |"
            )
            if peers:
                groups.setdefault((record["op"], record["mode"], record["precision"], way), []).append(
                    (min(peers.values()), name)
                )
    lines += [
        "",
        "| op | mode | precision | way | cases | geometric mean, best peer ÷ pyrnn | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in groups.items():
        worst = min(found)
        mean = geometric_mean([value for value, _ in found])
        lines.append(f"| {' | '.join(key)} | {len(found)} | {mean:.2f} | {worst[0]:.2f} {worst[1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--examples", type=int, default=15, help="calls drawn for each property of the kit")
    parser.add_argument("--only", default="", help="only cases whose name has this in it, as 'gru train'")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    begin = time.perf_counter()

    import pyrnn

    try:
        pyrnn.get_backend("cupy")
    except pyrnn.BackendUnavailableError as error:
        parser.error(str(error))
    import cupy
    import numpy as np

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    gpu = properties["name"].decode()
    result: dict[str, Any] = {
        "gpu": gpu, "date": datetime.date.today().isoformat(), "pyrnn": pyrnn.__version__, "cupy": cupy.__version__,
        "driver": cupy.cuda.runtime.driverGetVersion(), "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }  # fmt: skip
    report = kit("cupy", options.examples)
    print(report)
    result["kit"] = {"ok": report.ok, "report": str(report), "seconds": time.perf_counter() - begin}
    result["round trips"] = round_trips()
    print("microseconds a round of flags, by blocks:", result["round trips"])
    records: list[dict[str, Any]] = []
    left_out: list[str] = []
    try:
        import torch

        result["torch"], result["cudnn"] = torch.__version__, torch.backends.cudnn.version()
    except ModuleNotFoundError:
        print("PyTorch is not installed: no times beside it")
    else:
        stream, rng = cupy.cuda.Stream(non_blocking=True), np.random.default_rng(0)
        with stream, torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            for case in cases():
                if options.only not in str(case):
                    continue
                if time.perf_counter() - begin > options.budget:
                    left_out.append(str(case))
                    continue
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
                try:
                    records.append(measure(case, stream, rng))
                except Exception as error:
                    failed = f"{type(error).__name__}: {error}".splitlines()[0]
                    records.append({**case._asdict(), "shape": list(case.shape), "failed": failed})
                print(".", end="", file=sys.stderr, flush=True)
    result["records"], result["left out"] = records, left_out
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{gpu.replace(' ', '-').lower()}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    text = f"{gpu}, {result['date']}, PyTorch {result.get('torch', 'absent')}\n\n{table(records)}\n"
    path.with_suffix(".md").write_text(text)
    print("\n" + text)
    if left_out:
        print(f"{len(left_out)} cases were left out, as the time was up")
    return 0 if report.ok and not any(record.get("wrong") or record.get("failed") for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
