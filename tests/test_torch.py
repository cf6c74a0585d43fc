"""PyTorch as a second oracle, where it is installed: values and gradients of random configurations."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Call, calls
from hypothesis import given

torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is an oracle here, never a requirement")


@pytest.mark.parametrize("backend", ["cython", "numba"])
@given(call=calls(dtypes=("float64",), batch=(1, 8), time=(1, 9), ragged=False))
def test_cells_agree_with_torch(backend: str, call: Call) -> None:
    if call.op == "gru" and not call.config["reset_after"]:
        call.config["reset_after"] = True  # the one form that PyTorch has
    B, _, I = call.arrays["x"].shape
    H = call.arrays["w_hh"].shape[1]
    options = {"nonlinearity": call.config["activation"]} if call.op == "rnn" else {}
    layer = getattr(torch.nn, call.op.upper())(I, H, batch_first=True, dtype=torch.float64, **options)
    t = {name: torch.tensor(array.copy(), requires_grad=True) for name, array in call.arrays.items()}
    bias_ih = t.get("b", torch.zeros(len(call.arrays["w_hh"]), dtype=torch.float64))
    zeros = torch.zeros(len(bias_ih) - H, dtype=torch.float64)
    bias_hh = torch.cat([zeros, t["b_hn"]]) if "b_hn" in t else torch.zeros_like(bias_ih)
    weights = {"weight_ih_l0": t["w_ih"], "weight_hh_l0": t["w_hh"], "bias_ih_l0": bias_ih, "bias_hh_l0": bias_hh}
    h0 = t.get("h0", torch.zeros(B, H, dtype=torch.float64))[None]
    state = (h0, t.get("c0", torch.zeros(B, H, dtype=torch.float64))[None]) if call.op == "lstm" else h0
    x = t["x"].flip(1) if call.config["reverse"] else t["x"]
    y, final = torch.func.functional_call(layer, weights, (x, state))
    y = y.flip(1) if call.config["reverse"] else y
    expected = [y, *(part[0] for part in (final if call.op == "lstm" else (final,)))]

    outputs, pullback = call.vjp(backend)
    cotangents = call.cotangents(outputs)
    for mine, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=0, atol=1e-12)
    sum((e * torch.tensor(v)).sum() for e, v in zip(expected, cotangents, strict=True)).backward()
    for name, grad in pullback(cotangents)._asdict().items():
        if grad is not None:
            np.testing.assert_allclose(grad, t[name].grad.numpy(), rtol=1e-10, atol=1e-11, err_msg=name)
