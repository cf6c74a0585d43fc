"""Dropout of attention's weights: which are kept is a function of seed, row, head and positions, by Philox4x32-10.

Salmon et al. (2011), "Parallel Random Numbers: As Easy as 1, 2, 3". A counter is (key // 4, position, head, row); its
four words are for four keys.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .vector import INT, Emitter, Vector, emitted, whole

LOW = 0xFFFFFFFF


def _philox(e: Emitter, words: list[Any], seed: Any) -> list[Any]:
    """Return four random words for each counter; a word is the low half of 64 bits."""
    builder = e.builder
    low, half = e.spread(whole(LOW)), e.spread(whole(32))
    words = [builder.and_(word, low) for word in words]
    key = [builder.and_(seed, whole(LOW)), builder.lshr(seed, whole(32))]
    for _ in range(10):
        first = builder.mul(words[0], e.spread(whole(0xD2511F53)))
        second = builder.mul(words[2], e.spread(whole(0xCD9E8D57)))
        words = [
            builder.xor(builder.xor(builder.lshr(second, half), words[1]), e.spread(key[0])),
            builder.and_(second, low),
            builder.xor(builder.xor(builder.lshr(first, half), words[3]), e.spread(key[1])),
            builder.and_(first, low),
        ]
        key = [
            builder.and_(builder.add(part, whole(step)), whole(LOW))
            for part, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
    return words


@emitted()
def drop(e, s, width, key, count, position, head, row, seed, threshold, factor):
    """Multiply a vector of rows' weights with 0 or the number at ``factor``, for keys from ``key`` on, four times n.

    ``position`` and ``head`` are addresses of the rows' own. Up to three keys past ``count`` are written too.
    """
    builder = e.builder
    rows = [e.load_wholes(position), e.load_wholes(head), e.spread(row)]
    least, zero, number = e.spread(threshold), e.all(0.0), e.load_all(factor)
    quads = builder.sdiv(builder.add(count, whole(3)), whole(4))
    first = builder.sdiv(key, whole(4))

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        words = _philox(e, [e.spread(builder.add(first, k)), *rows], seed)
        for i, word in enumerate(words):
            at = builder.add(s, builder.mul(width, builder.add(builder.mul(k, whole(4)), ir.Constant(INT, i))))
            kept = builder.icmp_unsigned(">=", word, least)
            e.store(e.load(at) * e.where(kept, number, zero), at)
        return []

    e.loop(quads, [], body)
