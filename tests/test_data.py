"""pyrnn.data: round trips of ragged sequences, promises of the loaders, windows by a plain loop."""

from __future__ import annotations

import copy
import json
import pickle
import re
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pyrnn.data import (
    Batches,
    Buckets,
    Loader,
    Packed,
    TokenBatches,
    compare_padding,
    pack,
    pad,
    padding_report,
    unpack,
    unpad,
    windows,
)

DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint16", "bool", "complex64"]

seeds = st.integers(0, 2**32 - 1)
length_lists = st.lists(st.integers(0, 30), max_size=60)


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


@st.composite
def ragged(draw: st.DrawFn) -> list[np.ndarray]:
    """Sequences of one dtype and trailing shape, some of them empty."""
    dtype = draw(st.sampled_from(DTYPES))
    trailing = draw(st.sampled_from([(), (1,), (3,), (2, 3), (0,)]))
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    seed = draw(seeds)
    return [numbers((n, *trailing), dtype, seed + i) for i, n in enumerate(lengths)]


def all_true(mask: np.ndarray) -> bool:
    return bool(np.all(mask))


def assert_same(a: list[Any], b: list[Any]) -> None:
    """Equal lists of arrays, or of tuples of arrays."""
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        if isinstance(left, tuple):
            assert_same(list(left), list(right))
        else:
            assert left.dtype == right.dtype
            assert_array_equal(left, right, strict=True)


def is_same(a: list[Any], b: list[Any]) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


# Ragged sequences


@given(ragged(), st.integers(0, 3), st.sampled_from([0, 1]))
def test_pad_then_unpad_gives_the_sequences(sequences, extra, value):
    longest = max(map(len, sequences))
    data, lengths = pad(sequences, value=value, length=longest + extra)
    assert data.shape == (len(sequences), longest + extra, *sequences[0].shape[1:])
    assert data.dtype == sequences[0].dtype
    assert lengths.dtype == np.int64
    assert_same(unpad(data, lengths), sequences)
    assert all_true(np.concatenate([row[n:] for row, n in zip(data, lengths, strict=True)]) == value)


@given(ragged(), st.integers(0, 3), st.sampled_from([0, 1]))
def test_pack_then_unpack_gives_the_padded_batch(sequences, extra, value):
    padded = pad(sequences, value=value, length=max(map(len, sequences)) + extra)
    packed = pack(*padded)
    assert_same([packed.data], [np.concatenate(sequences)])
    assert_same(list(unpack(packed, value=value, length=padded.data.shape[1])), list(padded))
    assert_same(list(unpack(packed)), list(pad(sequences)))


@given(ragged())
def test_packed_layout_is_the_documented_one(sequences):
    data, lengths = pack(*pad(sequences))
    ends = lengths.cumsum()
    slices = [data[ends[b] - lengths[b] : ends[b]] for b in range(len(lengths))]
    assert_same(slices, sequences)


def test_padding_does_not_reach_the_packed_form():
    data = np.array([[1.0, np.nan], [np.nan, np.nan], [2.0, 3.0]])
    assert_array_equal(pack(data, [1, 0, 2]).data, [1.0, 2.0, 3.0])


def test_unpad_gives_views_and_pack_a_copy():
    data = np.ones((2, 3))
    assert all(np.shares_memory(row, data) for row in unpad(data, [1, 3]))
    assert not np.shares_memory(pack(data, [3, 3]).data, data)


def test_a_batch_of_no_rows_packs_and_unpacks():
    packed = pack(np.zeros((0, 4, 2), "float32"), [])
    assert packed.data.shape == (0, 2)
    assert_same(list(unpack(packed, length=4)), [np.zeros((0, 4, 2), "float32"), packed.lengths])


def test_read_only_and_strided_sequences_are_padded():
    base = np.arange(12.0).reshape(4, 3)
    base.flags.writeable = False
    data, lengths = pad([base.T, base[::-2, 1:].repeat(2, axis=1)])
    assert_array_equal(data[0], base.T)
    assert_array_equal(data[1], [[10, 10, 11, 11], [4, 4, 5, 5], [0, 0, 0, 0]])
    assert_array_equal(lengths, [3, 2])


def test_the_lengths_of_a_result_are_its_own():
    lengths = np.array([1, 2])
    packed = pack(np.ones((2, 2)), lengths)
    lengths[:] = 0
    assert_array_equal(packed.lengths, [1, 2])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 0.1, -1])
def test_float_padding_takes_any_value_rounded_to_the_dtype(dtype, value):
    data, _ = pad([np.ones(2, dtype), np.ones(1, dtype)], value=value)
    assert_array_equal(data[1, 1], np.array(value, dtype))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pad([]), ValueError, "sequences: expected at least one, got none"),
        (lambda: pad([[1], 2]), ValueError, r"sequences[1]: expected shape (T, ...)"),
        (
            lambda: pad([np.ones(1, "f4"), np.ones(1, "f8")]),
            TypeError,
            "same dtype in all, got float32 in sequences[0] and float64 in sequences[1]",
        ),
        (
            lambda: pad([np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 4))]),
            ValueError,
            "got (2, 3) in sequences[0] and (2, 4) in sequences[2]",
        ),
        (
            lambda: pad([[1], [1, 2, 3]], length=2),
            ValueError,
            "length: expected at least that of the longest sequence, got 2 where sequence 1 of sequences has 3 steps",
        ),
        (lambda: pad([[1]], length=1.5), TypeError, "length: expected a whole number, got 1.5"),
        (lambda: pad([[1]], length=-1), ValueError, "length: expected at least 0, got -1"),
        (lambda: pad([["a"]]), TypeError, "sequences: expected a numeric or bool dtype, got <U1"),
        (lambda: pad([[1]], value="a"), TypeError, "value: expected a scalar of the"),
        (lambda: pad([[1.0]], value=1j), TypeError, "dtype float64, got 1j"),
        (lambda: pad([[1.0]], value=[0.0]), TypeError, "value: expected a scalar"),
        (lambda: pad([[1]], value=0.5), ValueError, "value of the sequences' dtype int64, got 0.5"),
        (lambda: pad([[1]], value=np.nan), ValueError, "dtype int64, got nan"),
        (lambda: pad([np.ones(1, "u1")], value=-1), ValueError, "dtype uint8, got -1"),
        (lambda: pad([np.ones(1, "f4")], value=1e300), ValueError, "dtype float32, got 1e+300"),
        (lambda: pack([1, 2], [1]), ValueError, "data: expected shape (B, T, ...)"),
        (lambda: unpad([[1, 2]], [1, 1]), ValueError, "lengths: expected shape (B,) = (1,), got (2,)"),
        (lambda: unpad([[1, 2]], 1), ValueError, "lengths: expected shape (B,) = (1,), got ()"),
        (lambda: pack([[1, 2]], [1.0]), TypeError, "lengths: expected integers, got float64"),
        (lambda: pack([[1, 2]], [True]), TypeError, "lengths: expected integers, got bool"),
        (lambda: pack([[1], [2]], [0, -1]), ValueError, "lengths: expected values from 0 to T = 1, got -1 to 0"),
        (lambda: unpad([[1], [2]], [1, 2]), ValueError, "lengths: expected values from 0 to T = 1, got 1 to 2"),
        (
            lambda: unpack(Packed(np.ones((3, 2)), np.array([1, 1]))),
            ValueError,
            "packed.data: expected shape (lengths.sum(), ...) = (2, ...), got (3, 2)",
        ),
        (
            lambda: unpack(pack([[1, 2]], [2]), length=1),
            ValueError,
            "got 1 where sequence 0 of packed has 2 steps",
        ),
    ],
)
def test_ragged_errors_say_what_came(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


# Loaders


@st.composite
def loader_makers(draw: st.DrawFn) -> Any:
    """A function from an rng to a loader; every loader class, all settings drawn."""
    lengths = draw(length_lists)
    settings: dict[str, Any] = {"shuffle": draw(st.booleans())}
    kind = draw(st.sampled_from([Batches, Buckets, TokenBatches]))
    if kind is not TokenBatches:
        settings["batch_size"] = draw(st.integers(1, 9))
        settings["drop_last"] = draw(st.booleans())
    if kind is Batches:
        return lambda rng: Batches(np.arange(len(lengths)), lengths, rng=rng, **settings)
    settings["num_buckets"] = draw(st.integers(1, 9))
    if kind is TokenBatches:
        settings["max_tokens"] = draw(st.integers(30, 200))
    return lambda rng: kind(lengths, rng=rng, **settings)


def epochs(loader: Loader[Any], count: int) -> list[list[Any]]:
    return [list(loader) for _ in range(count)]


@given(loader_makers(), seeds)
def test_the_same_seed_gives_the_same_epochs(make, seed):
    of_int = epochs(make(seed), 3)
    of_generator = epochs(make(np.random.default_rng(seed)), 3)
    for a, b in zip(of_int, of_generator, strict=True):
        assert_same(a, b)


@given(loader_makers(), seeds)
def test_len_is_the_number_of_batches(make, seed):
    loader = make(seed)
    for _ in range(3):
        expected = len(loader)
        assert sum(1 for _ in loader) == expected


@given(loader_makers(), seeds, seeds, st.integers(0, 100))
def test_a_loader_resumes_where_the_saved_one_stood(make, seed, other_seed, stop):
    loader = make(seed)
    state = loader.state_dict()
    # Counted epochs: where an epoch has no batches, `stop` would never be reached.
    running = chain.from_iterable(iter(loader) for _ in range(4))
    for _ in islice(running, stop):
        state = loader.state_dict()
    state = json.loads(json.dumps(state))

    straight = make(seed)
    all_epochs = epochs(straight, 6)
    resumed = make(other_seed)
    resumed.load_state_dict(state)
    assert resumed.epoch == state["epoch"]
    assert resumed.state_dict() == state
    assert_same(list(resumed), all_epochs[state["epoch"]][state["position"] :])
    assert_same(list(resumed), all_epochs[state["epoch"] + 1])


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_state_counts_the_batches_handed_out(shuffle):
    loader = Batches(np.arange(5), batch_size=2, shuffle=shuffle, rng=0)

    def stands() -> tuple[int, int]:
        state = loader.state_dict()
        return state["epoch"], state["position"]

    assert stands() == (0, 0)
    assert [stands() for _ in loader] == [(0, 1), (0, 2), (0, 3)]
    assert stands() == (1, 0)
    assert [stands() for _ in loader] == [(1, 1), (1, 2), (1, 3)]


def test_a_state_of_the_last_batch_leaves_an_empty_epoch():
    loader = Batches(np.arange(4), batch_size=2, rng=0)
    state = [loader.state_dict() for _ in loader][-1]
    resumed = Batches(np.arange(4), batch_size=2, rng=1)
    resumed.load_state_dict(state)
    assert list(resumed) == []
    assert_same(list(resumed), list(loader))


def test_an_epoch_broken_off_is_not_gone_on_with():
    straight = epochs(Batches(np.arange(50), batch_size=7, rng=3), 2)
    loader = Batches(np.arange(50), batch_size=7, rng=3)
    assert_same([next(iter(loader))], straight[0][:1])
    begun = iter(loader)
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)
    assert_same(list(begun), straight[1])


def test_two_iterators_of_a_loader_do_not_disturb_each_other():
    straight = epochs(Batches(np.arange(20), batch_size=6, rng=3), 2)
    loader = Batches(np.arange(20), batch_size=6, rng=3)
    pairs = list(zip(loader, loader, strict=True))
    assert_same([first for first, _ in pairs], straight[0])
    assert_same([second for _, second in pairs], straight[1])


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_a_generator_is_drawn_from_once(bits):
    mine, other = np.random.Generator(bits(5)), np.random.Generator(bits(5))
    loader = Buckets(np.arange(100), 8, rng=mine)
    Buckets(np.arange(100), 8, rng=other)
    epochs(loader, 2)
    assert mine.random() == other.random()
    json.dumps(loader.state_dict())


def make_loaders(rng: Any) -> list[Loader[Any]]:
    lengths = np.arange(100) % 37
    return [
        Batches(np.arange(100), batch_size=8, rng=rng),
        Buckets(lengths, 8, rng=rng),
        TokenBatches(lengths, 100, rng=rng),
    ]


def test_epochs_and_seeds_differ_in_their_order():
    for loader, other in zip(make_loaders(0), make_loaders(1), strict=True):
        first, second = epochs(loader, 2)
        assert not is_same(first, second)
        assert not is_same(first, list(other))


def test_two_loaders_of_one_generator_differ():
    rng = np.random.default_rng(0)
    first, second = (Batches(np.arange(100), batch_size=8, rng=rng) for _ in range(2))
    assert not is_same(list(first), list(second))


def test_copies_and_pickles_go_on_alike_and_alone():
    for loader in make_loaders(0):
        next(iter(loader))
        twins = [copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))]
        expected = list(loader)
        for twin in twins:
            assert_same(list(twin), expected)


@given(length_lists, st.integers(1, 9), st.booleans(), st.booleans(), seeds)
def test_batches_keeps_rows_together(lengths, batch_size, shuffle, drop_last, seed):
    rows, columns = np.array(lengths, "int64"), numbers((len(lengths), 2, 3), "float32", seed)
    index = np.arange(len(lengths))
    loader = Batches(index, rows, columns, batch_size=batch_size, shuffle=shuffle, rng=seed, drop_last=drop_last)
    batches = list(loader)
    for i, row, column in batches:
        assert_same([row, column], [rows[i], columns[i]])
    drawn = np.concatenate([index[:0], *(i for i, *_ in batches)])
    assert_index_once(drawn, len(lengths), missing=len(lengths) % batch_size if drop_last else 0)
    assert all(len(i) == batch_size for i, *_ in batches[: None if drop_last else -1])
    if not shuffle:
        assert_array_equal(drawn, index[: len(drawn)])


def assert_index_once(drawn: np.ndarray, count: int, *, missing: int = 0) -> None:
    assert len(np.unique(drawn)) == len(drawn) == count - missing
    assert np.isin(drawn, np.arange(count)).all()


def test_batches_are_copies():
    x = np.arange(6.0)
    for (batch,) in Batches(x, batch_size=2, shuffle=False):
        batch[:] = -1
    assert_array_equal(x, np.arange(6.0))


@given(length_lists, st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), seeds)
def test_buckets_draw_every_index_once(lengths, batch_size, num_buckets, shuffle, drop_last, seed):
    loader = Buckets(lengths, batch_size, num_buckets=num_buckets, shuffle=shuffle, rng=seed, drop_last=drop_last)
    batches = list(loader)
    missing = len(lengths) % batch_size if drop_last else 0
    drawn = np.concatenate([np.arange(0), *batches])
    assert_index_once(drawn, len(lengths), missing=missing)
    short = [len(batch) for batch in batches if len(batch) != batch_size]
    assert short == [len(lengths) % batch_size] * (missing == 0 and len(lengths) % batch_size > 0)
    if not shuffle:
        in_order = np.array(lengths, "int64")[drawn]
        assert all_true(in_order[:-1] <= in_order[1:])


@given(st.permutations(range(50)), st.integers(1, 9), st.integers(1, 60), seeds)
def test_a_batch_comes_from_one_bucket(lengths, batch_size, num_buckets, seed):
    # Lengths 0..49, each once, are their own ranks: a bucket is a range of them.
    bucket_size = next(size for size in range(batch_size, 100, batch_size) if size * num_buckets >= 50)
    for index in Buckets(lengths, batch_size, num_buckets=num_buckets, rng=seed):
        assert len(np.unique(np.array(lengths)[index] // bucket_size)) == 1


def test_one_bucket_mixes_all_lengths():
    lengths = np.arange(1000)
    spreads = [np.ptp(index) for index in Buckets(lengths, 50, num_buckets=1, rng=0)]
    assert min(spreads) > 500


def test_drop_last_drops_others_in_every_epoch():
    loader = Buckets(np.arange(7), 4, rng=0, drop_last=True)
    shown = np.concatenate([batch for epoch in epochs(loader, 20) for batch in epoch])
    assert_array_equal(np.unique(shown), np.arange(7))


def test_drop_last_without_shuffling_drops_the_last_of_the_list():
    batches = list(Buckets([9, 8, 7, 1, 2], 2, shuffle=False, drop_last=True))
    assert_same(batches, [np.array([3, 2]), np.array([1, 0])])


@given(length_lists, st.integers(30, 200), st.sampled_from([1, 3, 100]), st.booleans(), seeds)
def test_token_batches_keep_the_budget(lengths, max_tokens, num_buckets, shuffle, seed):
    loader = TokenBatches(lengths, max_tokens, num_buckets=num_buckets, shuffle=shuffle, rng=seed)
    known = np.array(lengths, "int64")
    for batches in epochs(loader, 2):
        assert all(len(batch) * known[batch].max() <= max_tokens for batch in batches)
        assert_index_once(np.concatenate([np.arange(0), *batches]), len(lengths))


@given(length_lists, st.integers(30, 200))
def test_token_batches_are_full(lengths, max_tokens):
    batches = list(TokenBatches(lengths, max_tokens, shuffle=False))
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[following[0]] > max_tokens


@pytest.mark.parametrize("seed", range(5))
def test_token_batches_in_any_order_keep_the_budget_and_use_it(seed):
    lengths = np.ones(501, "int64")
    lengths[0] = 100
    batches = list(TokenBatches(lengths, 100, num_buckets=1, rng=seed))
    # The long sequence stands alone and cuts the others in two runs, each with one short batch.
    assert [len(batch) for batch in batches if 0 in batch] == [1]
    assert len(batches) <= 7


def test_batches_of_all_lengths_take_turns():
    lengths = np.arange(1, 301)
    for loader in (Buckets(lengths, 10, rng=0), TokenBatches(lengths, 1000, rng=0)):
        shortest = [lengths[index].min() for index in loader]
        assert shortest != sorted(shortest)


def test_a_sequence_as_long_as_the_budget_is_a_batch():
    assert sorted(map(len, TokenBatches([4, 8, 4], 8, rng=0))) == [1, 2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Batches(batch_size=1), ValueError, "arrays: expected at least one"),
        (lambda: Batches([1], 2, batch_size=1), ValueError, "arrays[1]: expected shape"),
        (
            lambda: Batches([1, 2], [1, 2, 3], batch_size=1),
            ValueError,
            "got 2 in arrays[0] and 3 in arrays[1]",
        ),
        (lambda: Batches([1], batch_size=0), ValueError, "batch_size: expected at least 1, got 0"),
        (lambda: Batches([1], batch_size=True), TypeError, "batch_size: expected a whole number"),
        (lambda: Batches([1], batch_size=1, rng="a"), TypeError, "rng: expected a numpy.random"),
        (lambda: Batches([1], batch_size=1, rng=-1), ValueError, "an int >= 0 or None, got -1"),
        (lambda: Buckets([1.5], 1), TypeError, "lengths: expected integers, got float64"),
        (lambda: Buckets([[1]], 1), ValueError, "lengths: expected shape (B,), got (1, 1)"),
        (lambda: Buckets([1, -2], 1), ValueError, "lengths: expected values from 0 on, got -2 to 1"),
        (lambda: Buckets([1], 2.0), TypeError, "batch_size: expected a whole number, got 2.0"),
        (lambda: Buckets([1], 1, num_buckets=0), ValueError, "num_buckets: expected at least 1"),
        (
            lambda: TokenBatches([3, 9, 4], 8),
            ValueError,
            "max_tokens: expected at least the longest length, got 8 where lengths[1] = 9",
        ),
        (lambda: TokenBatches([], 0), ValueError, "max_tokens: expected at least 1, got 0"),
    ],
)
def test_loader_errors_say_what_came(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def state_with(**changes: Any) -> dict[str, Any]:
    return Buckets([1, 2, 3], 2, rng=0).state_dict() | changes


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (3, ValueError, "state: expected a mapping with the keys"),
        ({"epoch": 1}, ValueError, "['seed', 'epoch', 'position', 'settings'], got {'epoch': 1}"),
        (state_with(more=1), ValueError, "state: expected a mapping with the keys"),
        (state_with(epoch=-1), ValueError, "state['epoch']: expected at least 0, got -1"),
        (state_with(position="1"), TypeError, "state['position']: expected a whole number, got '1'"),
        (Buckets([1, 2, 3], 1).state_dict(), ValueError, "same data and settings"),
        (Buckets([1, 3, 2], 2).state_dict(), ValueError, "same data and settings"),
        (Buckets([1, 2, 3], 2, shuffle=False).state_dict(), ValueError, "same data and settings"),
        (Buckets([1, 2, 3], 2, num_buckets=3).state_dict(), ValueError, "same data and settings"),
        (Buckets([1, 2, 3], 2, drop_last=True).state_dict(), ValueError, "same data and settings"),
        (TokenBatches([1, 2, 3], 9).state_dict(), ValueError, "same data and settings"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(state, error, words):
    loader = Buckets([1, 2, 3], 2, rng=0)
    before = loader.state_dict()
    with pytest.raises(error, match=re.escape(words)):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


# Padding


@given(length_lists, st.integers(1, 9), seeds)
def test_padding_report_counts_as_a_plain_loop_does(lengths, batch_size, seed):
    batches = list(Buckets(lengths, batch_size, num_buckets=2, rng=seed))
    valid = padding = 0
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        for i in batch:
            valid += lengths[i]
            padding += longest - lengths[i]
    report = padding_report(lengths, batches)
    assert report == (len(batches), valid, padding)
    assert report.fill == pytest.approx(valid / (valid + padding) if valid else 1.0)


def test_a_report_does_not_advance_the_loader():
    lengths = np.arange(1, 100)
    loader = Buckets(lengths, 8, num_buckets=2, rng=0)
    before = loader.state_dict()
    report = padding_report(lengths, loader)
    assert loader.state_dict() == before
    assert report == padding_report(lengths, list(loader))


def test_both_loaders_save_most_of_the_padding():
    lengths = np.random.default_rng(0).lognormal(4.0, 0.6, 3000).astype(int)
    plain = padding_report(lengths, Buckets(lengths, 32, num_buckets=1, rng=0))
    bucketed = padding_report(lengths, Buckets(lengths, 32, rng=0))
    by_tokens = padding_report(lengths, TokenBatches(lengths, 4000, rng=0))
    assert plain.fill < 0.5
    assert bucketed.fill > 0.9
    assert by_tokens.fill > 0.9


def test_compare_padding_is_a_table():
    lengths = [3, 5000, 3, 1]
    batches = {"plain": [[0, 1], [2, 3]], "sorted, for short": [[0, 2, 3], [1], []], "none": []}
    assert compare_padding(lengths, batches).splitlines() == [
        "strategy           batches  valid  padding    fill   saved",
        "plain                    2  5,007    4,999   50.0%    0.0%",
        "sorted, for short        3  5,007        2  100.0%  100.0%",
        "none                     0      0        0  100.0%  100.0%",
    ]
    assert compare_padding(lengths, {"sorted": [[0, 2]]}).endswith("100.0%      -")


def test_a_report_prints_as_a_sentence():
    report = padding_report([1000, 500], [[0, 1]])
    assert str(report) == "1 batches, 1,500 valid steps, 500 padding steps, 75.0% full"


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([[0], [0, 2]], ValueError, "batches[1]: expected indices of the 2 lengths, got 0 to 2"),
        ([[-1]], ValueError, "batches[0]: expected indices of the 2 lengths, got -1 to -1"),
        ([[0.0]], TypeError, "batches[0]: expected integer indices"),
        ([[[0]]], TypeError, "of shape (B,), got int64 of shape (1, 1)"),
    ],
)
def test_report_errors_say_what_came(batches, error, words):
    with pytest.raises(error, match=re.escape(words)):
        padding_report([1, 2], batches)


# Windows


@given(
    st.integers(1, 20),
    st.sampled_from([(), (2,), (2, 3)]),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 5),
    st.sampled_from(DTYPES),
    seeds,
)
def test_windows_are_those_of_a_plain_loop(time, trailing, length, horizon, stride, dtype, seed):
    series = numbers((time + length + horizon - 1, *trailing), dtype, seed)
    inputs, targets = [], []
    start = 0
    while start + length + horizon <= len(series):
        inputs.append(series[start : start + length])
        targets.append(series[start + length : start + length + horizon])
        start += stride
    found = windows(series, length, horizon=horizon, stride=stride)
    assert_same(list(found), [np.stack(inputs), np.stack(targets)])


def test_windows_are_read_only_views():
    series = np.arange(10.0)
    for view in windows(series, 3, horizon=2):
        assert np.shares_memory(view, series)
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 0
    assert series.flags.writeable


def test_windows_can_be_batched():
    loader = Batches(*windows(np.arange(100), 8, horizon=1), batch_size=16, rng=0)
    seen = []
    for x, y in loader:
        assert_array_equal(x, y - np.arange(8, 0, -1))
        seen.extend(y[:, 0])
    assert sorted(seen) == list(range(8, 100))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: windows([1, 2, 3], 3, horizon=1),
            ValueError,
            "T at least length + horizon = 4, got (3,)",
        ),
        (lambda: windows(1, 1), ValueError, "series: expected shape (T, ...)"),
        (lambda: windows([1], 0), ValueError, "length: expected at least 1, got 0"),
        (lambda: windows([1], 1, horizon=-1), ValueError, "horizon: expected at least 0, got -1"),
        (lambda: windows([1], 1, stride=0), ValueError, "stride: expected at least 1, got 0"),
        (lambda: windows([1], 1.0), TypeError, "length: expected a whole number, got 1.0"),
    ],
)
def test_window_errors_say_what_came(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()
