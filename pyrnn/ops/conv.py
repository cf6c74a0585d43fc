"""The convolution family: causal_conv1d, over time and with a carried context."""

from __future__ import annotations

from typing import Any

from ..backend import Backend
from .declaration import Op
from .options import lengths, whole


def _groups_divide(arrays: Any, config: Any) -> None:
    inputs = arrays.x.shape[2]
    outputs, _, taps = arrays.w.shape
    if inputs % config.groups or outputs % config.groups:
        raise ValueError(f"groups: expected a divisor of Cin = {inputs} and of Cout = {outputs}, got {config.groups}")
    if not taps:
        raise ValueError("w: expected a kernel size K of at least 1, got 0")


CAUSAL_CONV1D = Op(
    "causal_conv1d",
    arrays={"x": "B T Cin", "w": "Cout Cin/groups K"},
    optional={"b": "Cout", "left": "B (K-1)·dilation Cin"},
    outputs={"y": "B T Cout", "left_n": "B (K-1)·dilation Cin"},
    state=("left",),
    options={"dilation": whole(1), "groups": whole(1, divides="Cin Cout"), "lengths": lengths()},
    derived={
        "Cin/groups": lambda sizes, config: sizes["Cin"] // config.groups,
        "(K-1)·dilation": lambda sizes, config: (sizes["K"] - 1) * config.dilation,
    },
    rule=_groups_divide,
)


@CAUSAL_CONV1D.public
def causal_conv1d(
    x: Any,
    w: Any,
    b: Any = None,
    left: Any = None,
    *,
    dilation: int = 1,
    groups: int = 1,
    lengths: Any = None,
    backend: str | Backend | None = None,
) -> Any:
    """Convolve over time, each output with its own and earlier inputs alone.

    That is y_t = b + Σ_k w_k x_(t - (K - 1 - k)·dilation). What stands before the first step is ``left``: the end of
    the sequence so far, where this one goes on.

    Parameters
    ----------
    x : array or Tensor, shape (B, T, Cin)
        The sequences, float32 or float64 like all arrays of the call.
    w : shape (Cout, Cin / groups, K)
        The kernel, its last tap on the present step, as PyTorch stores it.
    b : shape (Cout,), optional
    left : shape (B, (K - 1)·dilation, Cin), optional
        The inputs before the first step; zero by default.
    dilation : int
        Steps from one tap to the next.
    groups : int
        Groups of channels that have nothing to do with each other; Cin of them for a depthwise convolution.
    lengths : integers (B,), optional
        The valid steps of each row. A step past them is padding: its output and gradients are 0, and its
        content, NaN included, reaches nothing.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (B, T, Cout)
    left_n : shape (B, (K - 1)·dilation, Cin)
        The last inputs of each row up to its last valid step, those of ``left`` included: what the next call takes.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.

    References
    ----------
    van den Oord et al. (2016), "WaveNet: A Generative Model for Raw Audio"; Bai, Kolter, Koltun (2018), "An Empirical
    Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling".
    """
    return CAUSAL_CONV1D(x, w, b, left, dilation=dilation, groups=groups, lengths=lengths, backend=backend)
