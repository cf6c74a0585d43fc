"""Train language models on the bytes of Python's standard library: an LSTM, a TCN and a Transformer of equal size.

All three are trained by the same loop, truncated back-propagation through time: the text is cut into stretches that
run side by side, and the state, whatever it is (hidden units, left contexts, keys and values), is carried from chunk to
chunk. They are judged by the bits that they need for a byte of files that they have never seen, beside a model that
counts and beside lzma. Then each of them writes, byte by byte, as a stream.

    python examples/language_model.py [--model lstm|tcn|transformer|all] [--size 260000] [--steps 4800 | --minutes M]
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from language.baselines import CountModel, lzma_bits
from language.memory import PeakMemory
from language.pictures import draw_attention, draw_curves
from language.text import Bytes, Text, read
from tqdm import tqdm

import pyrnn
from pyrnn import io, nn, optim

BATCH = 8  # stretches of the training text that are run side by side
CHUNK = 128  # bytes through which a gradient is carried
WINDOW = 256  # bytes to which the Transformer attends, its own included
HEAD = 32  # features of an attention head
ROWS = 32  # stretches of the held-out text; the first byte of each is told after the byte before it alone
LOOKS = (0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # when the held-out text is looked at: parts of the training


def lstm(width: int, size: int, rng: np.random.Generator) -> nn.Sequential:
    """Return one layer of so many units."""
    layer = nn.LSTM(64, width, rng=rng)
    return nn.Sequential(nn.Embedding(256, 64, rng=rng), layer, nn.Linear(width, 256, rng=rng))


def tcn(width: int, size: int, rng: np.random.Generator) -> nn.Sequential:
    """Return six blocks of so many channels, which see 253 bytes."""
    layer = nn.TCN(width, [width] * 6, 3, dropout=0.0, rng=rng)
    return nn.Sequential(nn.Embedding(256, width, rng=rng), layer, nn.Linear(width, 256, rng=rng))


def transformer(width: int, size: int, rng: np.random.Generator) -> nn.Sequential:
    """Return three layers, with so many features inside each and between them as many as suit the size."""
    features = HEAD * max(1, round((size / 36) ** 0.5 / HEAD))
    layer = nn.Transformer(
        3, features, features // HEAD, width, dropout=0.0, norm_first=True, positions="rotary",
        window=(WINDOW - 1, 0), rng=rng,
    )  # fmt: skip
    return nn.Sequential(nn.Embedding(256, features, rng=rng), layer, nn.Linear(features, 256, rng=rng))


FAMILIES: dict[str, Callable[[int, int, np.random.Generator], nn.Sequential]] = {
    "lstm": lstm,
    "tcn": tcn,
    "transformer": transformer,
}
RATES = {"lstm": 1e-2, "tcn": 8e-3, "transformer": 4e-3}  # the highest learning rates


class Outcome(NamedTuple):
    """What a training gave: the model, its curve of (seconds, bytes seen, bits per byte held out), and what it took."""

    model: nn.Sequential
    curve: list[tuple[float, int, float]]
    pace: float  # bytes per second
    memory: int | None  # bytes


def build(family: str, size: int, seed: int) -> nn.Sequential:
    """Return a model of a family, of the width whose number of parameters is nearest to a size."""

    def made(width: int) -> nn.Sequential:
        return FAMILIES[family](width, size, np.random.default_rng(seed))

    low, high = 1, 2
    while made(high).num_parameters() < size:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if made(middle).num_parameters() < size else (low, middle)
    return min(made(low), made(high), key=lambda model: abs(model.num_parameters() - size))


def common_size(size: int) -> int:
    """Return the number of parameters nearest to a size that a TCN can have: of all widths its are the coarsest."""
    return build("tcn", size, 0).num_parameters()


def stretches(text: Bytes, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into stretches side by side, (rows, T): the byte before each, and each byte. NUL is before the first.

    The last stretch is filled up with NUL bytes.
    """
    steps = -(-len(text) // rows)
    padded = np.zeros(1 + rows * steps, np.int64)
    padded[1 : 1 + len(text)] = text
    return padded[:-1].reshape(rows, steps), padded[1:].reshape(rows, steps)


def score(model: nn.Sequential, text: Bytes) -> float:
    """Return the mean bits that a model needs for a byte of a text; every byte counts."""
    before, target = stretches(text, ROWS)
    counts = np.arange(target.size).reshape(target.shape) < len(text)
    state, nats = None, 0.0
    for start in range(0, target.shape[1], CHUNK):
        piece = slice(start, start + CHUNK)
        logits, state = model.predict(before[:, piece], state)
        losses = pyrnn.cross_entropy(logits, targets=target[:, piece], mask=counts[:, piece])
        nats += float(losses.sum(dtype=np.float64))
    return nats / len(text) / np.log(2)


class Trainer:
    """The loop that all models are trained by: AdamW, with warm-up, a falling rate, and bounded gradients."""

    def __init__(self, model: nn.Sequential, text: Bytes, rate: float, steps: int) -> None:
        self.model = model.train()
        self.before, self.target = stretches(text, BATCH)
        self.optimizer = optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        self.schedule = optim.CosineAnnealingLR(
            self.optimizer, steps, warmup_steps=min(100, steps // 10), eta_min=rate / 20
        )
        self.start, self.state = 0, None

    def step(self) -> tuple[float, float]:
        """Take one step; return the loss in bits per byte and the norm of the gradient."""
        if self.start + CHUNK > self.target.shape[1]:  # once through the text: from its beginning again
            self.start, self.state = 0, None
        piece = slice(self.start, self.start + CHUNK)
        self.start += CHUNK
        logits, state = self.model(self.before[:, piece], self.state)
        loss = nn.cross_entropy(logits, self.target[:, piece])
        self.optimizer.zero_grad()
        loss.backward()
        norm = optim.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.state = pyrnn.detach(state)  # the numbers go on, the tape ends here
        return loss.item() / np.log(2), norm


def steps_in(minutes: float, model: nn.Sequential, text: Bytes, rate: float) -> int:
    """Return how many steps a model takes in so many minutes, by the time of a few with a copy of it."""
    trainer = Trainer(copy.deepcopy(model), text, rate, 100)
    taken = []
    for _ in range(10):
        begin = time.perf_counter()
        trainer.step()
        taken.append(time.perf_counter() - begin)
    return max(1, round(60 * minutes / float(np.median(taken))))


def train(name: str, model: nn.Sequential, text: Text, rate: float, steps: int) -> Outcome:
    """Train a model for so many steps, looking at the held-out text now and then."""
    trainer = Trainer(model, text.train, rate, steps)
    looks = {round(steps * part) for part in LOOKS}
    curve: list[tuple[float, int, float]] = []
    seconds, shown = 0.0, 8.0
    with (
        PeakMemory() as memory,
        tqdm(total=steps * BATCH * CHUNK, desc=f"{name:>11}", unit="B", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        for step in range(steps + 1):
            if step in looks:
                curve.append((seconds, step * BATCH * CHUNK, score(model, text.held_out)))
            if step == steps:
                break
            begin = time.perf_counter()
            bits, norm = trainer.step()
            seconds += time.perf_counter() - begin
            shown = 0.95 * shown + 0.05 * bits
            bar.update(BATCH * CHUNK)
            bar.set_postfix(bits=f"{shown:.3f}", grad=f"{norm:.2f}", held_out=f"{curve[-1][2]:.3f}", refresh=False)
        bar.set_postfix(bits=f"{shown:.3f}", grad=f"{norm:.2f}", held_out=f"{curve[-1][2]:.3f}")
    return Outcome(model.eval(), curve, steps * BATCH * CHUNK / seconds, memory.peak)


def write(model: nn.Sequential, prompt: bytes, count: int, temperature: float, rng: np.random.Generator) -> bytes:
    """Let a model go on with a prompt, as a stream that carries its state: a step for each byte."""
    live = model.freeze().stream()
    written = bytearray()
    for byte in b"\0" + prompt:
        logits = live.step(np.array([byte]))
    while len(written) < count:
        scaled = logits[0].astype(np.float64) / temperature
        weights = np.exp(scaled - scaled.max())
        byte = int(rng.choice(256, p=weights / weights.sum()))
        written.append(byte)
        logits = live.step(np.array([byte]))
    return bytes(written)


def report(outcomes: dict[str, Outcome], levels: dict[str, float]) -> None:
    """Print what each model needs for a byte that it has not seen, beside those without a network."""
    print(f"\n{'':>14}{'parameters':>12}{'bits per byte':>15}{'bytes/s in training':>21}{'peak memory':>13}")
    for name, outcome in outcomes.items():
        memory = "?" if outcome.memory is None else f"{outcome.memory / 1e6:.0f} MB"
        figures = f"{outcome.model.num_parameters():>12,}{outcome.curve[-1][2]:>15.3f}{outcome.pace:>21,.0f}"
        print(f"{name:>14}{figures}{memory:>13}")
    for name, bits in levels.items():
        print(f"{name:>14}{'':>12}{bits:>15.3f}")


def attention_maps(model: nn.Sequential, text: Bytes) -> np.ndarray:
    """Return the weights with which each layer and head of a Transformer reads a text: (layers, heads, N, N)."""
    embedding, stack, _ = model
    x, maps = embedding.predict(text[None].astype(np.int64)), []
    for layer in stack.layers:
        maps.append(layer.self_attn.attention_weights(layer.norm1.predict(x))[0])
        x, _ = layer.predict(x)
    return np.stack(maps)


def show_attention(model: nn.Sequential, text: Bytes, path: Path) -> None:
    """Draw how one head reads the first line of held-out code that is long enough, what stands before it read too."""
    line = re.search(rb"(?<=\n) {4,8}(?=[^\n]*[(=])[a-z_.]+[ -~]{24,48}\n", text.tobytes())
    if line is None:
        print("no attention map: the held-out text has no line for it")
        return
    start = max(0, line.start() - WINDOW // 2)
    inside = slice(line.start() - start, line.end() - start)
    maps = attention_maps(model, text[start : line.end()])[:, :, inside, inside]
    # The head that most looks at few bytes that are not the last ones; the others are blurred, or look at those.
    far = np.tri(maps.shape[-1], k=-3)
    layer, head = np.unravel_index((far * maps**2).sum(axis=(2, 3)).argmax(), maps.shape[:2])
    title = f"How the Transformer reads a line that it has never seen: head {head + 1} of layer {layer + 1}"
    draw_attention(maps[layer, head], line.group(), title, path)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=[*FAMILIES, "all"], default="all")
    parser.add_argument("--size", type=int, default=260_000, help="parameters of each model (default: 260000)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=4800, help=f"of {BATCH} x {CHUNK} bytes (default: 4800)")
    length.add_argument("--minutes", type=float, help="train each model about so long instead")
    parser.add_argument("--limit", type=int, help="use so many bytes of the text (default: all)")
    parser.add_argument("--rate", type=float, help="the highest learning rate (default: each model's own)")
    parser.add_argument("--prompt", default="    def ", help="what the models go on with (default: a method)")
    parser.add_argument("--temperature", type=float, default=0.7, help="below 1 they dare less (default: 0.7)")
    parser.add_argument("--backend", default="cython", help="as pyrnn.backends() lists them (default: cython)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for models and pictures (default: here)")
    arguments = parser.parse_args()
    for name, least in (("size", 100_000), ("steps", 1), ("limit", BATCH * (CHUNK + 1)), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            parser.error(f"argument --{name}: expected at least {least}, got {value}")
    for name in ("minutes", "rate", "temperature"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < np.inf:
            parser.error(f"argument --{name}: expected a number above 0, got {value}")
    try:
        backend = pyrnn.get_backend(arguments.backend)
    except (ValueError, ImportError) as error:
        parser.error(f"argument --backend: {error}")

    text = read(arguments.limit)
    print(f"{len(text.train):,} bytes of {len(text.train_names)} files to train on")
    print(f"{len(text.held_out):,} bytes of {len(text.held_out_names)} files held out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = common_size(arguments.size)
    chosen = list(FAMILIES) if arguments.model == "all" else [arguments.model]
    outcomes: dict[str, Outcome] = {}
    with pyrnn.use_backend(backend):
        for name in chosen:
            model = build(name, size, arguments.seed)
            print(f"{name} with {model.num_parameters():,} parameters on backend {backend.name}")
            rate, steps = arguments.rate or RATES[name], arguments.steps
            if arguments.minutes is not None:
                steps = steps_in(arguments.minutes, model, text.train, rate)
            outcomes[name] = train(name, model, text, rate, steps)
            io.save(model, arguments.out / f"language_{name}.safetensors")
    print("counting, and packing with lzma ...")
    levels = {"order-3 counts": CountModel(text.train).bits(text.held_out), "lzma": lzma_bits(text)}
    report(outcomes, levels)

    path = arguments.out / "language_curves.png"
    draw_curves({name: outcome.curve for name, outcome in outcomes.items()}, levels, path)
    print(f"\nwrote {path}")
    if "transformer" in outcomes:
        show_attention(outcomes["transformer"].model, text.held_out, arguments.out / "language_attention.png")
    for name, outcome in outcomes.items():
        begin = time.perf_counter()
        with pyrnn.use_backend(backend):
            rng = np.random.default_rng(arguments.seed)
            written = write(outcome.model, arguments.prompt.encode(), 300, arguments.temperature, rng)
        pace = len(written) / (time.perf_counter() - begin)
        print(f"\n--- {name}, {pace:,.0f} bytes/s: ---\n{arguments.prompt}{written.decode(errors='replace')}")


if __name__ == "__main__":
    main()
