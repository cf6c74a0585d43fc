"""The recurrent cells as scalar loops in Python floats: an oracle that shares nothing with the package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def logistic(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def dot(row: Any, vector: list[float]) -> float:
    return sum(float(w) * v for w, v in zip(row, vector, strict=True))


def run(op: str, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return y and the final state(s) of a call, in float64."""
    x, w_ih, w_hh = arrays["x"], arrays["w_ih"], arrays["w_hh"]
    B, T, _ = x.shape
    H = w_hh.shape[1]
    lengths = config.get("lengths")
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    y = np.zeros((B, T, H))
    h_n, c_n = np.zeros((B, H)), np.zeros((B, H))
    for row in range(B):
        h = [float(v) for v in arrays["h0"][row]] if "h0" in arrays else [0.0] * H
        c = [float(v) for v in arrays["c0"][row]] if "c0" in arrays else [0.0] * H
        steps = range(lengths[row])
        for t in reversed(steps) if config.get("reverse") else steps:
            inputs = [float(v) for v in x[row, t]]

            def gate(g: int, state: list[float], j: int, inputs: list[float] = inputs) -> tuple[float, float]:
                bias = float(arrays["b"][g * H + j]) if "b" in arrays else 0.0
                return bias + dot(w_ih[g * H + j], inputs), dot(w_hh[g * H + j], state)

            if op == "rnn":
                total = [sum(gate(0, h, j)) for j in range(H)]
                h = [math.tanh(v) if config["activation"] == "tanh" else max(v, 0.0) for v in total]
            elif op == "lstm":
                i, f, g, o = ([sum(gate(k, h, j)) for j in range(H)] for k in range(4))
                c = [logistic(f[j]) * c[j] + logistic(i[j]) * math.tanh(g[j]) for j in range(H)]
                h = [logistic(o[j]) * math.tanh(c[j]) for j in range(H)]
            else:
                r, z = ([logistic(sum(gate(k, h, j))) for j in range(H)] for k in range(2))
                n = []
                for j in range(H):
                    if config.get("reset_after", True):
                        from_x, from_h = gate(2, h, j)
                        from_h += float(arrays["b_hn"][j]) if "b_hn" in arrays else 0.0
                        n.append(math.tanh(from_x + r[j] * from_h))
                    else:
                        n.append(math.tanh(sum(gate(2, [a * b for a, b in zip(r, h, strict=True)], j))))
                h = [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)]
            y[row, t] = h
        h_n[row], c_n[row] = h, c
    return {"y": y, "h_n": h_n, "c_n": c_n} if op == "lstm" else {"y": y, "h_n": h_n}
