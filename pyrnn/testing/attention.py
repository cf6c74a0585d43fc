"""Properties of the attention family: who sees what, shared heads, what is broadcast, chunks of queries, dropout."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import assume

from ..backend import KEY_SPLIT
from ..ops.declaration import Op
from ..ops.shapes import is_broadcast
from ..reference.attention import kept, sum_to
from .bounds import UNIT
from .call import Call
from .general import as_reference
from .properties import all_within, arguments, expected, expected_gradients, has_option, prop, same, within
from .subject import Subject


def attends(op: Op) -> bool:
    return any("M" in shape.split() for shape in op.arrays.values())


def broadcasting(op: Op) -> bool:
    return any(is_broadcast(shape) for shape in (*op.arrays.values(), *(o.shape for o in op.options.values())))


def shares_heads(op: Op) -> bool:
    return any("Hkv" in shape.split() for shape in op.arrays.values())


positioned = has_option("positions")
drops = has_option("probability")


def starts(call: Call) -> np.ndarray:
    """Return the position of each row's first query."""
    given = call.options.get("q_start")
    return np.broadcast_to(call.sizes["M"] - call.sizes["N"] if given is None else given, call.sizes["B"])


def seen_in(call: Call) -> np.ndarray:
    """Return booleans (B, Hq, N, M), or (B, N, M) without heads: True where a query sees a key."""
    sizes, options = call.sizes, call.options
    shape = tuple(sizes[symbol] for symbol in ("B", "Hq", "N", "M") if symbol in sizes)
    rows = (slice(None), *[None] * (len(shape) - 1))  # of (B,): broadcast to all
    query, key = np.arange(sizes["N"])[:, None], np.arange(sizes["M"])
    seen = np.ones(shape, bool)
    left, right = options.get("window") or (None, None)
    if options.get("causal"):
        right = 0
    if left is not None:
        seen &= key >= starts(call)[rows] + query - left
    if right is not None:
        seen &= key <= starts(call)[rows] + query + right
    for name, index in (("lengths", key), ("q_lengths", query)):
        if options.get(name) is not None:
            seen &= index < options[name][rows]
    return seen & options["mask"] if options.get("mask") is not None else seen


def has_part(call: Call, name: str, pairs: np.ndarray) -> np.ndarray | None:
    """Return booleans, to broadcast: the elements of an array or output that some of these pairs ask for.

    None for a weight, which all pairs share.
    """
    declared, sizes = call.declared, call.sizes
    axes = [symbol for symbol in ("B", "Hq", "N", "M") if symbol in sizes]
    if is_broadcast(declared.arrays.get(name, "")):
        shape = (1,) * (len(axes) - len(call.shape(name))) + call.shape(name)
        over = tuple(axis for axis, size in enumerate(shape) if size == 1)
        return np.asarray(pairs.any(axis=over, keepdims=True)).reshape(call.shape(name))
    symbols = call.symbols(name).split()
    if symbols[0] != "B":
        return None
    if "Hkv" in symbols:
        axes[1] = "Hkv"
        group = sizes["Hq"] // max(1, sizes["Hkv"])
        pairs = np.asarray(pairs.reshape(len(pairs), sizes["Hkv"], group, *pairs.shape[2:]).any(axis=2))
    found = np.asarray(pairs.any(axis=tuple(axis for axis, symbol in enumerate(axes) if symbol not in symbols)))
    return found if set(symbols) <= set(axes) else found[..., None]


SEEN = {"regimes": ("tiny", "small", "long", "tall")}


@prop("unseen", applies=attends, backward=True, draws=SEEN)
def unseen(subject: Subject, call: Call) -> None:
    """Keys that no query sees and queries that see none reach nothing, be they NaN; what they get themselves is 0."""
    pairs = seen_in(call)
    assume(not pairs.all())
    want = expected(call)
    cotangents = call.cotangents()
    bounds = expected_gradients(call, want, cotangents)
    fill = call.rng(11).choice([np.nan, np.inf, -np.inf])

    def spoilt(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = dict(arrays)
        for name, array in arrays.items():
            part = has_part(call, name, pairs)
            if part is not None:
                found[name] = np.where(part, array, fill).astype(call.dtype)
        return found

    arrays = {name: subject.on_device(array) for name, array in spoilt(call.arrays).items()}
    inferred = subject.forward(call, arrays)
    outputs, pullback = subject.vjp(call, arrays)
    grads = pullback(spoilt(cotangents))
    what = f"with {fill} in what is not seen, "
    all_within(inferred, want.outputs, call.dtype, what)
    all_within(outputs, want.outputs, call.dtype, f"{what}for training, ")
    all_within(grads, bounds, call.dtype, f"{what}gradient of ")
    labelled = {**{f"gradient of {n}": (n, g) for n, g in grads.items()}, **{n: (n, o) for n, o in inferred.items()}}
    for label, (name, result) in labelled.items():
        part = has_part(call, name, pairs)
        if result is not None and part is not None and np.where(part, 0, result).any():
            raise AssertionError(f"{label}: expected zeros where nothing is seen")


@prop("leak", applies=attends, backward=True, share=0.5, draws=SEEN)
def leak(subject: Subject, call: Call) -> None:
    """A NaN in a key or its value reaches the queries that see it, and the gradients of those and of what they see."""
    pairs = seen_in(call)
    rng = call.rng(12)
    B, M = call.sizes["B"], call.sizes["M"]
    name = str(rng.choice([n for n in call.declared.required if "M" in call.symbols(n).split()]))
    row, key = int(rng.integers(B)), int(rng.integers(M))
    spoilt = {**call.arrays, name: call.arrays[name].copy()}
    spoilt[name][row, ..., key, :] = np.nan
    what = f"with NaN in row {row}, key {key} of {name}, "
    want = expected(call)
    as_reference(subject, call, want, spoilt, what)
    hit = np.zeros_like(pairs)
    hit[row] = pairs[row, ..., key, None] & pairs[row]  # all that the queries see that see the key
    cotangents = call.cotangents()
    with np.errstate(invalid="ignore"):
        _, pullback = subject.vjp(call, {n: subject.on_device(array) for n, array in spoilt.items()})
        grads = pullback(cotangents)
    for n, bound in expected_gradients(call, want, cotangents).items():
        part = has_part(call, n, hit)
        if part is not None:
            within(f"{what}gradient of {n}", grads[n], bound, call.dtype, where=~part)


@prop("weights", applies=attends, draws={"config": {"dropout": (0.0,)}})
def weights(subject: Subject, call: Call) -> None:
    """Weights are not negative and sum to 1, or to 0 where nothing is seen: values that are all 1 give that."""
    pairs = seen_in(call)
    values = next(name for name in call.declared.arrays if call.symbols(name).split()[-1] == "Dv")
    ones = {**call.arrays, values: np.ones_like(call.arrays[values])}
    outputs = subject.forward(call, {name: subject.on_device(array) for name, array in ones.items()})
    rounding = 2 * (call.sizes["M"] + 16) * UNIT[call.dtype]  # of a sum of weights, divided by a sum of weights
    total = np.asarray(pairs.any(axis=-1, keepdims=True), np.float64)
    first, *rest = outputs
    sums = {first: outputs[first].astype(np.float64)}
    for name in rest:  # the weights themselves
        if not (outputs[name] >= 0).all() or np.where(pairs, 0, outputs[name]).any():
            raise AssertionError(f"{name}: expected weights that are not negative, and 0 where nothing is seen")
        sums[name] = outputs[name].sum(axis=-1, keepdims=True, dtype=np.float64)
    for name, found in sums.items():
        if not (np.abs(found - total) <= rounding).all():
            off = float(np.abs(found - total).max())
            raise AssertionError(
                f"{name}: expected weights that sum to 1 within {rounding:.2g}, they are off by {off:.2g}"
            )


# Some without an end, and some that leave keys out on either side.
WINDOWS = (None, (None, 0), (3, 0), (20, 5), (150, 0), (100, None), (0, 0))


@prop(
    "positions", applies=positioned, backward=True, draws={**SEEN, "config": {"window": (*WINDOWS, (2, 1), (None, 1))}}
)
def positions(subject: Subject, call: Call) -> None:
    """Causal, window, q_start and both lengths mean what a mask of the same pairs means."""
    spoken = ("causal", "window", "lengths", "q_lengths")
    kept_as_they_are = {name: value for name, value in call.config.items() if name not in spoken}
    masked = call.changed(
        config={**kept_as_they_are, "mask": seen_in(call).tolist()},
        shapes={name: shape for name, shape in call.shapes.items() if name != "mask"},
    )
    want = expected(masked)
    cotangents = call.cotangents()
    outputs, pullback = subject.vjp(call)
    for got in (outputs, subject.forward(call)):
        all_within(got, want.outputs, call.dtype, "of what a mask says, ")
    bounds = expected_gradients(masked, want, cotangents)
    all_within(pullback(cotangents), bounds, call.dtype, "of what a mask says, gradient of ")


@prop("broadcast", applies=broadcasting, backward=True, share=0.5, draws={"regimes": ("tiny", "small", "tall")})
def broadcast(subject: Subject, call: Call) -> None:
    """A bias or a mask that is broadcast is that given in full; its gradient is the sum of the full one."""
    assume(call.shapes)
    whole = call.changed(shapes={})
    arrays, options = dict(call.arrays), call.options
    for name in call.shapes:
        if name in arrays:
            arrays[name] = np.broadcast_to(arrays[name], whole.shape(name))
        else:
            whole = whole.changed(config={**whole.config, name: np.broadcast_to(options[name], whole.shape(name))})
    want = expected(whole, arrays)
    cotangents = call.cotangents()
    bounds = expected_gradients(whole, want, cotangents)
    bounds.update({name: sum_to(bounds[name], call.shape(name)) for name in call.shapes if name in bounds})
    outputs, pullback = subject.vjp(call)
    all_within(outputs, want.outputs, call.dtype, "broadcast, ")
    all_within(pullback(cotangents), bounds, call.dtype, "broadcast, gradient of ")


@prop(
    "heads",
    applies=shares_heads,
    backward=True,
    share=0.5,
    draws={"regimes": ("tiny", "small", "tall"), "sizes": {"Hq": (2, 6)}},
)
def heads(subject: Subject, call: Call) -> None:
    """Heads that share keys have each the same ones for itself; the gradient of those is the sum of theirs."""
    shared = call.sizes["Hkv"]
    group = call.sizes["Hq"] // shared
    assume(group > 1)
    names = [name for name in call.arrays if "Hkv" in call.symbols(name).split()]
    arrays = {**call.arrays, **{name: np.repeat(call.arrays[name], group, axis=1) for name in names}}
    want = expected(call.changed(sizes={**call.sizes, "Hkv": call.sizes["Hq"]}), arrays)
    cotangents = call.cotangents()
    bounds = expected_gradients(call, want, cotangents)
    for name in names:
        of_each = bounds[name]
        bounds[name] = of_each.reshape(len(of_each), shared, group, *of_each.shape[2:]).sum(axis=2)
    outputs, pullback = subject.vjp(call)
    all_within(outputs, want.outputs, call.dtype, "with keys for each head, ")
    all_within(pullback(cotangents), bounds, call.dtype, "with keys for each head, gradient of ")


# --- chunks of queries ---------------------------------------------------------------------------------------


def cut(call: Call, name: str, value: Any, queries: slice, keys: slice) -> Any:
    """Return the part of an array or an option that is of some queries and keys."""
    symbols = call.symbols(name).split()
    return value[tuple({"N": queries, "M": keys}.get(symbol, slice(None)) for symbol in symbols)]


def in_query_chunks(subject: Subject, call: Call) -> dict[str, Any]:
    """Run a call in chunks of queries, each with all keys, or with those from the first to the last that it sees."""
    rng = call.rng(13)
    N, M = call.sizes["N"], call.sizes["M"]
    cuts = sorted({0, N, *(int(at) for at in rng.integers(0, N + 1, rng.integers(1, 4)))})
    arrays, options, pairs = subject.arrays(call), call.options, seen_in(call)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in call.declared.outputs}
    for start, stop in pairwise(cuts):
        first, last = 0, M
        if positioned(call.declared) and rng.integers(4):
            asked = np.flatnonzero(pairs[..., start:stop, :].any(axis=tuple(range(pairs.ndim - 1))))
            last = int(asked.max(initial=-1)) + 1  # a cache that has just these so far
            if not options.get("dropout"):  # which depends on a key's position, counted from the first
                first = int(asked.min(initial=last)) // KEY_SPLIT * KEY_SPLIT
        queries, keys = slice(start, stop), slice(first, last)
        config = {name: cut(call, name, options[name], queries, keys) for name in options if name == "mask"}
        if positioned(call.declared):
            config["q_start"] = starts(call) + start - first
        for name, part in (("lengths", keys), ("q_lengths", queries)):
            if name in options:
                config[name] = np.clip(options[name] - part.start, 0, part.stop - part.start)
        given = {
            name: cut(call, name, array, queries, keys) if name not in call.shapes or array.ndim else array
            for name, array in arrays.items()
        }
        for name, output in subject.forward(call, given, **config).items():
            pieces[name].append(output)
    axes = {name: call.symbols(name).split().index("N") for name in pieces}
    return {name: np.concatenate(piece, axis=axes[name]) for name, piece in pieces.items()}


CHUNKS = {"regimes": ("tiny", "small", "long", "long"), "config": {"window": WINDOWS}}


@prop("query-chunk", applies=attends, share=0.5, draws=CHUNKS)
def query_chunk(subject: Subject, call: Call) -> None:
    """Queries in chunks, each with all keys or with a cache that has those it sees, give what all at once give."""
    assume(np.abs(starts(call)).max(initial=0) < 2**30)
    got = in_query_chunks(subject, call)
    for name, want in expected(call).outputs.items():
        within(f"in chunks of queries, {name}", got[name], want, call.dtype)


@prop("query-chunk-bitwise", applies=attends, claim="chunk", draws=CHUNKS)
def query_chunk_bitwise(subject: Subject, call: Call) -> None:
    """Nor does a bit of it change, if keys at the front that none sees are left out by whole splits."""
    assume(np.abs(starts(call)).max(initial=0) < 2**30)
    same("", in_query_chunks(subject, call), subject.forward(call), "in chunks of queries not the same to the bit")


# --- dropout -------------------------------------------------------------------------------------------------


@prop(
    "dropout",
    applies=drops,
    backward=True,
    share=0.5,
    draws={"regimes": ("tiny", "small", "tall"), "config": {"dropout": (0.1, 0.5, 0.9)}},
)
def dropout(subject: Subject, call: Call) -> None:
    """What is dropped is what seed, row, head and positions say, to the element, forward and backward."""
    sizes = call.sizes
    B, Hq, N, M = (sizes[symbol] for symbol in ("B", "Hq", "N", "M"))
    _, options = arguments(call, call.arrays)
    survives = seen_in(call) & kept(options, B, Hq, N, M)
    # Scores of 0, and values that show each weight on its own; of the weights' transpose, cotangents that do.
    for width, label in ((M, "y"), (N, "gradient of v")):
        plain = call.changed(
            sizes={**sizes, "Hkv": Hq, "Dv": width},
            optional=(),
            layouts={},
            shapes={n: s for n, s in call.shapes.items() if n != "bias"},
        )
        arrays = {"q": np.zeros(plain.shape("q")), "k": np.zeros(plain.shape("k")), "v": plain.arrays["v"]}
        if label == "y":
            arrays["v"] = np.broadcast_to(np.eye(M), plain.shape("v"))
        arrays = {name: array.astype(call.dtype) for name, array in arrays.items()}
        want = expected(plain, arrays)
        outputs, pullback = subject.vjp(plain, {name: subject.on_device(array) for name, array in arrays.items()})
        got: Any = outputs["y"]
        bound = want.outputs["y"]
        if label != "y":
            cotangents = {"y": np.broadcast_to(np.eye(N), plain.shape("y")).astype(call.dtype)}
            got, bound = pullback(cotangents)["v"], expected_gradients(plain, want, cotangents)["v"]
        within(label, got, bound, call.dtype)
        shown = (got != 0) if label == "y" else (got != 0).swapaxes(2, 3)
        if not np.array_equal(shown, survives):
            at = [int(i) for i in np.argwhere(shown != survives)[0]]
            raise AssertionError(f"{label}: the weight {at} is {'kept' if shown[tuple(at)] else 'dropped'} by mistake")
