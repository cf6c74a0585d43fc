"""The examples run as a newcomer would run them, shortened; and what they are made of does what they say."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the extra 'examples'")
pytest.importorskip("tqdm", reason="the examples need the extra 'examples'")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import language_model  # noqa: E402
from language import baselines, text  # noqa: E402


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- forecast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru", "tcn", "attention"])
def test_forecast(model: str, tmp_path: Path) -> None:
    result = run("forecast.py", "--model", model, "--epochs", "25", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    for words in ("loss=", "grad=", "epoch/s"):
        assert words in result.stderr, "the progress bar shows loss, gradient norm and pace"
    assert "the model is better: seasonal naive 5 of 5, drift 5 of 5, extrapolation " in result.stdout
    assert "forecasts to the bit" in result.stdout
    spread = re.search(r"on cython, reference, numba the forecasts differ by at most (\S+) ppm", result.stdout)
    assert spread and float(spread[1]) < 1e-4  # ppm; a float32 forecast of some ppm has steps of 1e-7
    assert (tmp_path / "forecast.safetensors").stat().st_size < 400_000
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_forecast_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    outputs = [
        run("forecast.py", "--epochs", "2", "--seed", "3", "--out", str(tmp_path / name)).stdout for name in "ab"
    ]
    assert outputs[0].split("saved")[0] == outputs[1].split("saved")[0] != ""
    files = [(tmp_path / name / "forecast.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "nope"), "argument --backend: backend: expected one of cython, reference"),
        (("--epochs", "0"), "argument --epochs: expected at least 1, got 0"),
        (("--model", "transformer"), "invalid choice: 'transformer'"),
    ],
)
def test_forecast_refuses(arguments: tuple[str, ...], message: str) -> None:
    result = run("forecast.py", *arguments)
    assert result.returncode == 2 and message in result.stderr


# --- language model: text and baselines ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> text.Text:
    return text.read()


def test_the_text_is_split_by_files(corpus: text.Text) -> None:
    names = corpus.train_names + corpus.held_out_names
    assert len(set(names)) == len(names) > 200
    assert not set(corpus.train_names) & set(corpus.held_out_names)
    assert 0.005 < len(corpus.held_out_names) / len(names) < 0.1
    assert not any("site-packages" in name or "/test" in name for name in names)
    for part, files in ((corpus.train, corpus.train_names), (corpus.held_out, corpus.held_out_names)):
        assert (part == 0).sum() == len(files) and part[-1] == 0, "each file ends with the only NUL byte that it has"
    source = Path(dataclasses.__file__).read_bytes()
    assert (source in corpus.train.tobytes()) != (source in corpus.held_out.tobytes())
    again = text.read(50_000)
    assert np.array_equal(again.train, corpus.train[:50_000])
    assert np.array_equal(again.held_out, corpus.held_out[:5_000])


def test_counted_probabilities_add_up_to_one(corpus: text.Text) -> None:
    model = baselines.CountModel(corpus.train[:20_000])
    for context in (b"def", b"\xff\xfe\xfd", b"se\xff", b""):
        rows = [np.frombuffer(context + bytes([byte]), np.uint8) for byte in range(256)]
        assert math.isclose(sum(model.probabilities(row)[-1] for row in rows), 1, rel_tol=1e-12)


def test_counting_is_interpolated_absolute_discounting() -> None:
    train, asked = b"abracadabra abracadabra, said the raven", b"abrasive raven"
    probabilities = baselines.CountModel(np.frombuffer(train, np.uint8), 2).probabilities(
        np.frombuffer(asked, np.uint8)
    )

    def grams(data: bytes, order: int) -> list[bytes]:
        padded = b"\0" * order + data
        return [padded[i : i + order + 1] for i in range(len(data))]

    for place in range(len(asked)):
        expected = 1 / 256
        for order in range(3):
            counts = Counter(grams(train, order))
            values = list(counts.values())
            once, twice = values.count(1), values.count(2)
            discount = once / (once + 2 * twice)
            gram = grams(asked, order)[place]
            followers = {key: count for key, count in counts.items() if key[:-1] == gram[:-1]}
            if followers:
                freed = discount * len(followers) * expected
                expected = (max(counts[gram] - discount, 0) + freed) / sum(followers.values())
        assert math.isclose(probabilities[place], expected, rel_tol=1e-12)


def test_lzma_is_given_the_training_text(corpus: text.Text) -> None:
    small = corpus._replace(train=corpus.train[:30_000], held_out=corpus.held_out[:8_000])
    bits = baselines.lzma_bits(small)
    assert 0.5 < bits < 4
    assert bits < baselines.lzma_bits(small._replace(train=small.train[:0])), "the training text helps"
    assert baselines.lzma_bits(small._replace(held_out=small.train[:8_000])) < 0.1, "it has that already"


# --- language model: models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 143_210, 260_000, 1_000_000])
def test_the_models_are_of_equal_size(size: int) -> None:
    common = language_model.common_size(size)
    assert abs(common / size - 1) < 0.03
    for family in language_model.FAMILIES:
        assert abs(language_model.build(family, common, 0).num_parameters() / common - 1) < 0.01


@pytest.mark.parametrize("family", list(language_model.FAMILIES))
def test_every_byte_counts(family: str, corpus: text.Text) -> None:
    model, data = language_model.build(family, 20_000, 1), corpus.held_out[:1_003]
    before, target = language_model.stretches(data, language_model.ROWS)
    assert before.shape == (32, 32) and np.array_equal(target.ravel()[:1_003], data)
    assert before[0, 0] == 0 and np.array_equal(before.ravel()[1:], target.ravel()[:-1])
    logits = model.predict(before)[0].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(logits, target[..., None], axis=-1).ravel()[:1_003]
    assert math.isclose(language_model.score(model, data), nats.mean() / math.log(2), rel_tol=1e-5)


@pytest.mark.parametrize("family", list(language_model.FAMILIES))
def test_a_chunk_more_or_less_gives_the_same_score(
    family: str, corpus: text.Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = language_model.build(family, 20_000, 1), corpus.held_out[:20_000]
    scores = []
    for chunk in (128, 37):
        monkeypatch.setattr(language_model, "CHUNK", chunk)
        scores.append(language_model.score(model, data))
    assert math.isclose(*scores, rel_tol=1e-12), "the state carries all that came before"


@pytest.mark.parametrize("family", list(language_model.FAMILIES))
def test_training_learns(family: str, corpus: text.Text) -> None:
    small = corpus._replace(train=corpus.train[:20_000], held_out=corpus.held_out[:3_000])
    outcomes = [
        language_model.train(family, language_model.build(family, 60_000, 0), small, 5e-3, 24) for _ in range(2)
    ]
    first, last = outcomes[0].curve[0], outcomes[0].curve[-1]
    assert first[:2] == (0.0, 0) and last[1] == 24 * language_model.BATCH * language_model.CHUNK > len(small.train)
    assert last[2] < first[2] - 0.5
    assert [point[2] for point in outcomes[1].curve] == [point[2] for point in outcomes[0].curve], "the same seed"


@pytest.mark.parametrize("family", list(language_model.FAMILIES))
def test_writing_is_running_the_whole_again(family: str) -> None:
    model = language_model.build(family, 20_000, 2)
    written = language_model.write(model, b"def f", 40, 0.8, np.random.default_rng(5))
    rng, expected = np.random.default_rng(5), bytearray(b"\0def f")
    for _ in range(40):
        logits = model.predict(np.frombuffer(expected, np.uint8)[None].astype(np.int64))[0][0, -1].astype(np.float64)
        weights = np.exp(logits / 0.8 - (logits / 0.8).max())
        expected.append(int(rng.choice(256, p=weights / weights.sum())))
    assert len(written) == 40 and written == bytes(expected[6:])


def test_attention_maps_are_weights(corpus: text.Text) -> None:
    model = language_model.build("transformer", 260_000, 0)
    maps = language_model.attention_maps(model, corpus.held_out[:300])
    assert maps.shape == (3, 3, 300, 300)
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5) and (maps >= 0).all()
    seen = np.tri(300, dtype=bool) & ~np.tri(300, k=-language_model.WINDOW, dtype=bool)
    assert (maps[:, :, seen] > 0).all() and not maps[:, :, ~seen].any(), "the window, and nothing that comes later"


def test_language_model(tmp_path: Path) -> None:
    options = ("--steps", "8", "--size", "100000", "--limit", "60000", "--prompt", "class ", "--out", str(tmp_path))
    result = run("language_model.py", *options)
    assert result.returncode == 0, result.stderr
    for words in ("bits=", "grad=", "held_out=", "B/s"):
        assert words in result.stderr, "the progress bar shows losses, gradient norm and pace"
    assert "60,000 bytes" in result.stdout and "6,000 bytes" in result.stdout
    for name in language_model.FAMILIES:
        row = re.search(rf"^ +{name} +([\d,]+) +(\d\.\d\d\d) +[\d,]+ +(\d+ MB|\?)$", result.stdout, re.M)
        assert row and abs(int(row[1].replace(",", "")) - 100_000) < 4_000 and 1 < float(row[2]) < 9
        assert re.search(rf"--- {name}, [\d,]+ bytes/s: ---\nclass ", result.stdout)
        assert (tmp_path / f"language_{name}.safetensors").stat().st_size < 450_000
    for name in ("order-3 counts", "lzma"):
        assert re.search(rf"^ *{name} +\d\.\d\d\d$", result.stdout, re.M)
    for name in ("curves", "attention"):
        assert (tmp_path / f"language_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_language_model_by_the_clock(tmp_path: Path) -> None:
    options = ("--model", "lstm", "--minutes", "0.002", "--size", "100000", "--limit", "30000", "--out", str(tmp_path))
    result = run("language_model.py", *options)
    assert result.returncode == 0, result.stderr
    assert "tcn" not in result.stdout and not (tmp_path / "language_attention.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "nope"), "argument --backend: backend: expected one of cython, reference"),
        (("--steps", "0"), "argument --steps: expected at least 1, got 0"),
        (("--minutes", "0"), "argument --minutes: expected a number above 0, got 0.0"),
        (("--minutes", "1", "--steps", "5"), "not allowed with argument --minutes"),
        (("--size", "5"), "argument --size: expected at least 100000, got 5"),
        (("--temperature", "nan"), "argument --temperature: expected a number above 0, got nan"),
        (("--limit", "100"), "argument --limit: expected at least 1032, got 100"),
        (("--model", "gru"), "invalid choice: 'gru'"),
    ],
)
def test_language_model_refuses(arguments: tuple[str, ...], message: str) -> None:
    result = run("language_model.py", *arguments)
    assert result.returncode == 2 and message in result.stderr
