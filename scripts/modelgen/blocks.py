"""Random quantised blocks: the bytes of a GGUF tensor row without a quantiser. Needs numpy only.

In: a ggml type, a number of blocks, a target standard deviation, a numpy Generator. Out: uint8 [n,
block_bytes]. Each block is what a quantiser could have written for weights ~ uniform about zero:
random quants, and scales chosen so that the dequantised values have the target standard deviation
(within 2 %) and a mean of zero. Layouts are those of the GGUF specification, checked against PyPI
gguf's dequantiser, the independent reader.
"""

from enum import IntEnum

import numpy as np


class T(IntEnum):
    """ggml type ids, as a GGUF file stores them."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    IQ1_M = 29
    BF16 = 30
    MXFP4 = 39


# (elements, bytes) of one block.
BLOCK = {
    T.F32: (1, 4),
    T.F16: (1, 2),
    T.BF16: (1, 2),
    T.Q8_0: (32, 34),
    T.Q4_0: (32, 18),
    T.Q4_1: (32, 20),
    T.Q5_0: (32, 22),
    T.Q5_1: (32, 24),
    T.Q2_K: (256, 84),
    T.Q3_K: (256, 110),
    T.Q4_K: (256, 144),
    T.Q5_K: (256, 176),
    T.Q6_K: (256, 210),
    T.MXFP4: (32, 17),
    T.IQ4_NL: (32, 18),
    T.IQ4_XS: (256, 136),
    T.IQ3_S: (256, 110),
    T.IQ3_XXS: (256, 98),
    T.IQ2_S: (256, 82),
    T.IQ2_XS: (256, 74),
    T.IQ2_XXS: (256, 66),
    T.IQ1_M: (256, 56),
    T.IQ1_S: (256, 50),
}
SUPPORTED = list(BLOCK)

MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
MXFP4_RMS = float(np.sqrt((MXFP4_VALUES.astype(np.float64) ** 2).mean()))
IQ4_RMS = float(np.sqrt((IQ4_VALUES.astype(np.float64) ** 2).mean()))
# Codebook formats: standard deviation of a value with d = 1 under random bits, times the size of an
# odd scale (2s + 1 of 4 bits: 18.47; of 3 bits: 9.22) and the unit of d. Signs cancel the mean.
IQ_STD = {
    T.IQ3_S: 18.47 * 7.61,
    T.IQ3_XXS: 18.47 / 4 * 30.8,
    T.IQ2_S: 18.47 / 8 * 24.6,
    T.IQ2_XS: 18.47 / 8 * 24.15,
    T.IQ2_XXS: 18.47 / 8 * 23.0,
    T.IQ1_M: 9.22 / 8 * 6.23,
    T.IQ1_S: 9.22 / 8 * 6.23,
}


def block_size(qtype):
    return BLOCK[qtype]


def _f16(values):
    return np.asarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def _jitter(rng, n, std):
    """One positive scale per block, ± 20 % about std, as a quantiser's block maxima would vary."""
    return np.float32(std) * (np.float32(0.8) + np.float32(0.4) * rng.random(n, dtype=np.float32))


def _bytes(rng, n, width):
    return np.frombuffer(rng.bytes(n * width), np.uint8).reshape(n, width)


def pack_k4_scales(scales, mins):
    """8 + 8 six-bit numbers → the 12 bytes of Q4_K and Q5_K. Both uint8 [n, 8]."""
    out = np.empty((scales.shape[0], 12), np.uint8)
    out[:, 0:4] = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    out[:, 4:8] = (mins[:, :4] & 63) | ((mins[:, 4:] >> 4) << 6)
    out[:, 8:12] = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return out


def pack_k3_scales(scales):
    """16 six-bit numbers (already offset by 32) → the 12 bytes of Q3_K. uint8 [n, 16]."""
    low, high = scales & 15, scales >> 4
    out = np.empty((scales.shape[0], 12), np.uint8)
    out[:, 0:8] = low[:, :8] | (low[:, 8:] << 4)
    out[:, 8:12] = high[:, 0:4] | (high[:, 4:8] << 2) | (high[:, 8:12] << 4) | (high[:, 12:16] << 6)
    return out


def _q4_k(rng, n, std, quant_bytes, q_max):
    # d * sc * q - dmin * m, centred: m = sc and dmin = d * q_max / 2. E[sc²] over 40..63 is 51.96².
    d = _jitter(rng, n, std / (51.96 * np.sqrt(((q_max + 1) ** 2 - 1) / 12)))
    sc = rng.integers(40, 64, (n, 8), dtype=np.uint8)
    return [_f16(d), _f16(d * (q_max / 2)), pack_k4_scales(sc, sc), _bytes(rng, n, quant_bytes)]


def random_blocks(qtype, n, std, rng):
    """uint8 [n, block_bytes] of `qtype` whose values have mean 0 and standard deviation `std`."""
    if qtype in (T.F32, T.F16, T.BF16):
        x = (rng.random((n, 1), dtype=np.float32) - np.float32(0.5)) * np.float32(std * np.sqrt(12))
        if qtype == T.BF16:
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(n, 2)
        return x.astype(np.float32 if qtype == T.F32 else np.float16).view(np.uint8).reshape(n, -1)
    if qtype == T.Q8_0:  # int8, uniform: standard deviation 73.9
        quants = np.maximum(_bytes(rng, n, 32).view(np.int8), np.int8(-127)).view(np.uint8)
        parts = [_f16(_jitter(rng, n, std / 73.3)), quants]
    elif qtype in (
        T.Q4_0,
        T.Q5_0,
    ):  # q - 8 has std 4.61, q - 16 has 9.23; a random sign cancels the half-step mean
        sign = np.where(rng.random(n) < 0.5, np.float32(-1), np.float32(1))
        d = _jitter(rng, n, std / (4.64 if qtype == T.Q4_0 else 9.25)) * sign
        parts = [_f16(d), _bytes(rng, n, 16 if qtype == T.Q4_0 else 20)]
    elif qtype in (T.Q4_1, T.Q5_1):
        q_max = 15 if qtype == T.Q4_1 else 31
        d = _jitter(rng, n, std / np.sqrt(((q_max + 1) ** 2 - 1) / 12))
        parts = [_f16(d), _f16(d * (-q_max / 2)), _bytes(rng, n, 16 if qtype == T.Q4_1 else 20)]
    elif (
        qtype == T.Q2_K
    ):  # d * sc * q - dmin * m, q in 0..3, scales 10..15 (E[sc²] = 12.6²), m = sc
        d = _jitter(rng, n, std / (12.62 * 1.118))
        sc = rng.integers(10, 16, (n, 16), dtype=np.uint8)
        parts = [sc | (sc << 4), _bytes(rng, n, 64), _f16(d), _f16(d * 1.5)]
    elif (
        qtype == T.Q3_K
    ):  # q in -4..3 (E[q²] = 5.5), scale in ± 20..31 so that the half step cancels
        sc = rng.integers(20, 32, (n, 16), dtype=np.int8) * rng.choice(
            np.array([-1, 1], np.int8), (n, 16)
        )
        d = _jitter(rng, n, std / (25.73 * 2.345))
        parts = [_bytes(rng, n, 96), pack_k3_scales((sc + 32).astype(np.uint8)), _f16(d)]
    elif qtype == T.Q4_K:
        parts = _q4_k(rng, n, std, 128, 15)
    elif qtype == T.Q5_K:
        parts = _q4_k(rng, n, std, 160, 31)
    elif qtype == T.Q6_K:  # q in -32..31 (18.48), scale in ± 80..127
        sc = rng.integers(80, 128, (n, 16), dtype=np.int8) * rng.choice(
            np.array([-1, 1], np.int8), (n, 16)
        )
        parts = [
            _bytes(rng, n, 192),
            sc.view(np.uint8),
            _f16(_jitter(rng, n, std / (104.4 * 18.48))),
        ]
    elif qtype == T.MXFP4:
        # Value = kvalue * 2^(e - 128), rms of the kvalues 5.8; powers of two only, so mix the two
        # nearest exponents.
        step = np.log2(float(std) / MXFP4_RMS) + 128
        low = np.floor(step)
        p_high = (4.0 ** (step - low) - 1) / 3
        e = (low + (rng.random((n, 1)) < p_high)).astype(np.uint8)
        parts = [e, _bytes(rng, n, 16)]
    elif qtype == T.IQ4_NL:  # the codebook's mean is -6: a random sign of the scale cancels it
        sign = np.where(rng.random(n) < 0.5, np.float32(-1), np.float32(1))
        parts = [_f16(_jitter(rng, n, std / IQ4_RMS) * sign), _bytes(rng, n, 16)]
    elif qtype == T.IQ4_XS:  # random six-bit scales - 32: rms 18.5
        d = _jitter(rng, n, std / (18.5 * IQ4_RMS))
        parts = [_f16(d), _bytes(rng, n, 134)]
    elif qtype == T.IQ1_M:  # the four nibbles of d lie on top of the words of scales
        d = np.float16(_jitter(rng, n, std / IQ_STD[qtype])).view(np.uint16).reshape(n, 1)
        words = rng.integers(0, 1 << 12, (n, 4), dtype=np.uint16)
        words |= (d >> np.array([0, 4, 8, 12], np.uint16) & np.uint16(15)) << np.uint16(12)
        parts = [_bytes(rng, n, 48), words.view(np.uint8)]
    elif qtype in IQ_STD:
        parts = [
            _f16(_jitter(rng, n, std / IQ_STD[qtype])),
            _bytes(rng, n, block_size(qtype)[1] - 2),
        ]
    else:
        raise ValueError(f"no random blocks for {qtype!r}")
    blocks = np.concatenate(parts, axis=1)
    assert blocks.shape == (n, block_size(qtype)[1]), (qtype, blocks.shape)
    return blocks


# Byte offsets of the f16 scale fields in a block, for writing edge scales and for zeroing a row.
F16_FIELDS = {
    T.Q8_0: [0],
    T.Q4_0: [0],
    T.Q5_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_1: [0, 2],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
    T.IQ4_NL: [0],
    T.IQ4_XS: [0],
    T.IQ3_S: [0],
    T.IQ3_XXS: [0],
    T.IQ2_S: [0],
    T.IQ2_XS: [0],
    T.IQ2_XXS: [0],
    T.IQ1_M: [],  # in four pieces: set_iq1_m_scale()
    T.IQ1_S: [0],
}


def set_iq1_m_scale(blocks, bits):
    """Writes the f16 bit patterns `bits` [n] as the d of IQ1_M blocks. In place."""
    nibbles = np.asarray(bits, np.uint16).reshape(-1, 1) >> np.array([0, 4, 8, 12], np.uint16)
    tops = blocks[:, 49::2]
    tops[...] = (tops & 15) | ((nibbles & 15) << 4).astype(np.uint8)



def zero_blocks(qtype, blocks):
    """Makes blocks dequantise to zero: scales 0 where the format has one, zero bytes or codes
    elsewhere. In place."""
    if qtype in (T.F32, T.F16, T.BF16):
        blocks[...] = 0
    elif qtype == T.MXFP4:
        blocks[:, 1:] = 0  # code 0 is the value 0; the exponent stays
    elif qtype == T.IQ1_M:
        set_iq1_m_scale(blocks, np.zeros(len(blocks)))
    else:
        for at in F16_FIELDS[qtype]:
            blocks[:, at : at + 2] = 0


def fix_first_value(qtype, blocks, std):
    """Gives element 0 of every block one and the same large positive value, which is returned. In
    place.

    Sets the block's scale fields to their typical size and element 0's code to its maximum; a code
    that shares a byte with other elements leaves them alone where the format allows.
    """

    def f16(at, value):
        value = np.float16(value)
        blocks[:, at : at + 2] = np.frombuffer(value.tobytes(), np.uint8)
        return float(value)

    def bits(at, mask):
        blocks[:, at] |= np.uint8(mask)

    if qtype == T.F32:
        blocks[:, :4] = np.frombuffer(np.float32(1.75 * std).tobytes(), np.uint8)
        return float(np.float32(1.75 * std))
    if qtype == T.F16:
        return f16(0, 1.75 * std)
    if qtype == T.BF16:
        bits16 = np.float32(1.75 * std).view(np.uint32) >> 16
        blocks[:, :2] = np.frombuffer(np.uint16(bits16).tobytes(), np.uint8)
        return float((np.uint32(bits16) << np.uint32(16)).view(np.float32))
    if qtype == T.Q8_0:
        blocks[:, 2] = 127
        return f16(0, std / 73.3) * 127
    if qtype == T.Q4_0:
        bits(2, 15)
        return f16(0, std / 4.64) * 7
    if qtype == T.Q5_0:
        bits(2, 1)
        bits(6, 15)
        return f16(0, std / 9.25) * 15
    if qtype in (T.Q4_1, T.Q5_1):
        q_max = 15 if qtype == T.Q4_1 else 31
        d = std / np.sqrt(((q_max + 1) ** 2 - 1) / 12)
        bits(4, 15 if qtype == T.Q4_1 else 1)
        if qtype == T.Q5_1:
            bits(8, 15)
        return f16(0, d) * q_max + f16(2, d * (-q_max / 2))
    if qtype == T.Q2_K:
        blocks[:, 0] = 0xFF
        bits(16, 3)
        return f16(80, std / 14.11) * 45 - f16(82, std / 14.11 * 1.5) * 15
    if qtype == T.Q3_K:
        bits(0, 1)
        bits(32, 3)
        bits(96, 15)
        bits(104, 3)
        return f16(108, std / 60.3) * 31 * 3
    if qtype in (T.Q4_K, T.Q5_K):
        q_max = 15 if qtype == T.Q4_K else 31
        d = std / (51.96 * np.sqrt(((q_max + 1) ** 2 - 1) / 12))
        bits(4, 63)
        bits(8, 63)
        bits(16, 15 if qtype == T.Q4_K else 1)
        if qtype == T.Q5_K:
            bits(48, 15)
        return (f16(0, d) * q_max - f16(2, d * q_max / 2)) * 63
    if qtype == T.Q6_K:
        bits(0, 15)
        bits(128, 3)
        blocks[:, 192] = 127
        return f16(208, std / 1929.0) * 127 * 31
    if qtype == T.MXFP4:
        e = int(np.round(np.log2(float(std) / MXFP4_RMS))) + 128
        blocks[:, 0] = e
        blocks[:, 1] = (blocks[:, 1] & 0xF0) | 7
        return 12 * 2.0 ** (e - 128)
    raise ValueError(f"no constant channel for {qtype!r}")
