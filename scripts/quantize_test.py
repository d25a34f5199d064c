#!/usr/bin/env python3
"""Tests of quantize.py, by hand: needs numpy and PyPI gguf, which decodes what we encode.

    build/venv/bin/python scripts/quantize_test.py
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import gguf
import numpy
from gguf.quants import dequantize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from demo import kquants  # noqa: E402

# Relative RMS error on normal values: what the search reaches, with 1 % to spare. A plain rounding
# to the nearest level of each sub-block's range is 5 to 20 % worse.
ERROR = {"Q8_0": 0.0054, "Q6_K": 0.0168, "Q5_K": 0.0347, "Q4_K": 0.0706, "Q3_K": 0.1455,
         "Q2_K": 0.264}


def values(seed: int, shape=(32, 1024)) -> numpy.ndarray:
    return (numpy.random.default_rng(seed).standard_normal(shape) * 0.05).astype(numpy.float32)


def there_and_back(data: numpy.ndarray, kind: str, **options) -> numpy.ndarray:
    raw = kquants.quantize(data, kind, **options)
    return dequantize(raw, gguf.GGMLQuantizationType[kind])


def error(data, back) -> float:
    return float(numpy.sqrt(((back - data) ** 2).mean() / (data**2).mean()))


class Kquants(unittest.TestCase):
    def test_error_on_normal_values(self):
        data = values(1)
        for kind, bound in ERROR.items():
            with self.subTest(kind):
                self.assertLess(error(data, there_and_back(data, kind)), bound)

    def test_every_place_of_a_block_keeps_its_value(self):
        """One large value in 256: a packing that swaps places or drops a bit shows."""
        for kind in ERROR:
            for sign in (1, -1):
                data = values(2, (256, 256)) * 0.01 + numpy.eye(256, dtype=numpy.float32) * sign
                back = there_and_back(data, kind)
                with self.subTest(kind, sign=sign):
                    numpy.testing.assert_array_equal(numpy.abs(back).argmax(1), numpy.arange(256))
                    self.assertLess(numpy.abs(numpy.diag(back) - sign).max(), 0.03)

    def test_what_was_decoded_encodes_to_itself(self):
        for kind in ERROR:
            once = there_and_back(values(3), kind)
            with self.subTest(kind):
                self.assertLess(error(once, there_and_back(once, kind)), 0.1 * ERROR[kind])

    def test_zeros_and_constants(self):
        for kind in ERROR:
            with self.subTest(kind):
                zeros = numpy.zeros((2, 256), numpy.float32)
                numpy.testing.assert_array_equal(there_and_back(zeros, kind), zeros)
                for constant in (0.5, -0.5):
                    data = numpy.full((2, 256), constant, numpy.float32)
                    self.assertLess(error(data, there_and_back(data, kind)), 0.01)

    def test_ranges_beyond_float16_stay_finite(self):
        for kind in ERROR:
            with self.subTest(kind):
                self.assertTrue(numpy.isfinite(there_and_back(values(4) * 1e9, kind)).all())
                self.assertTrue(numpy.isfinite(there_and_back(values(4) * 1e-12, kind)).all())

    def test_importance_shifts_the_error(self):
        data, weight = values(5), numpy.ones(1024, numpy.float32)
        weight[::4] = 100
        for kind in ("Q2_K", "Q3_K", "Q4_K"):
            plain, weighted = (there_and_back(data, kind, importance=w) for w in (None, weight))
            with self.subTest(kind):
                self.assertLess(error(data[:, ::4], weighted[:, ::4]),
                                0.97 * error(data[:, ::4], plain[:, ::4]))

    def test_what_cannot_be_encoded_is_refused(self):
        with self.assertRaisesRegex(ValueError, "multiple of 256"):
            kquants.quantize(numpy.zeros((1, 128), numpy.float32), "Q4_K")
        with self.assertRaisesRegex(ValueError, "not finite"):
            kquants.quantize(numpy.full((1, 256), numpy.nan, numpy.float32), "Q4_K")


class File(unittest.TestCase):
    def test_a_file_keeps_its_keys_and_names_what_stays(self):
        with tempfile.TemporaryDirectory() as folder:
            source, out = pathlib.Path(folder) / "a.gguf", pathlib.Path(folder) / "b.gguf"
            writer = gguf.GGUFWriter(source, "qwen3moe")
            writer.add_token_list(["a", "b"])
            writer.add_rope_freq_base(10000.0)
            stacked = values(6, (3, 4, 256))
            for name, data in {"blk.0.ffn_up_exps.weight": stacked,
                               "blk.0.attn_v.weight": values(7, (4, 256)),
                               "blk.0.attn_q.weight": values(8, (4, 320)),
                               "blk.0.attn_k.weight": values(9, (4, 40)),
                               "blk.0.ffn_gate_inp.weight": values(10, (3, 256)),
                               "output_norm.weight": values(11, (256,))}.items():
                writer.add_tensor(name, data)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            script = pathlib.Path(__file__).with_name("quantize.py")
            printed = subprocess.run([sys.executable, script, source, out, "Q4_K"], check=True,
                                     capture_output=True, text=True).stdout
            reader = gguf.GGUFReader(out)
            kinds = {t.name: t.tensor_type.name for t in reader.tensors}
            self.assertEqual(kinds, {
                "blk.0.ffn_up_exps.weight": "Q4_K", "blk.0.attn_v.weight": "Q6_K",
                "blk.0.attn_q.weight": "Q8_0", "blk.0.attn_k.weight": "F32",
                "blk.0.ffn_gate_inp.weight": "F32", "output_norm.weight": "F32"})
            self.assertIn("blk.0.attn_k.weight: stays F32", printed)
            self.assertEqual(reader.fields["tokenizer.ggml.tokens"].contents(), ["a", "b"])
            self.assertEqual(reader.fields["qwen3moe.rope.freq_base"].contents(), 10000.0)
            back = reader.tensors[0]
            self.assertLess(error(stacked, dequantize(back.data, back.tensor_type)), ERROR["Q4_K"])


if __name__ == "__main__":
    unittest.main()
