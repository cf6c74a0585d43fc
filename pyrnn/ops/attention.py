"""The attention family: by heads, and the additive and multiplicative ones that give their weights as well."""

from __future__ import annotations

from typing import Any

from ..backend import Backend
from .declaration import Op
from .options import flag, lengths, number, positions, probability, seed, window
from .options import mask as mask_option


def _heads_and_seed(arrays: Any, config: Any) -> None:
    heads, shared = arrays.q.shape[1], arrays.k.shape[1]
    if heads != shared and (not shared or heads % shared):
        raise ValueError(f"q: expected a number of heads Hq that is a multiple of Hkv = {shared}, got {heads}")
    if config.dropout and config.seed is None:
        raise ValueError("seed: expected a whole number with dropout > 0, got None")


def _same_features(arrays: Any, config: Any) -> None:
    query, keys = arrays.query.shape[2], arrays.keys.shape[2]
    if arrays.w is None and query != keys:
        raise ValueError(f"keys: expected Dk = Dq = {query} without w, got {keys}")


ATTENTION = Op(
    "attention",
    arrays={"q": "B Hq N D", "k": "B Hkv M D", "v": "B Hkv M Dv"},
    optional={"bias": "B? Hq? N? M?"},
    outputs={"y": "B Hq N Dv"},
    options={
        "causal": flag(False),
        "window": window(),
        "mask": mask_option("B? Hq? N? M?"),
        "scale": number(None),
        "lengths": lengths("M"),
        "q_lengths": lengths("N"),
        "q_start": positions(lambda sizes: sizes["M"] - sizes["N"]),
        "dropout": probability(),
        "seed": seed(),
    },
    rule=_heads_and_seed,
)
ADDITIVE = Op(
    "additive_attention",
    arrays={"query": "B N Dq", "keys": "B M Dk", "values": "B M Dv", "w_query": "A Dq", "w_key": "A Dk", "v": "A"},
    outputs={"ctx": "B N Dv", "alpha": "B N M"},
    options={"mask": mask_option("B? N? M?"), "lengths": lengths("M")},
)
MULTIPLICATIVE = Op(
    "multiplicative_attention",
    arrays={"query": "B N Dq", "keys": "B M Dk", "values": "B M Dv"},
    optional={"w": "Dq Dk"},
    outputs={"ctx": "B N Dv", "alpha": "B N M"},
    options={"scale": number(1.0), "mask": mask_option("B? N? M?"), "lengths": lengths("M")},
    rule=_same_features,
)


@ATTENTION.public
def attention(
    q: Any,
    k: Any,
    v: Any,
    bias: Any = None,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    scale: float | None = None,
    lengths: Any = None,
    q_lengths: Any = None,
    q_start: Any = None,
    dropout: float = 0.0,
    seed: int | None = None,
    backend: str | Backend | None = None,
) -> Any:
    """Attend by heads: y = softmax(scale · q kᵀ + bias) v, in memory that grows with N + M and not with N · M.

    Query i of a row stands at position p = q_start + i, key j at position j. The query may attend to the key where
    j < lengths, ``mask`` is True, and p - left <= j <= p + right. What it may not attend to reaches nothing, be it NaN;
    a query that may attend to nothing gives zeros, and zero gradients.

    Parameters
    ----------
    q : array or Tensor, shape (B, Hq, N, D)
        The queries, float32 or float64 like all arrays of the call.
    k, v : shape (B, Hkv, M, D) and (B, Hkv, M, Dv)
        Keys and values. Hq is a multiple of Hkv: that many heads of queries share a head of keys (grouped queries).
    bias : broadcast to (B, Hq, N, M), optional
        Added to the scores, as ALiBi's slopes or a learned relative position are. Where it is -inf a query may not
        attend to a key.
    causal : bool
        A query attends to no key after its own position: right is 0.
    window : (left, right), optional
        How far before and after its own position a query attends; None is no limit.
    mask : booleans, broadcast to (B, Hq, N, M), optional
        True where a query may attend to a key.
    scale : float, optional
        1 / √D by default.
    lengths : integers (B,), optional
        The valid keys of each row.
    q_lengths : integers (B,), optional
        The valid queries of each row; past them the output is 0.
    q_start : int or integers (B,), optional
        The position of the first query; M - N by default, so that the last query stands at the last key. ``lengths``
        has no part in it: with a cache it is the number of keys before the first query.
    dropout : float
        The share of weights that are dropped; the others grow by 1 / (1 - dropout).
    seed : int, optional
        Of the dropout, asked for if there is one. Whether a weight is dropped depends on seed, row, head, position
        of the query and key alone: on every backend, in any chunking, forward and backward.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (B, Hq, N, Dv)

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.

    References
    ----------
    Vaswani et al. (2017), "Attention Is All You Need"; Ainslie et al. (2023), "GQA"; Dao et al. (2022),
    "FlashAttention"; Salmon et al. (2011), "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox).
    """
    return ATTENTION(
        q, k, v, bias,
        causal=causal, window=window, mask=mask, scale=scale, lengths=lengths, q_lengths=q_lengths, q_start=q_start,
        dropout=dropout, seed=seed, backend=backend,
    )  # fmt: skip


@ADDITIVE.public
def additive_attention(
    query: Any,
    keys: Any,
    values: Any,
    w_query: Any,
    w_key: Any,
    v: Any,
    *,
    mask: Any = None,
    lengths: Any = None,
    backend: str | Backend | None = None,
) -> Any:
    """Attend by a small network (Bahdanau): alpha = softmax(vᵀ tanh(W_q query + W_k key)), ctx = alpha · values.

    Parameters
    ----------
    query : array or Tensor, shape (B, N, Dq)
        float32 or float64, like all arrays of the call.
    keys, values : shape (B, M, Dk) and (B, M, Dv)
    w_query, w_key : shape (A, Dq) and (A, Dk)
    v : shape (A,)
    mask : booleans, broadcast to (B, N, M), optional
        True where a query may attend to a key; what it may not attend to reaches nothing.
    lengths : integers (B,), optional
        The valid keys of each row.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    ctx : shape (B, N, Dv)
        Zeros where a query may attend to nothing.
    alpha : shape (B, N, M)
        The weights.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.

    References
    ----------
    Bahdanau, Cho, Bengio (2015), "Neural Machine Translation by Jointly Learning to Align and Translate".
    """
    return ADDITIVE(query, keys, values, w_query, w_key, v, mask=mask, lengths=lengths, backend=backend)


@MULTIPLICATIVE.public
def multiplicative_attention(
    query: Any,
    keys: Any,
    values: Any,
    w: Any = None,
    *,
    scale: float = 1.0,
    mask: Any = None,
    lengths: Any = None,
    backend: str | Backend | None = None,
) -> Any:
    """Attend by products (Luong): alpha = softmax(scale · queryᵀ W key), ctx = alpha · values.

    Without ``w`` it is Luong's "dot" score, with it "general"; a ``scale`` of 1 / √Dk makes either "scaled".

    Parameters
    ----------
    query : array or Tensor, shape (B, N, Dq)
        float32 or float64, like all arrays of the call.
    keys, values : shape (B, M, Dk) and (B, M, Dv)
    w : shape (Dq, Dk), optional
        Without it Dq is to be Dk.
    scale : float
    mask : booleans, broadcast to (B, N, M), optional
        True where a query may attend to a key; what it may not attend to reaches nothing.
    lengths : integers (B,), optional
        The valid keys of each row.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    ctx : shape (B, N, Dv)
        Zeros where a query may attend to nothing.
    alpha : shape (B, N, M)
        The weights.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.

    References
    ----------
    Luong, Pham, Manning (2015), "Effective Approaches to Attention-based Neural Machine Translation".
    """
    return MULTIPLICATIVE(query, keys, values, w, scale=scale, mask=mask, lengths=lengths, backend=backend)
