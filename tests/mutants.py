"""Broken backends, each wrong in one way: what the property kit must catch.

A mutant is the reference with the smallest change that makes it wrong. `MUTANTS` names each, the ops that it breaks,
its fault in a line, and the property that catches it. ``python tests/mutants.py`` prints them as the table that
``docs/property-kit.md`` shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import pyrnn
from pyrnn.backend import KEY_SPLIT, Claim
from pyrnn.reference import attention, recurrent
from pyrnn.reference.backend import ReferenceBackend

CELLS = "rnn lstm gru"
STEPS = {
    "rnn": (recurrent.rnn_step, recurrent.rnn_step_back),
    "lstm": (recurrent.lstm_step, recurrent.lstm_step_back),
    "gru": (recurrent.gru_step, recurrent.gru_step_back),
}


class MutantBackend(ReferenceBackend):
    """The reference under another name, with hooks around forward and backward.

    A forward hook is called as ``hook(self, run, arrays, config, needs)``, a backward hook as
    ``hook(self, run, saved, grad_outputs, needs)``; ``run`` is the reference's method.
    """

    name = "mutant"

    def __init__(
        self, forward: Any = None, backward: Any = None, claims: Any = None, pack: Any = None, run: Any = None
    ) -> None:
        self.around_forward, self.around_backward, self.around_pack, self.around_run = forward, backward, pack, run
        self.calls = 0
        if claims:
            self.claims = {op: Claim(invariances=frozenset(claims)) for op in ReferenceBackend.claims}


def _hooked(op: str) -> None:
    def forward(self: Any, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        self.calls += 1
        run = getattr(super(MutantBackend, self), f"{op}_forward")
        if self.around_forward is None:
            return run(arrays, config, needs=needs)
        return self.around_forward(self, run, arrays, config, needs)

    def backward(self: Any, saved: Any, grads: Any, *, needs: Any) -> Any:
        run = getattr(super(MutantBackend, self), f"{op}_backward")
        if self.around_backward is None:
            return run(saved, grads, needs=needs)
        return self.around_backward(self, run, saved, grads, needs)

    def pack(self: Any, arrays: Any, config: Any) -> Any:
        own = getattr(super(MutantBackend, self), f"{op}_pack")
        return own(arrays, config) if self.around_pack is None else self.around_pack(arrays, config)

    def run(self: Any, packed: Any, x: Any, state: Any = None, *, lengths: Any = None, out: Any = None) -> Any:
        own = getattr(super(MutantBackend, self), f"{op}_run")
        if self.around_run is None:
            return own(packed, x, state, lengths=lengths, out=out)
        return self.around_run(own, packed, x, state, lengths, out)

    if hasattr(ReferenceBackend, f"{op}_pack"):
        setattr(MutantBackend, f"{op}_pack", pack)
        setattr(MutantBackend, f"{op}_run", run)
    setattr(MutantBackend, f"{op}_forward", forward)
    setattr(MutantBackend, f"{op}_backward", backward)


for _op in ReferenceBackend.claims:
    _hooked(_op)


@dataclass(frozen=True)
class Mutant:
    """A fault: the ops that it breaks, what is wrong in a line, the property that catches it, how it is made."""

    name: str
    ops: tuple[str, ...]
    fault: str
    caught_by: str
    make: Callable[[], pyrnn.Backend]


MUTANTS: list[Mutant] = []


def mutant(name: str, ops: str, fault: str, caught_by: str, **hooks: Any) -> None:
    MUTANTS.append(Mutant(name, tuple(ops.split()), fault, caught_by, lambda: MutantBackend(**hooks)))


def table() -> str:
    """Return the mutants as a table in Markdown."""
    rows = [f"| `{m.name}` | {', '.join(m.ops)} | {m.fault} | {m.caught_by} |" for m in MUTANTS]
    return "\n".join(["| mutant | ops | what is wrong | caught by |", "|---|---|---|---|", *rows])


# --- ways to be wrong: each gives a hook --------------------------------------------------------------------


def arrays_as(change: Callable[[Any], Any]) -> Any:
    """The forward works on changed arrays, and so does its backward."""
    return lambda self, run, a, config, needs: run(change(a), config, needs=needs)


def config_as(change: Callable[[Any], Any]) -> Any:
    """The forward works with changed options, and so does its backward."""
    return lambda self, run, a, config, needs: run(a, change(config), needs=needs)


def outputs_as(change: Callable[..., Any]) -> Any:
    """Change the outputs (a list), given the arrays and options."""

    def hook(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
        outputs, saved = run(a, config, needs=needs)
        return tuple(change(list(outputs), a, config)), saved

    return hook


def grads_as(change: Callable[..., Any]) -> Any:
    """Change the gradients in place (a dict by name); only those that are there."""

    def hook(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
        grads = {name: g for name, g in run(saved, given, needs=needs)._asdict().items() if g is not None}
        change(grads)
        return type(needs)(**{name: grads.get(name) for name in needs._fields})

    return hook


def cotangents_as(change: Callable[[Any], Any]) -> Any:
    return lambda self, run, saved, given, needs: run(saved, change(given), needs=needs)


def every(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a change of each array that is there."""
    return lambda arrays: type(arrays)(*(None if array is None else change(array) for array in arrays))


def zero(*names: str) -> Any:
    return grads_as(lambda g: [g[name].fill(0) for name in names if name in g])


def scaled(array: Any, factor: float) -> Any:
    return array * array.dtype.type(factor)


def off(outs: list[Any]) -> list[Any]:
    """Return outputs that are off by a thousandth."""
    return [scaled(o, 1.001) for o in outs]


def only_if(condition: Callable[[Any], bool]) -> Any:
    """The outputs are off by a thousandth where the arrays meet a condition."""
    return outputs_as(lambda outs, a, c: off(outs) if condition(a) else outs)


def only_with(condition: Callable[[Any, Any], bool]) -> Any:
    """The outputs are off by a thousandth where arrays and options meet a condition."""
    return outputs_as(lambda outs, a, c: off(outs) if condition(a, c) else outs)


def grads_only_if(condition: Callable[[Any, Any], bool], name: str) -> Any:
    """A gradient is off by a thousandth where the forward's arrays and options meet a condition."""

    def hook(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
        grads = run(saved, given, needs=needs)
        grad = getattr(grads, name)
        if grad is None or not condition(saved[0], saved[1]):
            return grads
        return grads._replace(**{name: scaled(grad, 1.001)})

    return hook


def gates_swapped(count: int, one: int, other: int) -> Any:
    """Two gates take each other's weights and biases; gradients come back in the swapped order too."""

    def swap(array: Any) -> Any:
        if array is None:
            return None
        parts = np.split(array, count)
        parts[one], parts[other] = parts[other], parts[one]
        return np.concatenate(parts)

    return {
        "forward": arrays_as(lambda a: a._replace(w_ih=swap(a.w_ih), w_hh=swap(a.w_hh), b=swap(a.b))),
        "backward": grads_as(lambda g: g.update({n: swap(g[n]) for n in ("w_ih", "w_hh", "b") if n in g})),
    }


def with_step(op: str, forward: Any = None, backward: Any = None) -> dict[str, Any]:
    """The op's cell is another, forward or backward."""
    step, step_back = STEPS[op]
    return {
        "forward": lambda self, run, a, config, needs: recurrent.run(forward or step, a, config, needs),
        "backward": lambda self, run, saved, given, needs: recurrent.run_back(
            backward or step_back, saved, given, needs
        ),
    }


# --- gates, states, biases ----------------------------------------------------------------------------------

for count, op, names in ((4, "lstm", "ifgo"), (3, "gru", "rzn")):
    for one in range(count):
        for other in range(one + 1, count):
            mutant(
                f"{op}-{names[one]}-{names[other]}-swapped",
                op,
                f"the gates {names[one]} and {names[other]} are taken for each other",
                "value",
                **gates_swapped(count, one, other),
            )


def interpolated_the_other_way(inputs: Any, a: Any, config: Any, state: Any) -> Any:
    _, saved = recurrent.gru_step(inputs, a, config, state)
    h, _, z, n, _ = saved
    return (z * n + (1 - z) * h,), saved


mutant("gru-z-inverted", "gru", "z and 1 - z are interchanged", "value", **with_step("gru", interpolated_the_other_way))
mutant(
    "gru-reset-placement",
    "gru",
    "the reset gate acts before the product where it should act after it, and the other way round",
    "value",
    forward=lambda self, run, a, c, needs: run(
        a._replace(b_hn=None), c._replace(reset_after=not c.reset_after), needs=needs
    ),
)


def moved_b_hn(a: Any) -> Any:
    if a.b_hn is None:
        return a
    wide = np.concatenate([np.zeros(2 * len(a.b_hn), a.b_hn.dtype), a.b_hn])
    return a._replace(b=wide if a.b is None else a.b + wide, b_hn=np.zeros_like(a.b_hn))


mutant("gru-b-hn-outside", "gru", "b_hn stands outside of the reset", "value", forward=arrays_as(moved_b_hn))


def bias_times(factor: int) -> Any:
    return arrays_as(lambda a: a._replace(b=None if a.b is None else scaled(a.b, factor)))


mutant("bias-dropped", f"{CELLS} linear", "the bias is not added", "value", forward=bias_times(0))
mutant("bias-twice", f"{CELLS} linear", "the bias is added twice", "value", forward=bias_times(2))


def late(outs: Any, a: Any, config: Any) -> Any:
    y = outs[0]
    start = np.zeros_like(y[:, :1]) if a.h0 is None else a.h0[:, None]
    return [np.concatenate([start, y[:, :-1]], 1) if y.shape[1] else y, *outs[1:]]


mutant("state-off-by-one", CELLS, "y[t] is the state before step t", "value", forward=outputs_as(late))
mutant(
    "h0-ignored",
    CELLS,
    "the initial state is taken as 0",
    "chunk",
    forward=arrays_as(lambda a: a._replace(h0=None)),
)
mutant(
    "c0-ignored",
    "lstm",
    "the initial cell state is taken as 0",
    "chunk",
    forward=arrays_as(lambda a: a._replace(c0=None)),
)
mutant(
    "c-n-is-h-n",
    "lstm",
    "h_n is handed on for c_n",
    "chunk",
    forward=outputs_as(lambda o, a, c: [o[0], o[1], o[1].copy()]),
)
mutant(
    "relu-is-tanh",
    "rnn",
    "the option activation is ignored",
    "value",
    forward=config_as(lambda c: c._replace(activation="tanh")),
)
mutant(
    "zero-is-a-pad",
    f"{CELLS} linear",
    "wrong where an input is exactly 0",
    "value",
    forward=only_if(lambda a: a.x.size > 0 and not a.x.all()),
)

# --- gradients ----------------------------------------------------------------------------------------------

for name, ops in (
    ("x", f"{CELLS} linear"),
    ("w_ih", CELLS),
    ("w_hh", CELLS),
    ("b", f"{CELLS} linear"),
    ("h0", CELLS),
    ("c0", "lstm"),
    ("b_hn", "gru"),
):
    mutant(f"zero-gradient-{name}", ops, f"the gradient of {name} is 0", "difference", backward=zero(name))


def transposed(g: Any) -> None:
    if "w_hh" in g:
        gates = np.split(g["w_hh"], len(g["w_hh"]) // max(1, g["w_hh"].shape[1]) or 1)
        g["w_hh"] = np.concatenate([gate.T for gate in gates])


mutant(
    "dw-hh-transposed",
    CELLS,
    "the gradient of w_hh is transposed, gate by gate",
    "difference",
    backward=grads_as(transposed),
)


def unshifted(op: str) -> dict[str, Any]:
    def back(saved: Any, a: Any, config: Any, grads: Any) -> Any:
        d, _, db_hn, old = STEPS[op][1](saved, a, config, grads)
        new = saved[1] if op == "rnn" else saved[6] * np.tanh(saved[2])
        return d, d.T @ new, db_hn, old

    return with_step(op, backward=back)


mutant("rnn-dw-unshifted", "rnn", "dW_hh is summed with h_t in place of h_(t-1)", "difference", **unshifted("rnn"))
mutant("lstm-dw-unshifted", "lstm", "dW_hh is summed with h_t in place of h_(t-1)", "difference", **unshifted("lstm"))

OP_OF_TRAIL = {2: "rnn", 7: "lstm", 5: "gru"}  # by how much a step saves


def first_step_lost(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    steps, trail = saved[2:]
    if not trail:
        return run(saved, given, needs=needs)
    back = STEPS[OP_OF_TRAIL[len(trail[0])]][1]
    left = iter(range(steps.count - 1, -1, -1))

    def stop_at_the_first(kept_step: Any, a: Any, c: Any, grads: Any) -> Any:
        d, dw_hh, db_hn, old = back(kept_step, a, c, grads)
        return (d, dw_hh, db_hn, old) if next(left) else (0 * d, 0 * dw_hh, db_hn, old)

    return recurrent.run_back(stop_at_the_first, saved, given, needs)


mutant(
    "first-step-lost",
    CELLS,
    "the first step is not back-propagated into weights and x",
    "difference",
    backward=first_step_lost,
)


def flat_tanh(saved: Any, a: Any, config: Any, grads: Any) -> Any:
    h, c, new_c, i, f, g, o = saved
    dh, dc = grads
    return recurrent.lstm_step_back((h, c, 0 * new_c, i, f, g, o), a, config, (dh, dc))


mutant(
    "lstm-tanh-c-flat",
    "lstm",
    "backward takes tanh(c) as c near 0",
    "gradient",
    **with_step("lstm", backward=flat_tanh),
)


def leaky_relu(saved: Any, a: Any, config: Any, grads: Any) -> Any:
    h, new = saved
    seen = np.where(new > 0, new, 1) if config.activation == "relu" else new
    return recurrent.rnn_step_back((h, seen), a, config, grads)


mutant(
    "relu-passes-negatives",
    "rnn",
    "the gradient passes where relu is 0",
    "gradient",
    **with_step("rnn", backward=leaky_relu),
)
mutant(
    "cotangent-h-n-ignored",
    CELLS,
    "the cotangent of h_n is ignored",
    "gradient",
    backward=cotangents_as(lambda g: g._replace(h_n=None)),
)
mutant(
    "cotangent-c-n-ignored",
    "lstm",
    "the cotangent of c_n is ignored",
    "gradient",
    backward=cotangents_as(lambda g: g._replace(c_n=None)),
)


def ones_for_none(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    if given.y is None:
        arrays = saved[0]
        given = given._replace(y=np.ones((*arrays.x.shape[:2], arrays.w_hh.shape[1]), arrays.x.dtype))
    return run(saved, given, needs=needs)


mutant(
    "cotangent-none-is-one", CELLS, "None for the cotangent of y is taken as ones", "backward", backward=ones_for_none
)


def off_with_only(name: str) -> Any:
    """Gradients are off where one output alone has a cotangent."""

    def hook(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
        grads = run(saved, given, needs=needs)
        if [key for key, grad in given._asdict().items() if grad is not None] != [name]:
            return grads
        return every(lambda g: scaled(g, 1.001))(grads)

    return hook


for name, ops in (("y", CELLS), ("h_n", CELLS), ("c_n", "lstm")):
    mutant(
        f"cotangent-of-{name}-alone".replace("_", "-"),
        ops,
        f"gradients are off where {name} alone has a cotangent",
        "backward",
        backward=off_with_only(name),
    )


def off_with_zeros(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    return grads if given.y is None or given.y.any() else every(lambda g: scaled(g, 1.001))(grads)


mutant(
    "cotangent-of-zeros",
    CELLS,
    "gradients are off where the cotangent of y is an array of zeros",
    "backward",
    backward=off_with_zeros,
)


def one_gate_negated(g: Any) -> None:
    if "w_hh" in g:
        hidden = g["w_hh"].shape[1]
        g["w_hh"][:hidden] *= -1


mutant(
    "sign-of-one-gate",
    "lstm gru",
    "the gradient of the first gate's recurrent weights has the wrong sign",
    "gradient",
    backward=grads_as(one_gate_negated),
)


def subset_wrong(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    return grads._replace(x=0 * grads.x) if needs.x and not all(needs[:3]) else grads


def unneeded(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    return run(saved, given, needs=type(needs)(*(True for _ in needs[:2]), *needs[2:]))


mutant(
    "subset-wrong", f"{CELLS} linear", "x's gradient is 0 where only some are needed", "backward", backward=subset_wrong
)
mutant("unneeded-given", f"{CELLS} linear", "gradients come that are not needed", "backward", backward=unneeded)


def saved_mutated(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    for step in saved[3]:
        step[-1][...] *= 2
    return grads


mutant("backward-mutates-saved", CELLS, "backward writes to what the forward saved", "backward", backward=saved_mutated)


def accumulated(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    if grads.x is None:
        return grads
    kept = self.__dict__.setdefault("sums", {}).setdefault(id(saved), [saved, np.zeros_like(grads.x)])
    kept[1] = kept[1] + grads.x
    return grads._replace(x=kept[1])


mutant(
    "gradient-accumulates",
    CELLS,
    "x's gradients of two backwards of a forward add up",
    "backward",
    backward=accumulated,
)


def cotangent_written(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    for grad in given:
        if grad is not None and grad.flags.writeable:
            grad *= 2
    return grads


mutant(
    "cotangent-overwritten",
    f"{CELLS} linear softmax",
    "backward writes to the cotangents",
    "inputs",
    backward=cotangent_written,
)
mutant(
    "gradient-off-slightly",
    f"{CELLS} linear layer_norm softmax",
    "gradients are off by 1e-5 of their value",
    "gradient",
    backward=lambda self, run, saved, g, needs: every(lambda d: scaled(d, 1.00001))(run(saved, g, needs=needs)),
)
mutant(
    "gradient-clipped",
    f"{CELLS} linear",
    "gradients are clipped to -5 .. 5",
    "gradient",
    backward=grads_as(lambda g: [d.clip(-5, 5, out=d) for d in g.values()]),
)
mutant(
    "training-differs",
    f"{CELLS} linear softmax layer_norm",
    "the forward for training gives something else than the one for inference",
    "gradient",
    forward=lambda self, run, a, c, needs: (only_if(lambda _: bool(needs)))(self, run, a, c, needs),
)
mutant(
    "dw-with-lengths",
    CELLS,
    "the gradient of w_ih is off where lengths are given",
    "gradient",
    backward=grads_only_if(lambda a, c: c.lengths is not None, "w_ih"),
)

# --- lengths and direction ----------------------------------------------------------------------------------

mutant(
    "lengths-ignored",
    CELLS,
    "pads are steps like others",
    "padding",
    forward=config_as(lambda c: c._replace(lengths=None)),
)
mutant(
    "reverse-ignored",
    CELLS,
    "the option reverse is ignored",
    "reversal",
    forward=config_as(lambda c: c._replace(reverse=False)),
)


def from_the_pads(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    if not config.reverse or config.lengths is None:
        return run(a, config, needs=needs)
    turned, saved = run(a._replace(x=a.x[:, ::-1]), config._replace(reverse=False), needs=needs)
    return (turned[0][:, ::-1].copy(), *turned[1:]), saved


mutant("reverse-from-the-pads", CELLS, "reverse starts in the padding", "reversal", forward=from_the_pads)


def reversed_order(outs: Any, a: Any, config: Any) -> Any:
    return [outs[0][:, ::-1].copy(), *outs[1:]] if config.reverse else outs


mutant(
    "reverse-order-of-y",
    CELLS,
    "reverse gives y in the order in which it ran",
    "reversal",
    forward=outputs_as(reversed_order),
)


def unmasked(outs: Any, a: Any, config: Any) -> Any:
    if config.lengths is not None:
        for row, length in enumerate(config.lengths):
            outs[0][row, length:] = outs[1][row]
    return outs


def nan_times_zero(outs: Any, a: Any, config: Any) -> Any:
    if config.lengths is not None:
        for row, length in enumerate(config.lengths):
            outs[1][row] += 0 * a.x[row, length:].sum()
    return outs


def lost_rows(outs: Any, a: Any, config: Any) -> Any:
    if config.lengths is not None:
        outs[1][config.lengths == 0] = 0
    return outs


def last_of_all(outs: Any, a: Any, config: Any) -> Any:
    return [outs[0], outs[0][:, -1].copy(), *outs[2:]] if outs[0].shape[1] else outs


mutant("pads-not-zero", CELLS, "y in the pads is the last state", "padding", forward=outputs_as(unmasked))
mutant(
    "pad-leaks",
    CELLS,
    "what stands in the pads reaches the state, times 0",
    "padding",
    forward=outputs_as(nan_times_zero),
)
mutant(
    "zero-length-row",
    CELLS,
    "a row of length 0 gives the state 0, not its own",
    "padding",
    forward=outputs_as(lost_rows),
)
mutant(
    "h-n-at-the-end", CELLS, "h_n is y at T - 1, whatever the row's length", "padding", forward=outputs_as(last_of_all)
)


def lengths_that(condition: Callable[[Any, Any], Any]) -> Any:
    return only_with(lambda a, c: c.lengths is not None and len(c.lengths) > 0 and bool(condition(c.lengths, a)))


mutant(
    "lengths-unsorted",
    CELLS,
    "wrong where lengths are not sorted, longest first",
    "value",
    forward=lengths_that(lambda lengths, a: (np.diff(lengths) > 0).any()),
)
mutant(
    "lengths-equal",
    CELLS,
    "wrong where several rows all have the same length, less than T",
    "padding",
    forward=lengths_that(lambda lengths, a: len(lengths) > 1 and 0 < lengths[0] < a.x.shape[1] and not np.ptp(lengths)),
)
mutant(
    "lengths-all-zero",
    CELLS,
    "wrong where no row has a step",
    "padding",
    forward=lengths_that(lambda lengths, a: not lengths.any()),
)

# --- memory -------------------------------------------------------------------------------------------------


def input_written(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    outputs, saved = run(a._replace(x=a.x.copy()), config, needs=needs)
    if a.x.flags.writeable:
        a.x[...] *= 2
    return outputs, saved


mutant("input-written", f"{CELLS} linear layer_norm", "the forward writes to x", "inputs", forward=input_written)


def ring(size: int) -> Any:
    """y lies in one of some buffers, which later calls overwrite."""

    def hook(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
        outputs, saved = run(a, config, needs=needs)
        key = (outputs[0].shape, str(outputs[0].dtype), self.calls % size)
        buffer = self.__dict__.setdefault("buffers", {}).setdefault(key, np.empty_like(outputs[0]))
        buffer[...] = outputs[0]
        return (buffer, *outputs[1:]), saved

    return hook


mutant(
    "output-is-a-buffer",
    f"{CELLS} linear softmax",
    "y is a buffer that the next call overwrites",
    "independence",
    forward=ring(1),
)
mutant(
    "output-in-a-ring",
    f"{CELLS} linear softmax",
    "y is one of four buffers, which later calls overwrite",
    "independence",
    forward=ring(4),
)


def gradient_buffer(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    if grads.x is None:
        return grads
    key = (grads.x.shape, str(grads.x.dtype))
    buffer = self.__dict__.setdefault("buffers", {}).setdefault(key, np.empty_like(grads.x))
    buffer[...] = grads.x
    return grads._replace(x=buffer)


mutant(
    "gradient-is-a-buffer",
    f"{CELLS} linear softmax",
    "x's gradient is a buffer that the next backward overwrites",
    "independence",
    backward=gradient_buffer,
)


def locked(outs: Any, a: Any, config: Any) -> Any:
    outs[0].flags.writeable = False
    return outs


mutant("output-read-only", f"{CELLS} linear softmax", "y can't be written to", "inputs", forward=outputs_as(locked))


def stale(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    packed = self.__dict__.setdefault("packed", {})
    kept, copy = packed.setdefault(id(a.w_hh), (a.w_hh, a.w_hh.copy()))
    return run(a._replace(w_hh=copy if kept is a.w_hh else a.w_hh), config, needs=needs)


def stale_in_training(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    return (stale if needs else MutantBackend.plain)(self, run, a, config, needs)


MutantBackend.plain = staticmethod(lambda self, run, a, config, needs: run(a, config, needs=needs))
mutant(
    "stale-weights",
    CELLS,
    "weights are packed once per array, and stale after a change in place",
    "independence",
    forward=stale,
)
mutant(
    "stale-weights-in-training",
    CELLS,
    "as before, but in training only",
    "independence",
    forward=stale_in_training,
)


def shared_saved(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    outputs, saved = run(a, config, needs=needs)
    if not needs:
        return outputs, None
    self.kept = saved
    return outputs, self


mutant(
    "saved-shared",
    CELLS,
    "a forward overwrites what the one before it saved",
    "independence",
    forward=shared_saved,
    backward=lambda self, run, saved, g, needs: run(self.kept, g, needs=needs),
)
mutant(
    "keeps-in-inference",
    f"{CELLS} linear",
    "a forward in inference keeps what only a backward needs",
    "inference",
    forward=lambda self, run, a, c, needs: run(a, c, needs=needs or type(a)(*(v is not None for v in a))),
)
mutant(
    "raw-buffer",
    f"{CELLS} linear",
    "arrays are read as if they were C-contiguous",
    "layouts",
    forward=arrays_as(lambda a: a._replace(x=a.x.ravel(order="K").reshape(a.x.shape))),
)


def writeable_only(array: Any) -> Any:
    if not array.flags.writeable:
        raise ValueError("buffer source array is read-only")
    return array


mutant(
    "read-only-refused",
    f"{CELLS} linear softmax",
    "read-only arrays raise",
    "layouts",
    forward=arrays_as(every(writeable_only)),
)


def raced(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    self.scratch = a
    time.sleep(1e-4)
    return run(self.scratch, config, needs=needs)


mutant(
    "scratch-shared-by-threads",
    f"{CELLS} linear",
    "calls from two threads share a scratch",
    "concurrency",
    forward=raced,
)

# --- numbers ------------------------------------------------------------------------------------------------

mutant(
    "drift",
    f"{CELLS} linear layer_norm softmax",
    "results are off by 100 epsilons",
    "value",
    forward=outputs_as(lambda outs, a, c: [scaled(o, 1 + 100 * np.finfo(o.dtype).eps) for o in outs]),
)


def rounded(array: Any) -> Any:
    return None if array is None else array.astype(np.float16).astype(array.dtype)


mutant(
    "half-precision",
    CELLS,
    "weights are rounded to float16",
    "value",
    forward=arrays_as(lambda a: a._replace(w_hh=rounded(a.w_hh), w_ih=rounded(a.w_ih))),
)
mutant(
    "float64-in-float32",
    f"{CELLS} linear",
    "float64 is computed in float32",
    "value",
    forward=arrays_as(every(lambda v: v.astype(np.float32).astype(v.dtype))),
)
mutant(
    "dtype-out",
    f"{CELLS} linear softmax",
    "float32 in gives float64 out",
    "value",
    forward=outputs_as(lambda outs, a, c: [o.astype(np.float64) for o in outs]),
)


def naive_lstm(inputs: Any, a: Any, config: Any, state: Any) -> Any:
    def overflowing(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.exp(x) / (1 + np.exp(x))

    h, c = state
    i, f, g, o = np.split(inputs + h @ a.w_hh.T, 4, axis=1)
    i, f, g, o = overflowing(i), overflowing(f), np.tanh(g), overflowing(o)
    new_c = f * c + i * g
    return (o * np.tanh(new_c), new_c), (h, c, new_c, i, f, g, o)


def naive_lstm_in_float64(inputs: Any, a: Any, config: Any, state: Any) -> Any:
    return (naive_lstm if inputs.dtype == np.float64 else recurrent.lstm_step)(inputs, a, config, state)


mutant(
    "sigmoid-overflows",
    "lstm",
    "the logistic function is e^x / (1 + e^x), NaN for large x",
    "value",
    **with_step("lstm", naive_lstm),
)
mutant(
    "sigmoid-overflows-in-float64",
    "lstm",
    "the same, in float64 only",
    "value",
    **with_step("lstm", naive_lstm_in_float64),
)


def tanh_by_exp(inputs: Any, a: Any, config: Any, state: Any) -> Any:
    (h,) = state
    before = inputs + h @ a.w_hh.T
    e = np.exp(np.minimum(2 * before, 40))
    new = (e - 1) / (e + 1) if config.activation == "tanh" else np.maximum(before, 0)
    return (new.astype(inputs.dtype),), (h, new.astype(inputs.dtype))


mutant(
    "tanh-cancels",
    "rnn",
    "tanh is (e^2x - 1) / (e^2x + 1), which loses its digits near 0",
    "value",
    **with_step("rnn", tanh_by_exp),
)
mutant(
    "nan-swallowed",
    f"{CELLS} linear softmax",
    "a NaN is taken for 0",
    "nan",
    forward=arrays_as(every(np.nan_to_num)),
)
mutant(
    "nan-in-h0-swallowed",
    CELLS,
    "a NaN in the initial state is taken for 0",
    "nan",
    forward=arrays_as(lambda a: a._replace(h0=None if a.h0 is None else np.nan_to_num(a.h0))),
)
mutant(
    "nan-spreads",
    f"{CELLS} linear",
    "a NaN in one row spreads to the others",
    "nan",
    forward=outputs_as(lambda outs, a, c: [outs[0] + 0 * outs[0].sum(axis=0, keepdims=True), *outs[1:]]),
)

# --- wrong only sometimes -----------------------------------------------------------------------------------

for name, fault, caught_by, condition in (
    ("h-not-16", "H is no multiple of 16", "value", lambda a: a.w_hh.shape[1] % 16 != 0),
    ("h-only-16", "H is a multiple of 16", "value", lambda a: a.w_hh.shape[1] % 16 == 0),
    ("h-past-128", "H > 128", "value", lambda a: a.w_hh.shape[1] > 128),
    ("h-past-300", "H > 300", "sizes", lambda a: a.w_hh.shape[1] > 300),
    ("h-is-512", "H = 512", "sizes", lambda a: a.w_hh.shape[1] == 512),
    ("i-past-128", "I > 128", "value", lambda a: a.w_ih.shape[1] > 128),
    ("i-past-600", "I > 600", "sizes", lambda a: a.w_ih.shape[1] > 600),
    ("t-past-64", "T > 64", "value", lambda a: a.x.shape[1] > 64),
    ("t-past-256", "T > 256", "sizes", lambda a: a.x.shape[1] > 256),
    ("t-past-600", "T > 600", "sizes", lambda a: a.x.shape[1] > 600),
    ("b-past-64", "B > 64", "value", lambda a: a.x.shape[0] > 64),
    ("b-is-256", "B = 256", "sizes", lambda a: a.x.shape[0] == 256),
    ("b-one", "B = 1", "batch", lambda a: a.x.shape[0] == 1),
    ("steps-past-2000", "B · T > 2000", "sizes", lambda a: a.x.shape[0] * a.x.shape[1] > 2000),
):
    ops = "rnn" if caught_by == "sizes" else CELLS  # it is the same draws for each, and they take seconds
    mutant(name, ops, f"wrong where {fault}", caught_by, forward=only_if(condition))

mutant("rows-past-200", "linear", "wrong with more than 200 rows", "sizes", forward=only_if(lambda a: len(a.x) > 200))
mutant(
    "relu-in-reverse",
    "rnn",
    "relu is wrong in reverse",
    "reversal",
    forward=only_with(lambda a, c: c.activation == "relu" and c.reverse),
)
mutant(
    "dx-where-h-past-300",
    "gru",
    "the gradient of x is off where H > 300",
    "sizes",
    backward=grads_only_if(lambda a, c: a.w_hh.shape[1] > 300, "x"),
)
mutant(
    "dw-where-t-past-500",
    "lstm",
    "the gradient of w_hh is off where T > 500",
    "sizes",
    backward=grads_only_if(lambda a, c: a.x.shape[1] > 500, "w_hh"),
)


def no_rows(a: Any) -> Any:
    if not a[0].size:
        raise ZeroDivisionError("no rows")
    return a


mutant("no-rows", f"{CELLS} linear softmax", "an empty batch raises", "empty", forward=arrays_as(no_rows))
mutant(
    "two-threads",
    f"{CELLS} linear",
    "wrong with two threads",
    "threads",
    forward=only_if(lambda a: pyrnn.get_num_threads() == 2),
)
mutant(
    "many-threads",
    f"{CELLS} linear",
    "wrong with more than eight threads",
    "threads",
    forward=only_if(lambda a: pyrnn.get_num_threads() > 8),
)


def every_nth(count: int) -> Any:
    return lambda self, run, a, c, needs: only_if(lambda _: self.calls % count == 0)(self, run, a, c, needs)


mutant("every-second-call", f"{CELLS} linear", "wrong on every second call", "value", forward=every_nth(2))
mutant("now-and-then", f"{CELLS} linear", "wrong on one call in twenty", "value", forward=every_nth(20))

# --- false claims -------------------------------------------------------------------------------------------


def next_up(array: Any) -> Any:
    return np.nextafter(array, array.dtype.type(9))


def last_bit(condition: Callable[[Any], bool]) -> Any:
    """The last bit differs where a condition holds."""
    return outputs_as(lambda outs, a, c: [next_up(o) for o in outs] if condition(a) else outs)


def last_bit_of_gradients(g: Any) -> None:
    if pyrnn.get_num_threads() > 1:
        g.update({name: next_up(grad) for name, grad in g.items()})


mutant(
    "claims-batch",
    f"{CELLS} linear",
    "claims results independent of the batch, and the last bit depends on it",
    "batch-bitwise",
    forward=last_bit(lambda a: a.x.ndim > 0 and len(a.x) > 1),
    claims={"batch"},
)
mutant(
    "claims-threads",
    f"{CELLS} linear",
    "claims results independent of threads, and the last bit depends on them",
    "threads-bitwise",
    forward=last_bit(lambda a: pyrnn.get_num_threads() > 1),
    claims={"threads"},
)
mutant(
    "pack-shares-weights",
    f"{CELLS} linear",
    "packed weights are the caller's own arrays, which may change",
    "packed",
    pack=lambda arrays, config: (arrays, config),
)
mutant(
    "run-ignores-state",
    CELLS,
    "packed weights run from the zero state, whatever state is given",
    "packed",
    run=lambda own, packed, x, state, lengths, out: own(packed, x, None, lengths=lengths, out=out),
)
mutant(
    "run-ignores-lengths",
    CELLS,
    "packed weights run over the pads",
    "packed",
    run=lambda own, packed, x, state, lengths, out: own(packed, x, state, lengths=None, out=out),
)
mutant(
    "run-ignores-out",
    f"{CELLS} linear",
    "the arrays given for the results stay as they were",
    "packed",
    run=lambda own, packed, x, state, lengths, out: own(packed, x, state, lengths=lengths, out=None),
)
mutant(
    "claims-chunk",
    CELLS,
    "claims results independent of chunks, and the last bit depends on T",
    "chunk-bitwise",
    forward=last_bit(lambda a: a.x.shape[1] % 2 == 1),
    claims={"chunk"},
)
mutant(
    "claims-weight-gradients",
    f"{CELLS} linear",
    "claims gradients independent of threads, and the last bit is not",
    "gradient-threads-bitwise",
    backward=grads_as(last_bit_of_gradients),
    claims={"weight gradients"},
)

# --- shapes -------------------------------------------------------------------------------------------------

mutant(
    "broadcast-h0",
    CELLS,
    "the first row's initial state is used for all",
    "batch",
    forward=arrays_as(lambda a: a if a.h0 is None else a._replace(h0=np.repeat(a.h0[:1], len(a.x), axis=0))),
)
mutant(
    "silent-broadcast",
    CELLS,
    "h_n is one row, to be broadcast",
    "value",
    forward=outputs_as(lambda outs, a, c: [outs[0], outs[1][:1], *outs[2:]]),
)
mutant(
    "output-missing",
    CELLS,
    "the last state is not given",
    "value",
    forward=outputs_as(lambda outs, a, c: outs[:-1]),
)
mutant(
    "outputs-in-other-order",
    "lstm",
    "c_n comes before h_n",
    "value",
    forward=outputs_as(lambda o, a, c: [o[0], o[2], o[1]]),
)

# --- the basic family ---------------------------------------------------------------------------------------

mutant("linear-dw-zero", "linear", "the gradient of w is 0", "difference", backward=zero("w"))
mutant(
    "softmax-last-axis",
    "softmax",
    "the axis is always the last",
    "value",
    forward=config_as(lambda c: c._replace(axis=-1)),
)


def no_maximum(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    with np.errstate(all="ignore"):
        e = np.exp(a.x)
        y = e / e.sum(axis=config.axis, keepdims=True)
    return (y,), (y, config.axis) if needs else None


mutant("softmax-overflows", "softmax", "e^x is taken without the maximum's subtraction", "value", forward=no_maximum)
mutant("layer-norm-eps", "layer_norm", "eps is left out", "value", forward=config_as(lambda c: c._replace(eps=0.0)))
mutant(
    "layer-norm-unbiased",
    "layer_norm",
    "the variance is divided by F - 1",
    "value",
    forward=outputs_as(lambda outs, a, c: [scaled(outs[0], (1 - 1 / max(2, a.x.shape[-1])) ** 0.5)]),
)
mutant("layer-norm-dweight-zero", "layer_norm", "the gradient of weight is 0", "difference", backward=zero("weight"))


def overwritten(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    shape, indices = saved
    grad = np.zeros(shape, given.y.dtype)
    grad[indices] = given.y
    return type(needs)(weight=grad)


mutant(
    "embedding-overwrites",
    "embedding",
    "of an index that occurs twice only one gradient counts",
    "difference",
    backward=overwritten,
)
mutant(
    "cross-entropy-mask-inverted",
    "cross_entropy",
    "the mask is inverted",
    "mask",
    forward=config_as(lambda c: c if c.mask is None else c._replace(mask=~c.mask)),
)


def masked_by_product(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    (loss,), saved = run(a, config._replace(mask=None), needs=needs)
    return (loss if config.mask is None else loss * config.mask.astype(loss.dtype),), saved


mutant(
    "cross-entropy-mask-times",
    "cross_entropy",
    "the mask multiplies, so that NaN times 0 leaks",
    "mask",
    forward=masked_by_product,
)
mutant(
    "cross-entropy-no-target",
    "cross_entropy",
    "the gradient lacks the target's - 1",
    "gradient",
    backward=grads_as(lambda g: g["logits"].clip(0, None, out=g["logits"])),
)

# --- the attention family -----------------------------------------------------------------------------------

ATTENDING = "attention additive_attention multiplicative_attention"
SCORED = "additive_attention multiplicative_attention"


def config_with(**changes: Any) -> Any:
    """The forward works with options that are functions of arrays and options, and so does its backward."""
    return lambda self, run, a, c, needs: run(
        a, c._replace(**{name: change(a, c) for name, change in changes.items()}), needs=needs
    )


def saved_as(change: Callable[[Any], Any]) -> Any:
    """Backward works on what the forward saved (a dict by name), changed."""
    names = ("arrays", "config", "seen", "scale", "shared", "weights", "y")

    def hook(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
        found = dict(zip(names, saved, strict=True))
        found.update(change(found))
        return run(tuple(found.values()), given, needs=needs)

    return hook


def pieces(run: Any, a: Any, config: Any) -> dict[str, Any]:
    """Return what attention's forward has before it applies dropout, by name."""
    every_one = type(a)(*(array is not None for array in a))
    _, saved = run(a, config._replace(dropout=0.0), needs=every_one)
    return dict(zip(("arrays", "config", "seen", "scale", "shared", "weights", "y"), saved, strict=True))


def dropped_as(change: Callable[[Any, Any], Any]) -> Any:
    """Dropout multiplies the weights with something else, forward and backward: ``change(weights, config)``."""

    def hook(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
        if not config.dropout:
            return run(a, config, needs=needs)
        part = pieces(run, a, config)
        weights = change(part["weights"], config)
        return (attention.product(weights, a.v[:, part["shared"]], part["seen"]),), None

    return hook


def scores_of(a: Any, config: Any) -> tuple[Any, Any, Any]:
    """Return attention's scores, what is seen, and the values of each head."""
    scale = 1 / np.sqrt(max(1, a.q.shape[3])) if config.scale is None else config.scale
    group = a.q.shape[1] // max(1, a.k.shape[1])
    scores = (a.q * a.q.dtype.type(scale)) @ np.repeat(a.k, group, axis=1).swapaxes(2, 3)
    seen = attention.seen_by(config, len(a.q), a.q.shape[2], a.k.shape[2], a.q.shape[1])
    return scores if a.bias is None else scores + a.bias, seen, np.repeat(a.v, group, axis=1)


def from_scores(weigh: Callable[..., Any]) -> Any:
    """The output comes of ``weigh(scores, seen, values)``; there is no dropout."""

    def hook(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
        outputs, saved = run(a, config, needs=needs)
        if config.dropout or not outputs[0].size:
            return outputs, saved
        with np.errstate(all="ignore"):
            return (weigh(*scores_of(a, config)).astype(outputs[0].dtype),), saved

    return hook


mutant(
    "mask-inverted",
    ATTENDING,
    "the mask is inverted",
    "value",
    forward=config_with(mask=lambda a, c: None if c.mask is None else ~c.mask),
)
mutant(
    "causal-off-by-one",
    "attention",
    "a causal query sees the key after it",
    "positions",
    forward=config_with(
        causal=lambda a, c: False,
        window=lambda a, c: ((c.window or (None, None))[0], 1) if c.causal else c.window,
    ),
)
mutant(
    "causal-top-left",
    "attention",
    "the first query stands at the first key, with a cache too",
    "positions",
    forward=config_with(q_start=lambda a, c: 0 * c.q_start),
)
mutant(
    "q-start-ignored",
    "attention",
    "the last query stands at the last key, wherever the first one does",
    "positions",
    forward=config_with(q_start=lambda a, c: 0 * c.q_start + a.k.shape[2] - a.q.shape[2]),
)
mutant(
    "q-start-from-lengths",
    "attention",
    "the last query stands at the last valid key by default",
    "positions",
    forward=config_with(
        q_start=lambda a, c: c.q_start if c.lengths is None else c.q_start - a.k.shape[2] + c.lengths,
    ),
)
mutant(
    "q-start-of-the-first-row",
    "attention",
    "the first row's q_start is taken for all",
    "positions",
    forward=config_with(q_start=lambda a, c: np.repeat(c.q_start[:1], len(a.q))),
)
mutant(
    "q-start-in-32-bits",
    "attention",
    "positions wrap at 2**31",
    "positions",
    forward=config_with(q_start=lambda a, c: c.q_start.astype(np.int32).astype(np.int64)),
)


def window_as(change: Callable[[int | None, int | None], Any]) -> Any:
    return config_with(window=lambda a, c: change(*c.window) if c.window else None)


mutant(
    "window-left-edge",
    "attention",
    "the window reaches one key further to the left",
    "positions",
    forward=window_as(lambda left, right: (left if left is None else left + 1, right)),
)
mutant(
    "window-right-edge",
    "attention",
    "the window ends one key early on the right",
    "positions",
    forward=window_as(lambda left, right: (left, right and right - 1)),
)
mutant(
    "window-over-causal",
    "attention",
    "a window's right side counts although the call is causal",
    "positions",
    forward=config_with(causal=lambda a, c: c.causal and c.window is None),
)
mutant(
    "lengths-of-keys-ignored",
    ATTENDING,
    "padded keys are keys like others",
    "unseen",
    forward=config_with(lengths=lambda a, c: None),
)
mutant(
    "q-lengths-ignored",
    "attention",
    "padded queries are queries like others",
    "unseen",
    forward=config_with(q_lengths=lambda a, c: None),
)
mutant(
    "scale-forgotten",
    "attention",
    "without a scale it is 1, and not 1 / √D",
    "value",
    forward=config_with(scale=lambda a, c: 1.0 if c.scale is None else c.scale),
)
mutant(
    "scale-ignored",
    "multiplicative_attention",
    "the scale is always 1",
    "value",
    forward=config_with(scale=lambda a, c: 1.0),
)
mutant(
    "bias-scaled-too",
    "attention",
    "the scale multiplies the bias too",
    "value",
    forward=lambda self, run, a, c, needs: run(
        a if a.bias is None or c.scale is None else a._replace(bias=scaled(a.bias, c.scale)), c, needs=needs
    ),
)


def unscaled(name: str) -> Any:
    """A gradient lacks the scale."""

    def hook(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
        grads = run(saved, given, needs=needs)
        grad = getattr(grads, name)
        return grads if grad is None or not saved[3] else grads._replace(**{name: scaled(grad, 1 / saved[3])})

    return hook


mutant("dq-without-scale", "attention", "the gradient of q lacks the scale", "difference", backward=unscaled("q"))
mutant("dk-without-scale", "attention", "the gradient of k lacks the scale", "difference", backward=unscaled("k"))


def times_zero(outs: Any, a: Any, config: Any) -> Any:
    values = a[2].sum(axis=-2, keepdims=True)
    return [outs[0] + 0 * np.repeat(values, outs[0].shape[1] // max(1, values.shape[1]), axis=1), *outs[1:]]


def times_zero_of_the_first(outs: Any, a: Any, config: Any) -> Any:
    return [outs[0] + 0 * a[2].sum(axis=1, keepdims=True), *outs[1:]]


mutant(
    "unseen-times-zero",
    "attention",
    "values that are not seen are multiplied with 0, so that NaN leaks",
    "unseen",
    forward=outputs_as(times_zero),
)
mutant(
    "unseen-times-zero-with-weights",
    SCORED,
    "values that are not seen are multiplied with 0, so that NaN leaks",
    "unseen",
    forward=outputs_as(times_zero_of_the_first),
)
mutant(
    "nan-of-one-for-all",
    "attention",
    "a NaN in a key that one query sees reaches those that do not see it",
    "leak",
    forward=outputs_as(lambda o, a, c: [o[0] + 0 * o[0].sum(axis=2, keepdims=True)]),
)
mutant(
    "nothing-seen-is-the-mean",
    "attention",
    "a query that sees nothing gets the mean of all values",
    "value",
    forward=from_scores(lambda s, seen, v: _softmax(np.where(seen, s, -1e30)) @ v),
)
mutant(
    "nothing-seen-is-nan",
    "attention",
    "a query that sees nothing gets 0 / 0",
    "value",
    forward=from_scores(lambda s, seen, v: _softmax(np.where(seen, s, -np.inf)) @ v),
)
mutant(
    "masked-by-a-thousand",
    "attention",
    "what is not seen gets a score less by 1000, which a large one outdoes",
    "positions",
    forward=from_scores(
        lambda s, seen, v: np.where(seen.any(-1)[..., None], _softmax(s - 1e3 * ~seen) @ v, 0),
    ),
)
mutant(
    "exp-overflows",
    "attention",
    "e^score is taken without the maximum's subtraction",
    "value",
    forward=from_scores(lambda s, seen, v: _divided(np.where(seen, np.exp(s), 0), v)),
)


def _softmax(scores: Any) -> Any:
    terms = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    return terms / terms.sum(axis=-1, keepdims=True)


def _divided(terms: Any, v: Any) -> Any:
    total = terms.sum(axis=-1, keepdims=True)
    return (terms @ v) / np.where(total == 0, 1, total)


def merged_without_rescaling(scores: Any, seen: Any, v: Any) -> Any:
    parts = []
    for first in range(0, scores.shape[-1], KEY_SPLIT):
        at = slice(first, first + KEY_SPLIT)
        s = np.where(seen[..., at], scores[..., at], -1e30)
        parts.append((np.where(seen[..., at], np.exp(s - s.max(axis=-1, keepdims=True)), 0), v[:, :, at]))
    total = sum((terms.sum(axis=-1, keepdims=True) for terms, _ in parts), np.zeros((1,) * 4, scores.dtype))
    return sum((terms @ values for terms, values in parts), 0 * v[:, :, :1]) / np.where(total == 0, 1, total)


mutant(
    "splits-merged-without-rescaling",
    "attention",
    "splits of keys are added up each with its own maximum",
    "value",
    forward=from_scores(merged_without_rescaling),
)
mutant(
    "last-tile-lost",
    "attention",
    "keys past the last multiple of 16 are left out where there are more than 64",
    "sizes",
    forward=config_with(
        lengths=lambda a, c: c.lengths if a.k.shape[2] <= 64 else np.minimum(
            len(a.q) * [a.k.shape[2]] if c.lengths is None else c.lengths, a.k.shape[2] // 16 * 16
        ),
    ),
)  # fmt: skip
mutant(
    "delta-of-another-row",
    "attention",
    "Σ dy · y is taken from the next query",
    "gradient",
    backward=saved_as(lambda s: {"y": np.roll(s["y"], -1, axis=2)}),
)
mutant(
    "weights-of-another-row",
    "attention",
    "backward takes the weights by the sum of the next query",
    "gradient",
    backward=saved_as(lambda s: {"weights": np.roll(s["weights"], -1, axis=2)}),
)
mutant(
    "dk-of-the-wrong-block",
    "attention",
    "with more than 64 keys their gradients stand 64 keys further on",
    "gradient",
    backward=grads_as(lambda g: g.update(k=np.roll(g["k"], 64, axis=2)) if "k" in g and g["k"].shape[2] > 64 else None),
)
for name in "qkv":
    mutant(f"zero-gradient-{name}", "attention", f"the gradient of {name} is 0", "difference", backward=zero(name))
mutant("zero-gradient-bias", "attention", "the gradient of bias is 0", "difference", backward=zero("bias"))


def one_of_the_broadcast(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    arrays, seen = saved[0], saved[2]
    if not needs.bias:
        return run(saved, given, needs=needs)
    shape = arrays.bias.shape
    wide = arrays._replace(bias=np.broadcast_to(arrays.bias, seen.shape))
    grads = run((wide, *saved[1:]), given, needs=needs)
    first = tuple(slice(0, 1) if one == 1 else slice(None) for one in (1,) * (4 - len(shape)) + shape)
    return grads._replace(bias=grads.bias[first].reshape(shape))


mutant(
    "bias-gradient-not-summed",
    "attention",
    "of a bias that is broadcast, the gradient is that of the first element it stands for",
    "broadcast",
    backward=one_of_the_broadcast,
)


def other_heads(a: Any) -> Any:
    heads = np.arange(a.q.shape[1]) % max(1, a.k.shape[1])
    return a._replace(k=a.k[:, heads], v=a.v[:, heads])


mutant(
    "heads-in-turn",
    "attention",
    "heads of queries take the heads of keys in turn, and not in groups",
    "heads",
    forward=arrays_as(other_heads),
)


def first_of_group(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    group = saved[0].q.shape[1] // max(1, saved[0].k.shape[1])
    alone = given.y.copy()
    alone[:, np.arange(alone.shape[1]) % max(1, group) != 0] = 0
    return grads._replace(k=run(saved, given._replace(y=alone), needs=needs).k)


mutant(
    "dk-of-one-head",
    "attention",
    "the gradient of k is that of the first head of its group",
    "heads",
    backward=first_of_group,
)
mutant(
    "dropout-ignored",
    "attention",
    "nothing is dropped",
    "dropout",
    forward=config_with(dropout=lambda a, c: 0.0),
)
mutant(
    "dropout-not-rescaled",
    "attention",
    "what is not dropped stays as it is, and does not grow by 1 / (1 - dropout)",
    "value",
    forward=outputs_as(lambda outs, a, c: [scaled(outs[0], 1 - c.dropout)]),
)
mutant(
    "dropout-of-the-chunk",
    "attention",
    "dropout counts queries from the first of the call, and not from position 0",
    "query-chunk",
    forward=dropped_as(lambda w, c: attention.dropped(w, c._replace(q_start=0 * c.q_start))),
)
mutant(
    "dropout-alike-in-all-rows",
    "attention",
    "dropout is the same in each row of the batch",
    "dropout",
    forward=dropped_as(
        lambda w, c: w * attention.dropped(np.ones_like(w[:1]), c._replace(q_start=c.q_start[:1]))
    ),
)  # fmt: skip
mutant(
    "dropout-by-half-a-seed",
    "attention",
    "the upper 32 bits of the seed are left out",
    "dropout",
    forward=dropped_as(lambda w, c: attention.dropped(w, c._replace(seed=c.seed % 2**32))),
)
mutant(
    "dropout-elsewhere-in-backward",
    "attention",
    "backward drops the weights of the next position",
    "dropout",
    backward=saved_as(lambda s: {"config": s["config"]._replace(q_start=s["config"].q_start + 1)}),
)
mutant(
    "dropout-not-in-backward",
    "attention",
    "backward drops nothing",
    "dropout",
    backward=saved_as(lambda s: {"config": s["config"]._replace(dropout=0.0)}),
)
mutant(
    "claims-chunk-of-queries",
    "attention",
    "claims results independent of chunks, and the last bit depends on the number of keys",
    "query-chunk-bitwise",
    forward=last_bit(lambda a: a.k.shape[2] % 2 == 1),
    claims={"chunk"},
)
mutant(
    "alpha-cotangent-ignored",
    SCORED,
    "the cotangent of the weights is ignored",
    "gradient",
    backward=cotangents_as(lambda g: g._replace(alpha=None)),
)
mutant(
    "alpha-not-normal",
    SCORED,
    "the weights given do not sum to 1",
    "weights",
    forward=outputs_as(lambda outs, a, c: [outs[0], scaled(outs[1], 1.00001)]),
)
mutant(
    "alpha-past-the-lengths",
    SCORED,
    "the weights given of keys that are not seen are not 0",
    "weights",
    forward=outputs_as(
        lambda outs, a, c: [outs[0], np.where(outs[1] == 0, outs[1].dtype.type(1e-3), outs[1])]
    ),
)  # fmt: skip
mutant(
    "hidden-not-back-propagated",
    "additive_attention",
    "the slope of tanh is taken as 1",
    "gradient",
    backward=lambda self, run, saved, given, needs: run(
        (saved[0], saved[1], 0 * saved[2], saved[3]), given, needs=needs._replace(v=False)
    )._replace(v=run(saved, given, needs=needs).v),
)
mutant(
    "w-transposed",
    "multiplicative_attention",
    "w is taken transposed where it is square",
    "value",
    forward=arrays_as(lambda a: a if a.w is None or a.w.shape[0] != a.w.shape[1] else a._replace(w=a.w.T)),
)

# --- the convolution family ---------------------------------------------------------------------------------

CONV = "causal_conv1d"


def turned_taps(w: Any) -> Any:
    return w[..., ::-1]


mutant(
    "taps-reversed",
    CONV,
    "the last tap stands on the earliest step",
    "value",
    forward=arrays_as(lambda a: a._replace(w=turned_taps(a.w))),
    backward=grads_as(lambda g: g.update(w=turned_taps(g["w"])) if "w" in g else None),
)


def denser(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    outputs, saved = run(a, config, needs=needs)
    taps, step = a.w.shape[2], config.dilation
    w = np.zeros((*a.w.shape[:2], (taps - 1) * step + 1), a.w.dtype)
    w[..., ::-1][..., np.arange(taps) * max(1, step - 1)] = turned_taps(a.w)
    (y, _), _ = run(a._replace(w=w), config._replace(dilation=1))
    return (y, *outputs[1:]), saved


mutant("dilation-off-by-one", CONV, "taps stand one step closer than they should", "dilation", forward=denser)
mutant(
    "dilation-ignored-in-dw",
    CONV,
    "the gradient of w is that of neighbouring steps",
    "gradient",
    backward=lambda self, run, saved, given, needs: run(saved, given, needs=needs)._replace(
        w=run((np.roll(saved[0], -1, axis=1), *saved[1:]), given, needs=needs).w
    ),
)
mutant(
    "left-ignored",
    CONV,
    "what stands before the first step is taken as 0",
    "chunk",
    forward=arrays_as(lambda a: a._replace(left=None)),
)


def without_the_old(outs: Any, a: Any, config: Any) -> Any:
    if a.left is None:
        return outs
    span, lengths = outs[1].shape[1], config.lengths
    for row in range(len(a.x)):
        length = a.x.shape[1] if lengths is None else int(lengths[row])
        outs[1][row, : max(0, span - length)] = 0
    return outs


mutant(
    "left-forgotten",
    CONV,
    "a chunk shorter than the context hands on zeros for what came before it",
    "chunk",
    forward=outputs_as(without_the_old),
)
mutant(
    "left-stale",
    CONV,
    "a chunk of one step hands its context on as it got it",
    "chunk",
    forward=outputs_as(
        lambda o, a, c: [o[0], a.left.copy()] if a.left is not None and a.x.shape[1] == 1 else o
    ),
)  # fmt: skip


def handed_on_at_the_end(self: Any, run: Any, a: Any, config: Any, needs: Any) -> Any:
    outputs, saved = run(a, config, needs=needs)
    return (outputs[0], run(a, config._replace(lengths=None))[0][1]), saved


mutant(
    "left-n-at-the-end", CONV, "left_n ends at T, whatever the row's length", "padding", forward=handed_on_at_the_end
)
mutant(
    "left-n-of-zero-length",
    CONV,
    "a row without a step hands on zeros",
    "padding",
    forward=outputs_as(lost_rows),
)
mutant(
    "conv-lengths-ignored",
    CONV,
    "pads are steps like others",
    "padding",
    forward=config_as(lambda c: c._replace(lengths=None)),
)


def bias_of_the_pads(self: Any, run: Any, saved: Any, given: Any, needs: Any) -> Any:
    grads = run(saved, given, needs=needs)
    return grads if grads.b is None or given.y is None else grads._replace(b=given.y.sum(axis=(0, 1)))


mutant("db-over-pads", CONV, "the gradient of b sums over the pads too", "padding", backward=bias_of_the_pads)


def swapped_groups(a: Any, config: Any) -> Any:
    parts = np.split(a.x, config.groups, axis=2)
    return a._replace(x=np.concatenate(parts[::-1], axis=2))


mutant(
    "groups-swapped",
    CONV,
    "the last group of outputs gets the first group of inputs",
    "groups",
    forward=lambda self, run, a, c, needs: run(swapped_groups(a, c), c, needs=needs),
)


def early(outs: Any, a: Any, config: Any) -> Any:
    y = outs[0]
    return [np.concatenate([y[:, 1:], y[:, -1:]], axis=1), outs[1]] if y.shape[1] > 1 else outs


mutant("one-step-early", CONV, "y[t] is of step t + 1", "causality", forward=outputs_as(early))


def last_tap_alone(w: Any) -> Any:
    alone = np.zeros_like(w)
    alone[..., -1:] = w[..., -1:]
    return alone


mutant(
    "dx-of-the-last-tap",
    CONV,
    "the gradient of x comes from the last tap alone",
    "difference",
    backward=lambda self, run, saved, given, needs: run(
        (saved[0], last_tap_alone(saved[1]), *saved[2:]), given, needs=needs
    ),
)
mutant(
    "cotangent-left-n-ignored",
    CONV,
    "the cotangent of left_n is ignored",
    "gradient",
    backward=cotangents_as(lambda g: g._replace(left_n=None)),
)
for name in ("w", "b", "left"):
    mutant(f"conv-zero-gradient-{name}", CONV, f"the gradient of {name} is 0", "difference", backward=zero(name))
mutant(
    "depthwise-past-16",
    CONV,
    "wrong where more than 16 channels are each on their own",
    "groups",
    forward=only_with(lambda a, c: c.groups == a.x.shape[2] > 16),
)


if __name__ == "__main__":
    print(table())
