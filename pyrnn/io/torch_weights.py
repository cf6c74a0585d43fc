"""Weights from and to PyTorch's state_dicts, which are mappings of names to arrays; torch is not imported.

The names are the same, those of attention (``MultiheadAttention``) and of Transformer layers too, but for the biases of
the recurrent layers, of which PyTorch has two, and for weight norm, which it writes in two ways:

==================================  ==============================================================
PyTorch                             pyrnn
==================================  ==============================================================
bias_ih + bias_hh                   bias
GRU: of their candidate's part      bias_ih to bias, bias_hh to bias_hn (the reset gate scales it)
parametrizations.weight.original0   weight_g
parametrizations.weight.original1   weight_v
==================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._checks import describe_array, refuse_misfits
from ..nn import GRU, LSTM, RNN, CausalConv1d, Module, MultiHeadAttention
from ..nn.tcn import TemporalBlock
from .tree import to_host


class Bias(NamedTuple):
    """A bias of ours that is two of PyTorch's: the names, and whether its layer is a GRU."""

    bias: str
    bias_hn: str
    bias_ih: str
    bias_hh: str
    gru: bool


def load_torch_state_dict(model: Module, mapping: Mapping[str, Any]) -> None:
    """Load the weights of a PyTorch model of the same structure.

    RNN, LSTM, GRU, MultiHeadAttention, TransformerEncoderLayer and TransformerDecoderLayer, Transformer (PyTorch's
    TransformerEncoder), Linear, Embedding, LayerNorm and CausalConv1d (of a Conv1d, with weight norm or without) fit,
    nested as in `Sequential` or in a class of your own: the names of their parameters must be those of the modules in
    PyTorch. A `TCN` has the names of its authors' implementation.

    Parameters
    ----------
    model : Module
        Its parameters are written in place.
    mapping : mapping of str to array
        ``torch_model.state_dict()``, or NumPy arrays of those names. Of the model's dtype.

    Raises
    ------
    ValueError
        If an array is missing, unexpected, or of another shape or dtype: the message names every one of them.
        Or if the model has what PyTorch has not: a GRU with ``reset_after=False``, a learned initial state, attention
        with fewer heads of keys than of queries or with ``positions``. Nothing is loaded then.

    Examples
    --------
    >>> load_torch_state_dict(model, torch.load("weights.pt", weights_only=True))  # doctest: +SKIP
    """
    own = model.state_dict()
    mapping = _renamed(model, mapping)
    biases = list(_biases(model, own))
    problems = _obstacles(model)
    wanted = dict(own)
    for bias in biases:
        wanted.pop(bias.bias_hn, None)
        wanted[bias.bias_ih] = wanted[bias.bias_hh] = wanted.pop(bias.bias)

    given: dict[str, NDArray[Any]] = {}
    for name, value in mapping.items():
        if name not in wanted:
            problems.append(f"unexpected: {name}{_hint(name)}")
            continue
        try:
            array = np.asarray(value)
        except Exception as error:  # whatever the array's own library raises: it names no tensor
            is_half = "float16" in str(getattr(value, "dtype", ""))  # bfloat16, which NumPy does not have
            problems.append(
                f"{name}: NumPy can't take it: {error}" + (f"; {_cast(wanted[name].dtype)}" if is_half else "")
            )
            continue
        problem = _misfit(wanted[name], array)
        if problem:
            problems.append(f"{name}: {problem}")
        given[name] = array
    problems += [f"missing: {name}, {describe_array(array)}" for name, array in wanted.items() if name not in mapping]
    refuse_misfits("mapping", model, problems)

    for bias in biases:
        bias_ih, bias_hh = given.pop(bias.bias_ih), given.pop(bias.bias_hh)
        if bias.gru:
            candidate = len(bias_hh) // 3 * 2
            given[bias.bias_hn] = bias_hh[candidate:]
            bias_hh = np.concatenate([bias_hh[:candidate], np.zeros_like(bias_hh[candidate:])])
        given[bias.bias] = bias_ih + bias_hh
    model.load_state_dict(given)


def to_torch_state_dict(model: Module) -> dict[str, NDArray[Any]]:
    """Return the weights as PyTorch's modules name them.

    Of the two biases of a recurrent layer ``bias_ih`` has ours and ``bias_hh`` zeros, but for the GRU's
    candidate.

    Parameters
    ----------
    model : Module
        As in `load_torch_state_dict`.

    Returns
    -------
    dict of str to ndarray
        New arrays. ``{name: torch.from_numpy(array) for name, array in ...}`` is what PyTorch's
        ``load_state_dict`` takes.

    Raises
    ------
    ValueError
        If the model has what PyTorch has not: a GRU with ``reset_after=False``, a learned initial state, attention
        with fewer heads of keys than of queries or with ``positions``.
    """
    problems = _obstacles(model)
    if problems:
        raise ValueError(f"model: PyTorch can't express this {type(model).__name__}:\n  " + "\n  ".join(problems))
    result = {name: to_host(array) for name, array in model.state_dict().items()}
    for bias in _biases(model, result):
        bias_ih = result[bias.bias_ih] = result.pop(bias.bias)
        bias_hh = result[bias.bias_hh] = np.zeros_like(bias_ih)
        if bias.gru:
            bias_hh[len(bias_hh) // 3 * 2 :] = result.pop(bias.bias_hn)
    return result


def _named(model: Module, *kinds: type[Module]) -> Iterator[tuple[str, Any]]:
    """Go through the layers of some classes with what their parameters' names begin with."""
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            yield f"{name}." if name else "", module


def _biases(model: Module, names: Mapping[str, Any]) -> Iterator[Bias]:
    for prefix, layer in _named(model, RNN, LSTM, GRU):
        for k in range(layer.num_layers):
            for suffix in (f"l{k}", f"l{k}_reverse"):
                bias, bias_hn, bias_ih, bias_hh = (
                    f"{prefix}{kind}_{suffix}" for kind in ("bias", "bias_hn", "bias_ih", "bias_hh")
                )
                if bias in names:
                    yield Bias(bias, bias_hn, bias_ih, bias_hh, isinstance(layer, GRU))


def _renamed(model: Module, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with our names of convolutions, each of their arrays once."""
    names = {}
    for prefix, module in _named(model, CausalConv1d):
        if module.weight_norm:
            for kind, number in (("weight_g", 0), ("weight_v", 1)):
                names[f"{prefix}parametrizations.weight.original{number}"] = f"{prefix}{kind}"
    renamed = {names.get(name, name): value for name, value in mapping.items()}
    # The authors' blocks hold their convolutions a second time, in a Sequential.
    for prefix, _ in _named(model, TemporalBlock):
        for conv, again in (("conv1", "net.0"), ("conv2", "net.4")):
            for name in [name for name in renamed if name.startswith(f"{prefix}{again}.")]:
                value = renamed.pop(name)
                name = name.replace(f"{prefix}{again}.", f"{prefix}{conv}.", 1)
                renamed.setdefault(names.get(name, name), value)
    return renamed


def _obstacles(model: Module) -> list[str]:
    """Return a line for each layer that PyTorch has no equal of."""
    lines = []
    for prefix, layer in _named(model, RNN, LSTM, GRU):
        what = f"{prefix.rstrip('.') or 'model'}, a {type(layer).__name__}"
        if layer.learn_initial_state:
            lines.append(f"{what}: has a learned initial state, and PyTorch's layers have none")
        if isinstance(layer, GRU) and not layer.reset_after:
            lines.append(f"{what}: has reset_after=False, and PyTorch's GRU resets after the product")
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            heads, what = module.heads, f"{name or 'model'}, a MultiHeadAttention"
            if heads.num_kv_heads != heads.num_heads:
                lines.append(f"{what}: has num_kv_heads={heads.num_kv_heads}, and PyTorch's has as many as num_heads")
            if heads.positions is not None:
                lines.append(f"{what}: has positions={heads.positions!r}, and PyTorch's has none")
    return lines


def _hint(name: str) -> str:
    last = name.rpartition(".")[2]
    if last.startswith("weight_hr_"):
        return " (a projection, proj_size in PyTorch, which the layers here do not have)"
    if last in ("weight_g", "weight_v") or ".parametrizations.weight." in f".{name}":
        return " (weight norm: was the model built with weight_norm=False?)"
    if last in ("bias_k", "bias_v"):
        return " (add_bias_kv in PyTorch, which the layers here do not have)"
    if last.startswith("bias_"):
        return " (was the model built with bias=False, or fewer layers or directions?)"
    return ""


def _misfit(wanted: Any, array: NDArray[Any]) -> str:
    if array.shape != wanted.shape:
        return f"expected {describe_array(wanted)}, got {describe_array(array)}"
    if array.dtype != wanted.dtype:
        fix = _cast(wanted.dtype)
        if array.dtype in ("float32", "float64"):
            fix += f' or build the model with dtype="{array.dtype}"'
        return f"expected {wanted.dtype}, got {array.dtype}; {fix}"
    return ""


def _cast(dtype: Any) -> str:
    method = "float" if dtype == np.float32 else "double"
    return f"cast it with .{method}() in PyTorch or .astype(numpy.{dtype}) in NumPy"
