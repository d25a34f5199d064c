"""Encoders for Q8_0 and the K-quants Q2_K .. Q6_K, in numpy, for rows of multiples of 256 (32).

A K-quant block holds 256 values in sub-blocks, each with a small integer scale (and minimum) that
a float16 of the whole block multiplies:

    Q2_K, Q4_K, Q5_K   x = d * scale * q - dmin * minimum      q from 0
    Q3_K, Q6_K         x = d * scale * q                       q signed

The search for them, the same for all: (1) each sub-block alone: for a row of trial step sizes,
round, solve the least squares for the best real scale and minimum, keep the trial that errs least;
(2) quantise scales and minima to the block's integers; (3) a few rounds of: with all integers
fixed, solve for d and dmin; with those fixed, try for each sub-block the neighbours of its scale
and minimum and round its values again. The error is that of the weights, unweighted unless
`importance` (a weight for each column, as from activations) is given.
"""

import dataclasses

import numpy

F16_MAX = 65504.0
TRIALS = 25  # step sizes tried for a sub-block
REFINEMENTS = 3
BLOCKS_AT_ONCE = 4096  # bounds memory: about 100 MB


@dataclasses.dataclass(frozen=True)
class Kind:
    sub: int  # values in a sub-block
    low: int  # of q
    high: int
    scale_low: int  # of a sub-block's scale (and minimum)
    scale_high: int
    has_minimum: bool


KINDS = {
    "Q2_K": Kind(16, 0, 3, 0, 15, True),
    "Q3_K": Kind(16, -4, 3, -32, 31, False),
    "Q4_K": Kind(32, 0, 15, 0, 63, True),
    "Q5_K": Kind(32, 0, 31, 0, 63, True),
    "Q6_K": Kind(16, -32, 31, -128, 127, False),
}


def quantize(data: numpy.ndarray, kind: str, importance: numpy.ndarray | None = None):
    """float32 [..., n] to the raw bytes [..., bytes of a row]."""
    block, size = (32, 34) if kind == "Q8_0" else (256, BLOCK_BYTES[kind])
    if data.shape[-1] % block:
        raise ValueError(f"{kind}: expected rows of a multiple of {block}, found {data.shape}")
    if not numpy.isfinite(data).all():
        raise ValueError(f"{kind}: found values that are not finite")
    blocks = numpy.ascontiguousarray(data, numpy.float32).reshape(-1, block)
    if kind == "Q8_0":
        raw = _quantize_q8_0(blocks)
    else:
        weights = numpy.ones(data.shape[-1], numpy.float32) if importance is None else importance
        weights = numpy.broadcast_to(weights, data.shape).reshape(blocks.shape)
        raw = numpy.concatenate([
            PACK[kind](*_search(blocks[i:i + BLOCKS_AT_ONCE], weights[i:i + BLOCKS_AT_ONCE],
                                KINDS[kind]))
            for i in range(0, len(blocks), BLOCKS_AT_ONCE)])
    return raw.reshape(*data.shape[:-1], data.shape[-1] // block * size)


def _quantize_q8_0(x):
    d = _half(numpy.abs(x).max(1, keepdims=True) / 127)
    q = numpy.clip(numpy.rint(_divide(x, d.astype(numpy.float32))), -127, 127).astype(numpy.int8)
    return numpy.concatenate([d.view(numpy.uint8), q.view(numpy.uint8)], axis=1)


def _half(x):
    return numpy.clip(x, -F16_MAX, F16_MAX).astype(numpy.float16)


def _divide(a, b):
    """a / b, and 0 where b is 0."""
    return numpy.divide(a, b, out=numpy.zeros(numpy.broadcast(a, b).shape, numpy.float32),
                        where=b != 0)


def _search(x, w, kind: Kind):
    """Integers and the two float16 of each block: q [b, 256], scale and minimum [b, subs], d,
    dmin [b]."""
    x, w = (a.reshape(len(a), -1, kind.sub) for a in (x, w))
    step, offset = _fit_sub_blocks(x, w, kind)
    d, scale = _integers(step, kind)
    dmin, minimum = _integers(offset, kind) if kind.has_minimum else (None, None)
    for _ in range(REFINEMENTS):
        q = _round(x, d, dmin, scale, minimum, kind)
        d, dmin = _solve_block(x, w, q, d, dmin, scale, minimum)
        scale, minimum = _try_neighbours(x, w, d, dmin, scale, minimum, kind)
    q = _round(x, d, dmin, scale, minimum, kind)
    return q.reshape(len(q), -1).astype(numpy.int32), scale, minimum, d, dmin


def _fit_sub_blocks(x, w, kind: Kind):
    """The best real step and offset (>= 0, subtracted) of each sub-block by itself."""
    if kind.has_minimum:
        bottom = numpy.minimum(x.min(2), 0)
        span = numpy.maximum(x.max(2), 0) - bottom
        levels = kind.high + numpy.linspace(-0.12, 0.12, TRIALS) * (kind.high + 2)
    else:
        # The value of largest magnitude lies where the signed range reaches furthest: at `low`.
        bottom = numpy.zeros(x.shape[:2], numpy.float32)
        extreme = numpy.abs(x).argmax(2)[..., None]
        span = numpy.take_along_axis(x, extreme, 2)[..., 0]
        levels = kind.low + numpy.linspace(-0.15, 0.15, TRIALS) * (kind.low - 2)
    best = numpy.full(x.shape[:2], numpy.inf, numpy.float32)
    step, offset = numpy.zeros_like(best), numpy.zeros_like(best)
    for level in levels.astype(numpy.float32):
        inverse = _divide(level, span)
        q = numpy.clip(numpy.rint((x - bottom[..., None]) * inverse[..., None]), kind.low,
                       kind.high)
        a, b = _least_squares(x, w, q, kind.has_minimum)
        error = (w * (a[..., None] * q - b[..., None] - x) ** 2).sum(2)
        better = error < best
        best = numpy.where(better, error, best)
        step, offset = numpy.where(better, a, step), numpy.where(better, b, offset)
    return step, offset


def _least_squares(x, w, q, has_minimum):
    """a, b >= 0 that minimise the sum of w (a q - b - x)^2; b is 0 without a minimum."""
    wqq, wqx = (w * q * q).sum(2), (w * q * x).sum(2)
    alone = _divide(wqx, wqq)
    if not has_minimum:
        return alone, numpy.zeros_like(alone)
    ww, wq, wx = w.sum(2), (w * q).sum(2), (w * x).sum(2)
    determinant = ww * wqq - wq * wq
    a = _divide(ww * wqx - wq * wx, determinant)
    b = _divide(wq * wqx - wqq * wx, determinant)
    sound = (determinant > 0) & (a > 0) & (b >= 0)
    # Else one of the two alone, whichever takes more of the error away.
    alone, flat = numpy.maximum(alone, 0), numpy.maximum(_divide(-wx, ww), 0)
    scaled = wqx * alone >= -wx * flat
    return (numpy.where(sound, a, numpy.where(scaled, alone, 0)),
            numpy.where(sound, b, numpy.where(scaled, 0, flat)))


def _integers(real, kind: Kind):
    """A block's float16 unit and each sub-block's multiple of it."""
    if kind.has_minimum:
        unit = real.max(1) / kind.scale_high
    else:
        extreme = numpy.abs(real).argmax(1)[:, None]
        unit = numpy.take_along_axis(real, extreme, 1)[:, 0] / kind.scale_low
    unit = _half(unit).astype(numpy.float32)
    return unit, _clip_scale(numpy.rint(_divide(real, unit[:, None])), kind)


def _clip_scale(scale, kind: Kind):
    return numpy.clip(scale, kind.scale_low, kind.scale_high)


def _round(x, d, dmin, scale, minimum, kind: Kind):
    lifted = x if minimum is None else x + (dmin[:, None] * minimum)[..., None]
    q = numpy.rint(_divide(lifted, (d[:, None] * scale)[..., None]))
    return numpy.clip(q, kind.low, kind.high)


def _solve_block(x, w, q, d, dmin, scale, minimum):
    """d and dmin for the integers as they are, in float16; the old ones where none is sound."""
    u = scale[..., None] * q
    axes = (1, 2)
    uu, ux = (w * u * u).sum(axes), (w * u * x).sum(axes)
    if minimum is None:
        return _kept(_divide(ux, uu), d, uu > 0), None
    v = -minimum[..., None]
    vv, uv, vx = (w * v * v).sum(axes), (w * u * v).sum(axes), (w * v * x).sum(axes)
    determinant = uu * vv - uv * uv
    sound = determinant > 1e-6 * uu * vv
    new_d = _divide(vv * ux - uv * vx, determinant)
    new_dmin = _divide(uu * vx - uv * ux, determinant)
    sound &= (new_d > 0) & (new_dmin >= 0)
    return _kept(new_d, d, sound), _kept(new_dmin, dmin, sound)


def _kept(new, old, sound):
    return numpy.where(sound, _half(new).astype(numpy.float32), old)


def _try_neighbours(x, w, d, dmin, scale, minimum, kind: Kind):
    best = numpy.full(scale.shape, numpy.inf, numpy.float32)
    best_scale, best_minimum = scale, minimum
    reach = (0, -1, 1)
    for by in reach:
        for minimum_by in reach if kind.has_minimum else (0,):
            trial = _clip_scale(scale + by, kind)
            trial_minimum = minimum
            if kind.has_minimum:
                trial_minimum = _clip_scale(minimum + minimum_by, kind)
            q = _round(x, d, dmin, trial, trial_minimum, kind)
            value = (d[:, None] * trial)[..., None] * q
            if kind.has_minimum:
                value = value - (dmin[:, None] * trial_minimum)[..., None]
            error = (w * (value - x) ** 2).sum(2)
            better = error < best
            best = numpy.where(better, error, best)
            best_scale = numpy.where(better, trial, best_scale)
            if kind.has_minimum:
                best_minimum = numpy.where(better, trial_minimum, best_minimum)
    return best_scale, best_minimum


# Packing. Values of a block are numbered as halves of 128, in each of them groups of 32.


def _bytes(*columns):
    return numpy.concatenate([c.view(numpy.uint8).reshape(len(c), -1) for c in columns], axis=1)


def _f16(x):
    return x.astype(numpy.float16).reshape(-1, 1)


def _u8(x):
    return numpy.ascontiguousarray(x).astype(numpy.uint8)


def _pack_q2(q, scale, minimum, d, dmin):
    groups = _u8(q).reshape(-1, 2, 4, 32)
    qs = groups[:, :, 0] | groups[:, :, 1] << 2 | groups[:, :, 2] << 4 | groups[:, :, 3] << 6
    return _bytes(_u8(scale) | _u8(minimum) << 4, qs, _f16(d), _f16(dmin))


def _pack_q3(q, scale, _minimum, d, _dmin):
    unsigned = _u8(q + 4).reshape(-1, 2, 4, 32)
    low, high = unsigned & 3, unsigned >> 2
    qs = low[:, :, 0] | low[:, :, 1] << 2 | low[:, :, 2] << 4 | low[:, :, 3] << 6
    shifts = numpy.arange(8, dtype=numpy.uint8).reshape(1, 8, 1)
    mask = numpy.bitwise_or.reduce(high.reshape(-1, 8, 32) << shifts, axis=1)
    s = _u8(scale + 32)
    low4 = s[:, :8] & 15 | (s[:, 8:] & 15) << 4
    top = s >> 4
    high2 = top[:, 0:4] | top[:, 4:8] << 2 | top[:, 8:12] << 4 | top[:, 12:16] << 6
    return _bytes(mask, qs, low4, high2, _f16(d))


def _six_bit_pairs(scale, minimum):
    """8 scales and 8 minima of 6 bits in 12 bytes: the upper 4 of each lie in pieces."""
    s, m = _u8(scale), _u8(minimum)
    return numpy.concatenate([s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6,
                              s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], axis=1)


def _pack_q4(q, scale, minimum, d, dmin):
    pairs = _u8(q).reshape(-1, 4, 2, 32)
    return _bytes(_f16(d), _f16(dmin), _six_bit_pairs(scale, minimum),
                  pairs[:, :, 0] | pairs[:, :, 1] << 4)


def _pack_q5(q, scale, minimum, d, dmin):
    values = _u8(q)
    pairs = values.reshape(-1, 4, 2, 32) & 15
    shifts = numpy.arange(8, dtype=numpy.uint8).reshape(1, 8, 1)
    high = numpy.bitwise_or.reduce((values >> 4).reshape(-1, 8, 32) << shifts, axis=1)
    return _bytes(_f16(d), _f16(dmin), _six_bit_pairs(scale, minimum), high,
                  pairs[:, :, 0] | pairs[:, :, 1] << 4)


def _pack_q6(q, scale, _minimum, d, _dmin):
    groups = _u8(q + 32).reshape(-1, 2, 4, 32)
    low, high = groups & 15, groups >> 4
    ql = low[:, :, :2] | low[:, :, 2:] << 4
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return _bytes(ql, qh, scale.astype(numpy.int8), _f16(d))


BLOCK_BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
PACK = {"Q2_K": _pack_q2, "Q3_K": _pack_q3, "Q4_K": _pack_q4, "Q5_K": _pack_q5, "Q6_K": _pack_q6}
