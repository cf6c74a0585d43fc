"""pyrnn.io: what is saved comes back to the bit; what is broken is refused, and changes nothing."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import re
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pyrnn import data, io, nn, optim
from pyrnn.io import architecture, container, strict_json, tree

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])
sizes = st.integers(1, 5)
probabilities = st.sampled_from([0.0, 0.25, 0.9])


def noise(rng: np.random.Generator, *shape: int, dtype: Any = "float32") -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


def bits(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property, each of which writes its file anew."""
    return tmp_path_factory.mktemp("io")


# --- models ------------------------------------------------------------------------------------------------


@st.composite
def recurrent(draw: st.DrawFn, inputs: int, dtype: str) -> nn.Module:
    kind = draw(st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "dropout": draw(probabilities),
        "bias": draw(st.booleans()),
        "learn_initial_state": draw(st.booleans()),
        "recurrent_init": draw(st.sampled_from(["uniform", "orthogonal"])),
    }
    if kind is nn.RNN:
        options["activation"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind is nn.GRU:
        options["reset_after"] = draw(st.booleans())
    if kind is nn.LSTM and options["bias"]:
        options["forget_bias"] = draw(st.sampled_from([0.0, 1.0]))
    return kind(inputs, draw(sizes), dtype=dtype, rng=draw(seeds), **options)


@st.composite
def models(draw: st.DrawFn, nested: bool = True) -> tuple[nn.Sequential, str, int]:
    """A model of up to four layers, with its dtype and its number of inputs."""
    dtype = draw(dtypes)
    inputs = features = draw(sizes)
    layers: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from(["recurrent", "linear", "norm", "other", "nest"]), max_size=4)):
        if kind == "recurrent":
            layer = draw(recurrent(features, dtype))
            features = layer.config["hidden_size"] * (2 if layer.config["bidirectional"] else 1)
        elif kind == "linear":
            layer = nn.Linear(features, draw(sizes), bias=draw(st.booleans()), dtype=dtype, rng=draw(seeds))
            features = layer.out_features
        elif kind == "norm":
            layer = nn.LayerNorm(features, draw(st.sampled_from([1e-5, 0.1])), dtype=dtype)
        elif kind == "nest":
            layer = nn.Sequential(nn.Linear(features, features, dtype=dtype, rng=draw(seeds)), nn.ReLU())
        else:
            layer = draw(st.sampled_from([nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Dropout(0.3), nn.Sequential()]))
            layer = copy.deepcopy(layer)
        layers.append(layer)
    return nn.Sequential(*layers), dtype, inputs


@given(models(), seeds)
def test_a_model_comes_back_to_the_bit(folder: Path, drawn: tuple[nn.Sequential, str, int], seed: int) -> None:
    model, dtype, inputs = drawn
    io.save(model, folder / "model.safetensors")
    loaded = io.load(folder / "model.safetensors")
    assert strict_json.dump(loaded.architecture()) == strict_json.dump(model.architecture())
    assert bits(loaded.state_dict()) == bits(model.state_dict())
    x = noise(np.random.default_rng(seed), 2, 4, inputs, dtype=dtype)
    assert same(loaded.predict(x, lengths=[4, 2]), model.predict(x, lengths=[4, 2]))


def test_an_embedding_comes_back(tmp_path: Path) -> None:
    model = nn.Embedding(7, 3, dtype="float64", rng=0)
    io.save(model, tmp_path / "m")
    x = np.array([[1, 6]])
    np.testing.assert_array_equal(io.load(tmp_path / "m").predict(x), model.weight.data[x])


@pytest.mark.parametrize("name", sorted(set(nn.REGISTRY) - {"Sequential"}))
def test_every_class_that_a_file_may_name_says_its_shapes(name: str) -> None:
    sizes: dict[str, Any] = {
        "LearnedPositions": {"max_length": 3, "embedding_dim": 2},
        "MultiHeadAttention": {"embed_dim": 8, "num_heads": 4, "num_kv_heads": 2, "kdim": 3},
        "SinusoidalPositions": {"embedding_dim": 3},
        "Transformer": {"num_layers": 2, "d_model": 4, "nhead": 2, "dim_feedforward": 3, "final_norm": True},
        "TransformerDecoderLayer": {"d_model": 4, "nhead": 2, "dim_feedforward": 3},
        "TransformerEncoderLayer": {"d_model": 4, "nhead": 2, "dim_feedforward": 3},
        "Linear": {"in_features": 2, "out_features": 3},
        "Embedding": {"num_embeddings": 2, "embedding_dim": 3},
        "LayerNorm": {"normalized_shape": 2},
        "CausalConv1d": {"in_channels": 2, "out_channels": 3, "kernel_size": 2, "weight_norm": True},
        "TCN": {"input_size": 2, "num_channels": [3, 3]},
        "WaveNet": {"input_size": 1, "residual_channels": 2, "skip_channels": 3, "output_size": 2, "num_layers": 2},
    }
    recurrent = {"input_size": 2, "hidden_size": 3, "num_layers": 2, "learn_initial_state": True}
    layer = nn.REGISTRY[name](**sizes.get(name, recurrent if name in ("RNN", "LSTM", "GRU") else {}))
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    assert dict(layer.parameter_shapes(layer.config)) == shapes
    architecture.check(layer.architecture(), {n: container.TensorInfo("float32", shape) for n, shape in shapes.items()})


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LSTM(2, 3, rng=0), nn.Linear(3, 1, rng=0))
    io.save(model, tmp_path / "m.safetensors")
    assert bits(load_file(tmp_path / "m.safetensors")) == bits(model.state_dict())


def test_one_model_gives_one_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LSTM(2, 3, rng=0), nn.Linear(3, 1, rng=0))
    for name in ("a", "b"):
        io.save(model, tmp_path / name, metadata={"x": 1.5, "y": np.arange(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_of_any_layout_are_saved_by_value(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    transposed, reverse, swapped = array.T, array[:, ::-1], array.astype(">f8")
    io.save(nn.Tanh(), tmp_path / "m", metadata={"all": [transposed, reverse, swapped]})
    for back, original in zip(io.read_metadata(tmp_path / "m")["all"], (transposed, reverse, swapped), strict=True):
        np.testing.assert_array_equal(back, original)


class Own(nn.Module):
    def __init__(self, hidden_size: int = 3) -> None:
        self.gru = nn.GRU(2, hidden_size, rng=0)
        self.scale = nn.Parameter(np.ones(2))


def test_a_class_of_ones_own_is_saved_by_its_state(tmp_path: Path) -> None:
    model = Own()
    model.scale.write()[...] = [2, 3]
    io.save(model, tmp_path / "m", metadata={"unit": "ppm"})
    with pytest.raises(io.FileError, match=r"of a 'Own' and no architecture.*load\(path, model\)"):
        io.load(tmp_path / "m")
    other = Own()
    assert io.load(tmp_path / "m", other) is other
    assert bits(other.state_dict()) == bits(model.state_dict())
    assert io.read_metadata(tmp_path / "m") == {"unit": "ppm"}


def test_a_model_that_does_not_fit_stays_as_it_is(tmp_path: Path) -> None:
    io.save(Own(), tmp_path / "m")
    other = Own(hidden_size=4)
    del other.scale
    before = bits(other.state_dict())
    with pytest.raises(io.FileError) as caught:
        io.load(tmp_path / "m", other)
    assert "unexpected: scale, float64 of shape (2,)" in str(caught.value)
    assert "gru.weight_hh_l0: expected float32 of shape (12, 4), got float32 of shape (9, 3)" in str(caught.value)
    assert bits(other.state_dict()) == before
    with pytest.raises(TypeError, match=r"model: expected a pyrnn.nn.Module, got a str"):
        io.load(tmp_path / "m", "model")  # type: ignore[call-overload]


@pytest.mark.parametrize("change", ["shared", "added"])
def test_what_an_architecture_can_not_tell_is_saved_without_one(tmp_path: Path, change: str) -> None:
    def build() -> nn.Sequential:
        layer = nn.Linear(2, 2, rng=0)
        model = nn.Sequential(layer, layer if change == "shared" else nn.Tanh())
        if change == "added":
            model.gain = nn.Parameter(np.ones(2))  # type: ignore[attr-defined]
        return model

    model = build()
    io.save(model, tmp_path / "m")
    with pytest.raises(io.FileError, match="no architecture"):
        io.load(tmp_path / "m")
    assert bits(io.load(tmp_path / "m", build()).state_dict()) == bits(model.state_dict())


# --- metadata ----------------------------------------------------------------------------------------------

arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.sampled_from(list(container.DTYPES.values())),
    st.sampled_from([(), (0,), (3,), (2, 0), (2, 3)]),
    seeds,
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.floats(width=32, allow_nan=False).map(np.float32)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | st.booleans().map(np.bool_)
)
keys = st.text().filter(lambda key: not key.startswith("$"))
values = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, in type too, and arrays to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return bits({"": a}) == bits({"": b})
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and str(a) == str(b)  # -0.0 and 0.0 are equal


@given(st.dictionaries(keys, values, max_size=5))
def test_metadata_comes_back_as_it_was(folder: Path, metadata: dict[str, Any]) -> None:
    io.save(nn.Tanh(), folder / "metadata", metadata=metadata)
    assert same(io.read_metadata(folder / "metadata"), metadata)
    assert isinstance(io.load(folder / "metadata"), nn.Tanh)


def test_metadata_may_be_nan(tmp_path: Path) -> None:
    io.save(nn.Tanh(), tmp_path / "m", metadata={"a": float("nan"), "b": np.float32("nan")})
    back = io.read_metadata(tmp_path / "m")
    assert np.isnan(back["a"]) and np.isnan(back["b"]) and type(back["b"]) is np.float32


def test_no_metadata_is_an_empty_dict(tmp_path: Path) -> None:
    io.save(nn.Tanh(), tmp_path / "m")
    assert io.read_metadata(tmp_path / "m") == {}


def test_arrays_whose_names_would_be_the_same_are_kept_apart(tmp_path: Path) -> None:
    metadata = {"a.b": np.zeros(2), "a": {"b": np.ones(2)}}
    io.save(nn.Tanh(), tmp_path / "m", metadata=metadata)
    assert same(io.read_metadata(tmp_path / "m"), metadata)


def test_metadata_is_read_without_the_model(tmp_path: Path) -> None:
    io.save(nn.Linear(1000, 1000, rng=0), tmp_path / "m", metadata={"mean": np.ones(3)})
    assert peak(lambda: io.read_metadata(tmp_path / "m")) < 500_000


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"a": [1, {2}]}, TypeError, r"\$metadata.a.1: expected .*, got a set"),
        ({"a": np.array(["x"])}, TypeError, r"\$metadata.a: expected .*, got a ndarray of <U1"),
        ({"a": np.ma.masked_array([1.0])}, TypeError, r"\$metadata.a: expected .*, got a MaskedArray"),
        ({"a": {1: 2}}, ValueError, r"\$metadata.a: expected keys that are strings .*, got 1"),
        ({"$a": 2}, ValueError, "do not begin with '\\$', got '\\$a'"),
        ({"a": "x" * (container.MAX_HEADER + 1)}, ValueError, "not written.* over the limit"),
        ([1], TypeError, "metadata: expected a mapping, got a list"),
    ],
)
def test_metadata_that_can_not_be_stored(tmp_path: Path, metadata: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        io.save(nn.Tanh(), tmp_path / "m", metadata=metadata)
    assert os.listdir(tmp_path) == []


def test_metadata_that_holds_itself(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {}
    metadata["a"] = metadata
    with pytest.raises(ValueError, match="nested deeper than"):
        io.save(nn.Tanh(), tmp_path / "m", metadata=metadata)


# --- writing -----------------------------------------------------------------------------------------------


def fail(*_: Any, **__: Any) -> None:
    raise SafetensorError("no space left")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", [fail, interrupt])
@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "pyrnn.io.container.save_file"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_failed_save_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    how: Callable[..., None],
    before: bytes | None,
) -> None:
    target = tmp_path / "m"
    if before is not None:
        target.write_bytes(before)
    monkeypatch.setattr(where, how)
    with pytest.raises((SafetensorError, KeyboardInterrupt)):
        io.save(nn.Linear(2, 3, rng=0), target)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ([] if before is None else ["m"])
    assert before is None or target.read_bytes() == before


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    deep: nn.Module = nn.Tanh()
    for _ in range(strict_json.MAX_DEPTH):
        deep = nn.Sequential(deep)
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"m: not written.* nested deeper than"):
        io.save(deep, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == b"old" and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_those_that_open_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        io.save(nn.Tanh(), tmp_path / "new")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    io.save(nn.Tanh(), tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "m")
    io.save(nn.Tanh(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert isinstance(io.load(tmp_path / "there" / "m"), nn.Tanh)


def test_a_path_may_be_a_string_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    io.save(nn.Tanh(), "m")
    assert isinstance(io.load("m"), nn.Tanh) and os.listdir() == ["m"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(OSError, match="expected a file, or none yet"):
        io.save(nn.Tanh(), tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


def test_files_that_are_not_there_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        io.save(nn.Tanh(), tmp_path / "no" / "m")
    with pytest.raises(TypeError, match=r"model: expected a pyrnn.nn.Module, got a dict"):
        io.save({}, tmp_path / "m")  # type: ignore[arg-type]


# --- broken files ------------------------------------------------------------------------------------------


def peak(function: Callable[[], Any]) -> int:
    """Most bytes that were allocated at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.GRU(1, 2, dropout=0.5, rng=0), nn.Linear(2, 1, dtype="float32", rng=0))


def changed_parts(good: bytes) -> Iterator[tuple[int, bytes]]:
    """The file with one byte changed, for each byte: its lowest bit (a digit for another), one more, all."""
    for position in range(len(good)):
        for mask in (1, 2 << position % 7, 255):
            yield position, good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :]


def test_a_changed_byte_is_noticed_or_is_in_an_array(tmp_path: Path) -> None:
    model, metadata = small_model(), {"mean": 1.5, "names": ["a"], "std": np.array([2.0])}
    path = tmp_path / "m"
    io.save(model, path, metadata=metadata)
    good = path.read_bytes()
    data_begins = 8 + int.from_bytes(good[:8], "little")
    refused = 0

    def read_all() -> None:
        nonlocal refused
        for position, bad in changed_parts(good):
            path.write_bytes(bad)
            try:
                loaded, read = io.load(path), io.read_metadata(path)
            except io.FileError:
                refused += 1
                assert position < data_begins
                continue
            assert loaded.architecture() == model.architecture()
            if position < data_begins:  # one white space for another
                assert same(read, metadata) and bits(loaded.state_dict()) == bits(model.state_dict())

    assert peak(read_all) < 5_000_000
    assert refused > 0.98 * 3 * data_begins


def test_a_file_that_is_cut_off_or_goes_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    io.save(small_model(), path)
    good = path.read_bytes()
    for bad in [*(good[:length] for length in range(len(good))), good + b"\0", good * 2]:
        path.write_bytes(bad)
        with pytest.raises(io.FileError):
            io.load(path)


def craft(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def document(**changes: Any) -> dict[str, str]:
    """The metadata of a model's file, with a right checksum."""
    content = {"format": 1, "kind": "model", "class": "X", "architecture": None, "metadata": {}} | changes
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {"pyrnn": json.dumps(content | {"crc32": zlib.crc32(text.encode())})}


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LINEAR = {"in_features": 3, "out_features": 2, "bias": False, "dtype": "float32"}
LSTM = {
    "input_size": 3,
    "hidden_size": 2,
    "num_layers": 1,
    "bidirectional": False,
    "dropout": 0.0,
    "bias": True,
    "dtype": "float32",
    "learn_initial_state": False,
}


def linear(**changes: Any) -> dict[str, Any]:
    return {"class": "Linear", "config": LINEAR | changes}


def lstm(**changes: Any) -> dict[str, Any]:
    return {"class": "LSTM", "config": LSTM | changes}


def deep(levels: int) -> Any:
    result: Any = linear()
    for _ in range(levels):
        result = {"class": "Sequential", "config": {"layers": [result]}}
    return result


def test_the_crafted_file_is_good_before_it_is_made_bad(tmp_path: Path) -> None:
    craft(tmp_path / "m", {"__metadata__": document(architecture=linear()), "weight": entry()}, b"\0" * 24)
    assert io.load(tmp_path / "m").architecture() == linear()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper"),
        (b"[]", "should be a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
        ({"__metadata__": 1}, "__metadata__ should be"),
        ({"weight": entry()}, "not written by pyrnn.*load_torch_state_dict"),
        ({"weight": [1]}, "the entry 'weight' should be"),
        ({"weight": entry() | {"more": 1}}, "should have dtype, shape and data_offsets"),
        ({"weight": entry(dtype="F8")}, "the dtype of 'weight' should be one of .*, and is 'F8'"),
        ({"weight": entry(dtype=["F32"])}, "the dtype of 'weight'"),
        ({"weight": entry(shape=6)}, "the shape of 'weight'"),
        ({"weight": entry(shape=[-2, -3])}, "the shape of 'weight'"),
        ({"weight": entry(shape=[2.0, 3.0])}, "the shape of 'weight'"),
        ({"weight": entry(shape=[2, 3, True])}, "the shape of 'weight'"),
        ({"weight": entry(shape=[1] * 65)}, "the shape of 'weight'"),
        ({"weight": entry(shape=[0, 10**30], offsets=[0, 0])}, "the shape of 'weight'"),
        ({"weight": entry(shape=[2, 2])}, "takes 16 bytes, and has 24"),
        ({"weight": entry(shape=[10**9, 10**9])}, "takes 4000000000000000000 bytes"),
        ({"weight": entry(dtype="F64")}, "takes 48 bytes"),
        ({"weight": entry(offsets=[0])}, "data_offsets of 'weight'"),
        ({"weight": entry(offsets=[24, 0])}, "takes 24 bytes, and has -24"),
        ({"weight": entry(offsets=[4, 28])}, "should begin at byte 0 of the data, and begins at 4"),
        ({"a": entry(), "b": entry()}, "'b' should begin at byte 24"),
        ({"weight": entry(), "b": entry(offsets=[24, 48])}, "take 48 bytes, and 24 are there"),
        ({"weight": entry(shape=[1], offsets=[0, 4])}, "take 4 bytes, and 24 are there"),
    ],
)
def test_lying_headers(tmp_path: Path, header: Any, message: str) -> None:
    craft(tmp_path / "m", header, b"\0" * 24)
    check_refused(tmp_path / "m", message)


def check_refused(path: Path, message: str) -> None:
    def load() -> None:
        with pytest.raises(io.FileError, match=message) as caught:
            io.load(path)
        assert caught.value.path == str(path) and str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 1500

    load()  # what is imported on the way does not count
    assert peak(load) < 40 * path.stat().st_size + 200_000


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100])
def test_a_header_said_to_be_longer_than_the_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "m").write_bytes(struct.pack("<Q", length) + b"{}")
    check_refused(tmp_path / "m", f"a header of {length} bytes should follow the first 8, and 2 do")


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "m", "wb") as file:
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**31)  # sparse
    with pytest.raises(io.FileError, match="over the limit") as caught:
        assert peak(lambda: io.load(tmp_path / "m")) == 0
    assert caught.value.problem.startswith("its header")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, and this pyrnn reads up to 1; use a newer pyrnn"),
        ({"format": 0}, "format should be"),
        ({"format": "1"}, "format should be"),
        ({"format": True}, "format should be"),
        ({"kind": "checkpoint"}, "should hold a model, and holds a checkpoint; .*load_checkpoint"),
        ({"kind": ["model"]}, "should hold a model"),
        ({"more": 1}, "should have architecture, class and metadata"),
        ({"class": 1}, "should have architecture, class and metadata"),
        ({"metadata": []}, "should have architecture, class and metadata"),
        ({"architecture": None}, "no architecture"),
        ({"architecture": []}, "should have class and config"),
        ({"architecture": linear() | {"more": 1}}, "should have class and config"),
        ({"architecture": {"class": "Own", "config": {}}}, "should be one of .*, and is 'Own'"),
        ({"architecture": {"class": ["Linear"], "config": {}}}, "should be one of"),
        ({"architecture": {"class": "Module", "config": {}}}, "should be one of"),
        ({"architecture": {"class": "Linear", "config": []}}, "should be an object"),
        ({"architecture": {"class": "Linear", "config": {}}}, "is missing in the configuration"),
        ({"architecture": {"class": "Sequential", "config": {"layers": 5}}}, "should be a list of layers"),
        ({"architecture": {"class": "Sequential", "config": {}}}, "should be a list of layers"),
        ({"architecture": deep(60)}, "nested deeper"),
        (
            {"architecture": linear(in_features=10**9)},
            "needs 'weight' as float32 of shape \\(2, 1000000000\\)",
        ),
        ({"architecture": linear(out_features=10**400)}, "needs 'weight' as float32"),
        ({"architecture": linear(in_features=-3)}, "Linear does not take its configuration .*whole numbers from 1 on"),
        ({"architecture": linear(in_features=3.0)}, "Linear does not take its configuration .*whole numbers from 1 on"),
        (
            {"architecture": linear(in_features=True)},
            "Linear does not take its configuration .*whole numbers from 1 on",
        ),
        ({"architecture": linear(in_features="3")}, "Linear does not take its configuration .*whole numbers from 1 on"),
        ({"architecture": linear(bias=0)}, "bias: expected True or False, got 0"),
        (
            {"architecture": linear(bias=True)},
            "needs 'bias', float32 of shape \\(2,\\), and there is no such",
        ),
        ({"architecture": linear(dtype="float64")}, "needs 'weight' as float64"),
        ({"architecture": linear(dtype="<f4")}, "needs 'weight' as <f4"),
        ({"architecture": linear(rng=5)}, "Linear does not take rng=5"),
        ({"architecture": linear(colour=5)}, "Linear does not take its configuration .*colour"),
        ({"architecture": lstm(hidden_size=10**9)}, "needs 'weight_ih_l0', .*4000000000.* there is no such"),
        ({"architecture": lstm(num_layers=10**12)}, "needs 'weight_ih_l0'"),
        ({"architecture": lstm(num_layers="2")}, "LSTM does not take its configuration"),
        ({"architecture": lstm(hidden_size={})}, "LSTM does not take its configuration"),
        (
            {"architecture": {"class": "Embedding", "config": {"num_embeddings": 2}}},
            "embedding_dim is missing",
        ),
        ({"architecture": {"class": "Tanh", "config": {}}}, "has no place for 'weight'"),
        (
            {"architecture": {"class": "Sequential", "config": {"layers": [linear(), linear()]}}},
            "needs '0.weight', float32 of shape \\(2, 3\\), and there is no such",
        ),
    ],
)
def test_lying_documents(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    craft(tmp_path / "m", {"__metadata__": document(**changes), "weight": entry()}, b"\0" * 24)
    check_refused(tmp_path / "m", message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"p": "0.5"}, "Dropout does not take p='0.5'"),
        ({"p": True}, "Dropout does not take p=True"),
        ({"p": 2}, "Dropout does not take its configuration .*probability"),
        ({"p": None}, "Dropout does not take its configuration"),
        ({"p": 10**400}, "Dropout does not take its configuration"),
        ({"p": 0.5, "rng": 3}, "Dropout does not take rng=3"),
    ],
)
def test_configurations_without_arrays(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    craft(tmp_path / "m", {"__metadata__": document(architecture={"class": "Dropout", "config": config})})
    check_refused(tmp_path / "m", message)


def test_more_layers_than_arrays(tmp_path: Path) -> None:
    io.save(nn.LSTM(3, 2, rng=0), tmp_path / "m")
    arrays = load_file(tmp_path / "m")
    save_file(arrays, tmp_path / "m", document(architecture=lstm(num_layers=10**12)))
    check_refused(tmp_path / "m", "needs 'weight_ih_l1'")


def test_arrays_of_other_dtypes_are_for_metadata_only(tmp_path: Path) -> None:
    save_file({"weight": np.zeros((2, 3), "float16")}, tmp_path / "m", document(architecture=linear()))
    check_refused(tmp_path / "m", "'weight' should be float32 or float64, and is float16")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    metadata = document(architecture=linear())
    metadata["pyrnn"] = metadata["pyrnn"].replace('"class": "X"', '"class": "Y"')
    craft(tmp_path / "m", {"__metadata__": metadata, "weight": entry()}, b"\0" * 24)
    check_refused(tmp_path / "m", "checksum")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
configs = st.sampled_from(sorted(nn.REGISTRY)).flatmap(
    lambda name: st.builds(
        lambda config: {"class": name, "config": config},
        st.dictionaries(
            st.sampled_from([*LINEAR, *LSTM, "layers", "p", "rng", "activation", "reset_after", "eps"]),
            json_values | st.sampled_from([1, 2, 3, 10**9, "float32", True, 0.5]),
        ),
    )
)


@given(st.fixed_dictionaries({}, optional={"architecture": json_values | configs, "metadata": json_values}))
def test_any_document_is_loaded_or_refused(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "any"
    craft(path, {"__metadata__": document(**changes), "weight": entry()}, b"\0" * 24)
    for read in (io.load, io.read_metadata):
        with suppress(io.FileError):
            read(path)


@given(st.binary(max_size=300))
@example(b"\x02" + b"\0" * 7 + b"{}")
def test_no_other_bytes_are_a_model(folder: Path, content: bytes) -> None:
    path = folder / "bytes"
    for bad in (content, struct.pack("<Q", len(content)) + content):
        path.write_bytes(bad)
        with pytest.raises(io.FileError):
            io.load(path)


def test_a_file_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(io.FileError("m", "broken")))
    assert (error.path, error.problem, str(error)) == ("m", "broken", "m: broken")
    assert isinstance(error, ValueError)


@given(json_values)
def test_only_what_encode_returns_is_decoded(value: Any) -> None:
    try:
        decoded = tree.decode(value, {})
    except ValueError:
        return
    assert same(tree.decode(tree.encode(decoded, "", {}), {}), decoded)


@pytest.mark.parametrize(
    "value",
    [
        {"$array": "x"},
        {"$array": ["x"]},
        {"$tuple": 1},
        {"$float": "1"},
        {"$float32": "1"},
        {"$float32": 1},
        {"$int8": 300},
        {"$uint8": -1},
        {"$bool": 1},
        {"$tuple": [], "a": 1},
        {"$object": 1},
    ],
)
def test_tags_that_say_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="is stored as"):
        tree.decode(value, {})


# --- checkpoints -------------------------------------------------------------------------------------------


class Run:
    """A training that draws from everything there is to draw from."""

    def __init__(self, seed: int, bits: type[np.random.BitGenerator] = np.random.PCG64) -> None:
        source = np.random.default_rng(0)
        rng = np.random.Generator(bits(seed))
        self.model = nn.Sequential(
            nn.LSTM(2, 3, num_layers=2, dropout=0.4, rng=rng),
            nn.Dropout(0.3, rng=rng),
            nn.Linear(3, 1, rng=rng),
        )
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.05)
        self.schedule = optim.CosineAnnealingLR(self.optimizer, total_steps=20, warmup_steps=4)
        arrays = noise(source, 14, 5, 2), noise(source, 14, 5, 1)
        self.loader = data.Batches(*arrays, batch_size=4, shuffle=True, rng=np.random.default_rng(seed))
        self.rng = np.random.Generator(bits(seed + 1))

    def parts(self) -> dict[str, Any]:
        return dict(vars(self))

    def steps(self) -> Iterator[float]:
        while True:
            for x, target in self.loader:
                y, _ = self.model(x + noise(self.rng, *x.shape))
                loss = nn.mse_loss(y, target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                yield loss.item()

    def take(self, count: int) -> list[float]:
        return list(itertools.islice(self.steps(), count))

    def state(self) -> list[Any]:
        return [
            bits(self.model.state_dict()),
            [(key, np.asarray(value).tobytes()) for key, value in self.optimizer.state_dict().items()],
            self.schedule.state_dict(),
            self.loader.state_dict(),
            str(self.rng.bit_generator.state),
            [str(generator.bit_generator.state) for _, generator in self.model.named_generators()],
        ]


@pytest.mark.parametrize("done", [0, 1, 4, 6])  # an epoch is 4 batches
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path: Path, done: int, kind: type[np.random.BitGenerator]) -> None:
    whole = Run(1, kind)
    losses = whole.take(9)

    first = Run(1, kind)
    steps = first.steps()
    begun = [next(steps) for _ in range(done)]
    io.save_checkpoint(tmp_path / "c", **first.parts(), extra={"done": done, "best": float("inf")})
    assert begun == losses[:done]

    second = Run(99, kind)
    second.take(3)
    extra = io.load_checkpoint(tmp_path / "c", **second.parts())
    assert extra == {"done": done, "best": float("inf")}
    assert second.take(9 - done) == losses[done:]
    assert bits(second.model.state_dict()) == bits(whole.model.state_dict())
    assert second.optimizer.lr == whole.optimizer.lr
    assert second.rng.bit_generator.random_raw() == whole.rng.bit_generator.random_raw()


def test_a_rate_that_was_set_by_hand_comes_back(tmp_path: Path) -> None:
    run = Run(1)
    run.optimizer.lr = 0.123
    io.save_checkpoint(tmp_path / "c", **run.parts())
    other = Run(2)
    assert io.load_checkpoint(tmp_path / "c", **other.parts()) is None
    assert other.optimizer.lr == 0.123


@given(values)
def test_extra_comes_back_as_it_was(folder: Path, extra: Any) -> None:
    model = nn.Tanh()
    io.save_checkpoint(folder / "extra", model=model, extra=extra)
    assert same(io.load_checkpoint(folder / "extra", model=model), extra)


def test_a_model_of_ones_own_has_checkpoints_too(tmp_path: Path) -> None:
    model, other = Own(), Own()
    model.scale.write()[...] = 5
    io.save_checkpoint(tmp_path / "c", model=model)
    io.load_checkpoint(tmp_path / "c", model=other)
    assert bits(other.state_dict()) == bits(model.state_dict())


@pytest.mark.parametrize("spare", ["optimizer", "schedule", "loader", "rng"])
def test_what_is_left_out_is_an_error_unless_partial(tmp_path: Path, spare: str) -> None:
    run = Run(1)
    run.take(2)
    io.save_checkpoint(tmp_path / "c", **run.parts(), extra=7)
    other = Run(2)
    parts = other.parts()
    del parts[spare]
    before = other.state()
    with pytest.raises(io.FileError, match=f"also has the state of {spare}; .*partial=True"):
        io.load_checkpoint(tmp_path / "c", **parts)
    assert other.state() == before
    assert io.load_checkpoint(tmp_path / "c", model=other.model, partial=True) == 7
    assert bits(other.model.state_dict()) == bits(run.model.state_dict())


@pytest.mark.parametrize("missing", ["optimizer", "schedule", "loader", "rng"])
def test_what_is_not_in_the_file_is_an_error(tmp_path: Path, missing: str) -> None:
    run = Run(1)
    parts = run.parts()
    del parts[missing]
    io.save_checkpoint(tmp_path / "c", **parts)
    before = run.state()
    for partial in (False, True):
        with pytest.raises(io.FileError, match=f"has no state of {missing}; of what it has: "):
            io.load_checkpoint(tmp_path / "c", **run.parts(), partial=partial)
    assert run.state() == before


def other_model(run: Run) -> None:
    rng = np.random.default_rng(0)
    layers = (
        nn.LSTM(2, 4, num_layers=2, dropout=0.4, rng=rng),
        nn.Dropout(0.3, rng=rng),
        nn.Linear(4, 1, rng=rng),
    )
    run.model = nn.Sequential(*layers)


def other_optimizer(run: Run) -> None:
    run.optimizer = optim.AdamW(run.model.parameters())


def other_parameters(run: Run) -> None:
    run.optimizer = optim.Adam(list(run.model.parameters())[:3])


def other_schedule(run: Run) -> None:
    run.schedule = optim.StepLR(run.optimizer, 3)  # type: ignore[assignment]


def other_loader(run: Run) -> None:
    run.loader = data.Batches(np.zeros((5, 5, 2)), np.zeros((5, 5, 1)), batch_size=4, rng=0)


def other_generator(run: Run) -> None:
    run.rng = np.random.Generator(np.random.Philox(0))


def other_sharing(run: Run) -> None:
    run.model[1].generator = np.random.default_rng(0)  # type: ignore[attr-defined]


def more_sharing(run: Run) -> None:
    run.rng = run.model[1].generator  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_model,
            r"model can't be taken.*0.weight_ih_l0: expected float32 of shape \(16, 2\), got .*\(12, 2\)",
        ),
        (other_optimizer, "its optimizer is of class Adam, and AdamW was given"),
        (other_parameters, "optimizer can't be taken.*unexpected: 3.step"),
        (other_schedule, "its schedule is of class CosineAnnealingLR, and StepLR was given"),
        (other_loader, "loader can't be taken.*same data and settings"),
        (other_generator, "rng can't be taken.*: it is that of a PCG64, and here is a Philox"),
        (other_sharing, "it has no state of model.1.generator"),
        (
            more_sharing,
            "its generator of model.0.generator was that of model.0.generator; here it is that of .*, rng",
        ),
    ],
)
def test_if_anything_does_not_fit_nothing_is_changed(
    tmp_path: Path, change: Callable[[Run], None], message: str
) -> None:
    run = Run(1)
    run.take(3)
    io.save_checkpoint(tmp_path / "c", **run.parts())
    other = Run(2)
    other.take(1)
    change(other)
    before = other.state()
    with pytest.raises(io.FileError, match=re.compile(message, re.DOTALL)):
        io.load_checkpoint(tmp_path / "c", **other.parts())
    assert other.state() == before


def test_an_interrupted_load_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = Run(1), Run(2)
    run.take(3)
    io.save_checkpoint(tmp_path / "c", **run.parts())
    before = other.state()
    monkeypatch.setattr(other.loader, "load_state_dict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        io.load_checkpoint(tmp_path / "c", **other.parts())
    monkeypatch.undo()
    assert other.state() == before


def test_several_generators_by_name(tmp_path: Path) -> None:
    def three() -> dict[str, np.random.Generator]:
        a, b = np.random.default_rng(), np.random.default_rng()
        return {"a": a, "b": b, "again": a}

    one, two = three(), three()
    io.save_checkpoint(tmp_path / "c", model=nn.Tanh(), rng=one)
    io.load_checkpoint(tmp_path / "c", model=nn.Tanh(), rng=two)
    assert one["a"].random() == two["again"].random() and one["b"].random() == two["b"].random()
    with pytest.raises(io.FileError, match=r"its generator of rng.a was that of rng.a, rng.again"):
        io.load_checkpoint(tmp_path / "c", model=nn.Tanh(), rng=two | {"again": np.random.default_rng()})


@pytest.mark.parametrize(
    ("kind", "entry", "value"),
    [
        (np.random.MT19937, "pos", 10**6),
        (np.random.MT19937, "pos", -1),
        (np.random.Philox, "buffer_pos", -5),
        (np.random.Philox, "buffer", np.zeros(3, "uint64")),
        (np.random.PCG64, "inc", -1),
        (np.random.PCG64, "has_uint32", "1"),
        (np.random.SFC64, "state", np.zeros(4, "int64")),
    ],
)
def test_hostile_generator_states(tmp_path: Path, kind: type[np.random.BitGenerator], entry: str, value: Any) -> None:
    rng = np.random.Generator(kind(0))
    before = str(rng.bit_generator.state)
    state: Any = copy.deepcopy(rng.bit_generator.state)
    holder = state if entry in state and not isinstance(state[entry], dict) else state["state"]
    holder[entry] = value
    content: dict[str, np.ndarray] = {}
    entries: Any = {"model": {}, "extra": None, "generators": [{"places": ["rng"], "state": state}]}
    encoded = tree.encode(entries, "s", content)
    container.write(tmp_path / "c", "checkpoint", content, {"state": encoded})
    with pytest.raises(io.FileError, match=f"its state of rng can't be taken, and nothing was changed: {entry}: "):
        io.load_checkpoint(tmp_path / "c", model=nn.Tanh(), rng=rng)
    assert str(rng.bit_generator.state) == before


@given(st.fixed_dictionaries({}, optional={"model": json_values, "generators": json_values, "optimizer": json_values}))
@example({"optimizer": {"class": "SGD", "state": {"lr": [1], "momentum": 0, "weight_decay": 0, "nesterov": 0}}})
@example({"generators": [{"places": ["rng"], "state": {}}]})
@example({"generators": [{"places": [["rng"]], "state": {}}]})
def test_any_state_is_taken_or_refused(folder: Path, changes: dict[str, Any]) -> None:
    model, rng = nn.Linear(2, 1, rng=0), np.random.default_rng(0)
    optimizer = optim.SGD(model.parameters())
    before = bits(model.state_dict()), str(optimizer.state_dict()), str(rng.bit_generator.state)
    state = {"model": {}, "generators": [], "extra": None} | changes
    container.write(folder / "state", "checkpoint", {}, {"state": state})
    with pytest.raises(io.FileError):
        io.load_checkpoint(folder / "state", model=model, optimizer=optimizer, rng=rng)
    assert before == (bits(model.state_dict()), str(optimizer.state_dict()), str(rng.bit_generator.state))


def test_a_checkpoint_with_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    model = nn.Sequential(nn.Linear(1, 1, rng=0), nn.Dropout(rng=np.random.Generator(np.random.MT19937(0))))
    io.save_checkpoint(path, model=model, extra=(1, 2.5))
    good = path.read_bytes()
    data_begins = 8 + int.from_bytes(good[:8], "little")
    for _, bad in changed_parts(good[:data_begins]):
        path.write_bytes(bad + good[data_begins:])
        with suppress(io.FileError):
            assert io.load_checkpoint(path, model=model) == (1, 2.5)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(io.FileError):
            io.load_checkpoint(path, model=model)


def test_a_failed_checkpoint_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(1)
    io.save_checkpoint(tmp_path / "c", **run.parts(), extra=1)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SafetensorError):
        io.save_checkpoint(tmp_path / "c", **run.parts(), extra=2)
    assert os.listdir(tmp_path) == ["c"] and io.load_checkpoint(tmp_path / "c", **run.parts()) == 1


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    model = nn.Tanh()
    with pytest.raises(TypeError, match=r"optimizer: expected state_dict and load_state_dict, got a int"):
        io.save_checkpoint(tmp_path / "c", model=model, optimizer=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rng: expected a numpy.random.Generator, got a int"):
        io.save_checkpoint(tmp_path / "c", model=model, rng=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"extra.a: expected .*, got a Linear"):
        io.save_checkpoint(tmp_path / "c", model=model, extra={"a": nn.Linear(1, 1)})
    io.save(model, tmp_path / "m")
    with pytest.raises(io.FileError, match=r"should hold a checkpoint, and holds a model; read it with pyrnn.io.load"):
        io.load_checkpoint(tmp_path / "m", model=model)


# --- PyTorch -----------------------------------------------------------------------------------------------

NO_TORCH = "PyTorch is not installed: there is nothing to compare with"


@st.composite
def torch_configs(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    kind = draw(st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]))
    return kind, {
        "input_size": draw(sizes),
        "hidden_size": draw(sizes),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
    } | ({"relu": draw(st.booleans())} if kind is nn.RNN else {})


def both(torch: Any, kind: type, config: dict[str, Any], dtype: str) -> tuple[Any, nn.Module]:
    """The layer in PyTorch, its parameters random, and ours."""
    config = dict(config)
    activation = "relu" if config.pop("relu", False) else "tanh"
    theirs, ours = ({"nonlinearity": activation}, {"activation": activation}) if kind is nn.RNN else ({}, {})
    layer = getattr(torch.nn, kind.__name__)(**config, **theirs, batch_first=True, dtype=getattr(torch, dtype))
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -0.9, 0.9)
    return layer, kind(**config, **ours, dtype=dtype, rng=0)


@given(torch_configs(), seeds, st.booleans())
def test_pytorchs_weights_give_pytorchs_values(drawn: tuple[type, dict[str, Any]], seed: int, own: bool) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    torch.manual_seed(seed)
    theirs, ours = both(torch, *drawn, "float64")
    io.load_torch_state_dict(ours, theirs.state_dict())
    x = noise(np.random.default_rng(seed), 2, 6, drawn[1]["input_size"], dtype="float64")
    y, state = ours.predict(x)
    with torch.no_grad():
        expected, final = theirs(torch.from_numpy(x))
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-10, atol=1e-12)
    for leaf, other in zip(state, final if isinstance(final, tuple) else (final,), strict=True):
        np.testing.assert_allclose(leaf, other.numpy().swapaxes(0, 1), rtol=1e-10, atol=1e-12)


@given(torch_configs(), seeds)
def test_our_weights_give_our_values_in_pytorch(drawn: tuple[type, dict[str, Any]], seed: int) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs, ours = both(torch, *drawn, "float64")
    weights = {name: torch.from_numpy(array) for name, array in io.to_torch_state_dict(ours).items()}
    theirs.load_state_dict(weights)  # strict: all names and shapes
    x = noise(np.random.default_rng(seed), 2, 6, drawn[1]["input_size"], dtype="float64")
    with torch.no_grad():
        expected, _ = theirs(torch.from_numpy(x))
    np.testing.assert_allclose(ours.predict(x)[0], expected.numpy(), rtol=1e-10, atol=1e-12)


def test_a_nest_of_all_layers_fits_pytorchs_names() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = torch.nn.Sequential(
        torch.nn.Embedding(5, 3),
        torch.nn.Sequential(torch.nn.GRU(3, 4, batch_first=True, bidirectional=True)),
        torch.nn.Dropout(0.1),
        torch.nn.LayerNorm(8, eps=0.01),
        torch.nn.Linear(8, 2, bias=False),
        torch.nn.Linear(2, 2),
    )
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter)
    ours = nn.Sequential(
        nn.Embedding(5, 3, rng=0),
        nn.Sequential(nn.GRU(3, 4, bidirectional=True, rng=0)),
        nn.Dropout(0.1),
        nn.LayerNorm(8, eps=0.01),
        nn.Linear(8, 2, bias=False, rng=0),
        nn.Linear(2, 2, rng=0),
    )
    io.load_torch_state_dict(ours, theirs.state_dict())
    x = np.array([[0, 4, 2]])
    with torch.no_grad():
        y = theirs[1][0](theirs[0](torch.from_numpy(x)))[0]
        expected = theirs[5](theirs[4](theirs[3](y))).numpy()
    np.testing.assert_allclose(ours.predict(x)[0], expected, rtol=1e-4, atol=1e-6)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in io.to_torch_state_dict(ours).items()})


@given(models())
def test_to_pytorch_and_back_is_the_same(drawn: tuple[nn.Sequential, str, int]) -> None:
    model, _, _ = drawn
    problems = [
        layer
        for layer in model.modules()
        if getattr(layer, "learn_initial_state", False) or not getattr(layer, "reset_after", True)
    ]
    if problems:
        for convert in (io.to_torch_state_dict, lambda model: io.load_torch_state_dict(model, {})):
            with pytest.raises(ValueError, match=r"(?s)learned initial state|reset_after=False"):
                convert(model)
        return
    before = {name: array + 0.0 for name, array in model.state_dict().items()}  # no -0.0
    weights = io.to_torch_state_dict(model)
    for parameter in model.parameters():
        parameter.write()[...] = 9
    io.load_torch_state_dict(model, weights)
    assert bits({name: array + 0.0 for name, array in model.state_dict().items()}) == bits(before)


def test_the_biases_of_a_gru_fold_but_for_the_candidates() -> None:
    model = nn.GRU(1, 1, dtype="float64", rng=0)
    weights = io.to_torch_state_dict(model)
    weights["bias_ih_l0"], weights["bias_hh_l0"] = np.array([1.0, 2, 3]), np.array([10.0, 20, 30])
    io.load_torch_state_dict(model, weights)
    assert model.bias_l0.data.tolist() == [11, 22, 3]  # type: ignore[attr-defined]
    assert model.bias_hn_l0.data.tolist() == [30]  # type: ignore[attr-defined]


def test_to_pytorch_gives_new_arrays() -> None:
    model = nn.LSTM(1, 1, rng=0)
    before = bits(model.state_dict())
    weights = io.to_torch_state_dict(model)
    for array in weights.values():
        array += 1
    assert bits(model.state_dict()) == before
    assert len({id(array) for array in weights.values()}) == len(weights)


def test_one_error_names_every_tensor_and_changes_nothing() -> None:
    model = nn.Sequential(nn.LSTM(2, 3, rng=0), nn.Linear(3, 1, rng=0))
    before = bits(model.state_dict())
    weights: dict[str, Any] = io.to_torch_state_dict(model)
    del weights["0.bias_hh_l0"]
    weights["0.weight_ih_l0"] = weights["0.weight_ih_l0"].T
    weights["1.weight"] = weights["1.weight"].astype("float64")
    weights["1.bias"] = weights["1.bias"].astype("float16")
    weights["0.weight_hr_l0"] = np.zeros((2, 3), "float32")
    weights["0.bias_ih_l1"] = np.zeros(12, "float32")
    weights["2.weight"] = np.zeros(12, "float32")
    with pytest.raises(ValueError, match="does not fit Sequential; nothing was loaded") as caught:
        io.load_torch_state_dict(model, weights)
    lines = str(caught.value).splitlines()[1:]
    cast = "cast it with .float() in PyTorch or .astype(numpy.float32) in NumPy"
    assert sorted(line.strip() for line in lines) == [
        "0.weight_ih_l0: expected float32 of shape (12, 2), got float32 of shape (2, 12)",
        f"1.bias: expected float32, got float16; {cast}",
        f'1.weight: expected float32, got float64; {cast} or build the model with dtype="float64"',
        "missing: 0.bias_hh_l0, float32 of shape (12,)",
        "unexpected: 0.bias_ih_l1 (was the model built with bias=False, or fewer layers or directions?)",
        "unexpected: 0.weight_hr_l0 (a projection, proj_size in PyTorch, which the layers here do not have)",
        "unexpected: 2.weight",
    ]
    assert bits(model.state_dict()) == before


def test_what_numpy_can_not_take_is_named_too() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    model = nn.Linear(3, 1, dtype="float64", rng=0)
    weights = {
        "weight": torch.zeros(1, 3, dtype=torch.bfloat16),
        "bias": torch.zeros(1, dtype=torch.float64, requires_grad=True),
    }
    with pytest.raises(ValueError) as caught:
        io.load_torch_state_dict(model, weights)
    assert re.search(r"weight: NumPy can't take it: .*; cast it with \.double\(\)", str(caught.value))
    assert re.search(r"bias: NumPy can't take it: .*detach", str(caught.value))
