"""Forecast weekly CO2 at Mauna Loa a year ahead, from a CSV file to a plot, with a network of any family.

At every week the model sees how the series moved lately and the time of year, and gives 52 numbers: how far each of
the coming 52 weeks will be off a simple extrapolation (the last month's level, ten years' growth, the seasonal
cycle). It is trained by truncated back-propagation through time on eight stretches of the series side by side,
stopped early on a validation period, and judged on the years after that, which it has never seen.

    python examples/forecast.py [--model rnn|lstm|gru|tcn|attention] [--backend cython] [--seed 0] [--epochs 150]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import pyrnn
from pyrnn import io, nn, optim

HERE = Path(__file__).parent
YEAR = 52  # weeks
WEEKS_A_YEAR = 365.25 / 7
HORIZONS = (1, 4, 13, 26, 52)  # weeks ahead
STREAMS = 8  # stretches of the training years that are run side by side
CHUNK = 40  # weeks through which a gradient is carried
HELD_OUT = 8 * YEAR  # the last weeks, for the test
VALIDATION = 8 * YEAR  # those before them, for early stopping
PATIENCE = 30  # epochs without a better validation error before it stops
RATES = {"rnn": 3e-3, "lstm": 3e-3, "gru": 3e-3, "tcn": 1e-3, "attention": 5e-4}  # the highest learning rates


class Series(NamedTuple):
    """The weekly series; gaps are interpolated in ``filled`` and NaN in ``ppm``."""

    dates: np.ndarray
    ppm: np.ndarray
    filled: np.ndarray


class Task(NamedTuple):
    """What the model sees and what it is to say, for every week from ``first`` on.

    ``inputs`` (T, 5) and ``targets`` (T, 52) are standardised, ``base`` (T, 52) is the extrapolation in ppm. A target
    that was never measured is masked.
    """

    first: int
    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    base: np.ndarray
    scale: float


def read(path: Path) -> Series:
    """Read the series and bridge its gaps with straight lines."""
    lines = path.read_text().splitlines()[1:]
    dates, values = zip(*(line.split(",") for line in lines), strict=True)
    ppm = np.array([float(value) if value else np.nan for value in values])
    weeks = np.arange(len(ppm))
    known = np.isfinite(ppm)
    return Series(np.array(dates, "datetime64[D]"), ppm, np.interp(weeks, weeks[known], ppm[known]))


def seasonal_cycle(ppm: np.ndarray, until: int, count: int) -> np.ndarray:
    """Fit a parabola and three harmonics of the year to the weeks before ``until``; return the harmonics."""
    weeks = np.arange(count)
    phase = 2 * np.pi * weeks / WEEKS_A_YEAR
    harmonics = np.stack([wave(k * phase) for k in (1, 2, 3) for wave in (np.sin, np.cos)], axis=1)
    design = np.concatenate([np.stack([(weeks / count) ** k for k in (0, 1, 2)], axis=1), harmonics], axis=1)
    known = np.flatnonzero(np.isfinite(ppm[:until]))
    return harmonics @ np.linalg.lstsq(design[known], ppm[known])[0][3:]


def prepare(series: Series, train_until: int) -> Task:
    """Make inputs and targets; the seasonal cycle and all scales come from the training weeks alone."""
    total = len(series.ppm)
    season = seasonal_cycle(series.ppm, train_until, total + YEAR)
    level = series.filled - season[:total]
    sums = np.concatenate([[0.0], np.cumsum(level)])

    def mean(last: np.ndarray, count: int) -> np.ndarray:
        """Return the level's mean over ``count`` weeks up to ``last``."""
        return (sums[last + 1] - sums[last + 1 - count]) / count

    weeks = np.arange(2 * YEAR, total)
    recent = mean(weeks, 4)
    span = np.minimum(10 * YEAR, weeks + 1 - YEAR)  # ten years back, or as many as there are
    growth = (mean(weeks, YEAR) - mean(weeks - span, YEAR)) / span
    phase = 2 * np.pi * weeks / WEEKS_A_YEAR
    features = np.stack(
        [
            level[weeks] - level[weeks - 1],
            level[weeks] - recent,
            recent - mean(weeks - YEAR, 4) - YEAR * growth,
            np.sin(phase),
            np.cos(phase),
        ],
        axis=1,
    )
    steps = np.arange(1, YEAR + 1)
    ahead = weeks[:, None] + steps
    base = recent[:, None] + growth[:, None] * steps + season[ahead]
    measured = np.pad(series.ppm, (0, YEAR), constant_values=np.nan)[ahead]
    mask = np.isfinite(measured)
    off = np.where(mask, measured - base, 0)
    train = weeks < train_until
    scale = float(off[mask & (ahead < train_until)].std())
    inputs = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    return Task(int(weeks[0]), inputs.astype(np.float32), (off / scale).astype(np.float32), mask, base, scale)


def stretches(array: np.ndarray, count: int) -> np.ndarray:
    """Cut a long array (T, ...) into ``count`` stretches side by side: (count, T // count, ...)."""
    steps = len(array) // count
    return array[: steps * count].reshape(count, steps, *array.shape[1:])


def build(name: str, inputs: int, rng: np.random.Generator) -> nn.Sequential:
    """Return a model that gives 52 numbers at every week: of recurrent units, convolutions or attention."""
    if name == "tcn":  # sees the last 125 weeks
        size, drop = 16, 0.5
        layers: list[nn.Module] = [nn.TCN(inputs, [size] * 5, 3, dropout=drop, rng=rng)]
    elif name == "attention":  # sees the last two years in each of its two layers
        size, drop = 24, 0.3
        stack = nn.Transformer(
            2, size, 3, 2 * size, dropout=0.4, norm_first=True, positions="rotary", window=(2 * YEAR - 1, 0), rng=rng
        )
        layers = [nn.Linear(inputs, size, rng=rng), stack]
    else:
        size, drop = 48, 0.3
        layers = [{"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[name](inputs, size, rng=rng)]
    return nn.Sequential(*layers, nn.Dropout(drop, rng=rng), nn.Linear(size, YEAR, rng=rng))


def train(model: nn.Sequential, task: Task, until: int, stop: int, epochs: int, rate: float) -> None:
    """Train on the weeks before ``until``, stop early by those from there to ``stop``; keep the best weights."""
    weeks = np.arange(len(task.inputs)) + task.first
    last_target = weeks[:, None] + np.arange(1, YEAR + 1)
    x, target = (stretches(a[weeks < until], STREAMS) for a in (task.inputs, task.targets))
    mask = stretches((task.mask & (last_target < until))[weeks < until], STREAMS)
    validation = task.mask & (last_target < stop) & (weeks >= until)[:, None]

    optimizer = optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    steps = epochs * -(-x.shape[1] // CHUNK)
    schedule = optim.CosineAnnealingLR(optimizer, steps, warmup_steps=min(10, steps // 4))
    best, best_weights, best_epoch = np.inf, model.state_dict(), 0
    with tqdm(range(1, epochs + 1), desc="training", unit="epoch", dynamic_ncols=True, mininterval=0.5) as bar:
        for epoch in bar:
            model.train()
            state, losses, norms = None, [], []
            for start in range(0, x.shape[1], CHUNK):
                piece = slice(start, start + CHUNK)
                y, state = model(x[:, piece], state)
                loss = nn.mse_loss(y, target[:, piece], mask=mask[:, piece])
                optimizer.zero_grad()
                loss.backward()
                norms.append(optim.clip_grad_norm_(model.parameters(), 1.0))
                optimizer.step()
                schedule.step()
                state = pyrnn.detach(state)  # the numbers go on, the tape ends here
                losses.append(loss.item())
            y, _ = model.predict(task.inputs[None, : stop - task.first])
            off = (y[0] - task.targets[: len(y[0])])[validation[: len(y[0])]]
            error = float(np.sqrt(np.mean(off**2)))
            if error < best:
                best, best_weights, best_epoch = error, model.state_dict(), epoch
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", grad=f"{np.mean(norms):.2f}", valid=f"{error:.3f}")
            if epoch - best_epoch >= PATIENCE:
                break
    model.load_state_dict(best_weights)
    print(f"stopped after epoch {epoch}; kept the weights of epoch {best_epoch}")


def forecasts(model: nn.Sequential, task: Task) -> np.ndarray:
    """Return the forecast in ppm (T, 52) that the model makes at every week."""
    y, _ = model.predict(task.inputs[None])
    return task.base + task.scale * y[0]


def report(series: Series, task: Task, predicted: np.ndarray) -> None:
    """Print the held-out error at several horizons beside the baselines."""
    total = len(series.ppm)
    origins = np.arange(total - HELD_OUT, total)
    rows: dict[str, list[float]] = {"model": [], "seasonal naive": [], "drift": [], "extrapolation": []}
    for h in HORIZONS:
        at = origins[origins + h < total]
        at = at[np.isfinite(series.ppm[at + h])]
        y = series.filled
        guesses = {
            "model": predicted[at - task.first, h - 1],
            "seasonal naive": y[at + h - YEAR],
            "drift": y[at] + h * (y[at] - y[0]) / at,
            "extrapolation": task.base[at - task.first, h - 1],
        }
        for name, guess in guesses.items():
            rows[name].append(float(np.mean(np.abs(guess - series.ppm[at + h]))))
    print(f"\nmean absolute error in ppm on the last {HELD_OUT} weeks, weeks ahead:")
    print(f"{'':>16}" + "".join(f"{h:>8}" for h in HORIZONS))
    for name, errors in rows.items():
        print(f"{name:>16}" + "".join(f"{error:8.3f}" for error in errors))
    model = rows.pop("model")
    wins = {name: sum(ours < other for ours, other in zip(model, errors, strict=True)) for name, errors in rows.items()}
    count = len(HORIZONS)
    print(
        "horizons at which the model is better: " + ", ".join(f"{name} {won} of {count}" for name, won in wins.items())
    )


def stream(model: nn.Sequential, inputs: np.ndarray) -> np.ndarray:
    """Run the model as one would on a live series: frozen, a week at a time, with the state carried along."""
    live = model.freeze().stream()
    return np.concatenate([live.step(week[None]) for week in inputs])


def plot(series: Series, task: Task, predicted: np.ndarray, path: Path) -> None:
    """Draw the recent history and the forecasts made at three held-out weeks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    total = len(series.ppm)
    shown = slice(total - HELD_OUT - 2 * YEAR, total)
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    axes.plot(series.dates[shown], series.ppm[shown], color="0.45", lw=1.2, label="measured")
    axes.axvspan(series.dates[total - HELD_OUT], series.dates[-1], color="0.95", label="held out: never trained on")
    for number, origin in enumerate((total - HELD_OUT, total - HELD_OUT // 2, total - YEAR - 1)):
        weeks = origin + np.arange(1, YEAR + 1)
        weeks = weeks[weeks < total]
        line = predicted[origin - task.first, : len(weeks)]
        axes.plot(series.dates[weeks], line, color="C3", lw=2, label=None if number else "forecast, a year at once")
        axes.plot(series.dates[origin], series.filled[origin], "o", color="C3", label=None if number else "made here")
    axes.set(title="CO$_2$ at Mauna Loa", ylabel="parts per million", xlabel="year")
    axes.margins(x=0.01)
    axes.legend(loc="upper left", framealpha=1)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(RATES), default="lstm")
    parser.add_argument("--backend", default="cython", help="as pyrnn.backends() lists them (default: cython)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=150, help="at most so many (default: 150)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the model and the plot (default: here)")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"argument --epochs: expected at least 1, got {arguments.epochs}")
    try:
        backend = pyrnn.get_backend(arguments.backend)
    except (ValueError, ImportError) as error:
        parser.error(f"argument --backend: {error}")

    series = read(HERE / "data" / "mauna_loa_co2.csv")
    total = len(series.ppm)
    stop = total - HELD_OUT
    until = stop - VALIDATION
    task = prepare(series, until)
    gaps = int(np.isnan(series.ppm).sum())
    print(f"{total} weeks from {series.dates[0]} to {series.dates[-1]}, {gaps} of them without a value")

    rng = np.random.default_rng(arguments.seed)
    model = build(arguments.model, task.inputs.shape[1], rng)
    print(f"{arguments.model} with {model.num_parameters():,} parameters on backend {backend.name}")
    with pyrnn.use_backend(backend):
        train(model, task, until, stop, arguments.epochs, RATES[arguments.model])
        predicted = forecasts(model, task)
    report(series, task, predicted)

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "forecast.safetensors"
    io.save(model, path, metadata={"scale_ppm": task.scale, "model": arguments.model})
    loaded = io.load(path)
    scale = io.read_metadata(path)["scale_ppm"]
    print(f"\nsaved the model to {path} ({path.stat().st_size:,} bytes) and loaded it back")

    with pyrnn.use_backend(backend):
        whole, _ = loaded.predict(task.inputs[None])
        steps = stream(loaded, task.inputs)
        difference = float(np.abs(steps - whole[0]).max()) * scale
        word = "to the bit" if np.array_equal(steps, whole[0]) else f"within {difference:.1e} ppm"
        print(f"streamed week by week it gives the same {len(steps)} forecasts {word}")
    results, op = {}, {"tcn": "causal_conv1d"}.get(arguments.model, arguments.model)
    for info in pyrnn.backends():
        if info.backend is None:
            print(f"backend {info}")
            continue
        if not info.backend.has(op):
            print(f"backend {info.name} has no {op}")
            continue
        with pyrnn.use_backend(info.backend):
            results[info.name] = loaded.predict(task.inputs[None])[0]
    spread = max(float(np.abs(a - b).max()) for a in results.values() for b in results.values()) * scale
    print(f"on {', '.join(results)} the forecasts differ by at most {spread:.1e} ppm")
    plot(series, task, predicted, arguments.out / "forecast.png")


if __name__ == "__main__":
    main()
