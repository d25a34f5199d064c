#!/usr/bin/env python3
"""Writes the reference data under tests/data from independent implementations. See
scripts/README.md.

make_goldens.py dequant                    tests/data/dequant/<TYPE>.bin: blocks and PyPI gguf's
float32 of them make_goldens.py models [--converter PATH]  tests/data/models: tiny checkpoints,
transformers' logits and greedy text
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    dequant = commands.add_parser("dequant", help="dequantisation goldens (needs numpy, gguf)")
    dequant.add_argument("--out", type=Path, default=ROOT / "tests/data/dequant")
    models = commands.add_parser("models", help="golden models (needs all of requirements.txt)")
    models.add_argument("--out", type=Path, default=ROOT / "tests/data/models")
    models.add_argument("--only", nargs="*", help="cases, such as olmoe-s1; default: all")
    models.add_argument(
        "--converter",
        help="a checkpoint-to-GGUF converter: CONVERTER DIR --outtype f32 --outfile F",
    )
    models.add_argument(
        "--reference-eval", help="PROGRAM model.gguf ids.txt logits.bin, a second implementation"
    )
    models.add_argument("--reference-version", help="what to record as its version")
    args = parser.parse_args()
    if args.command == "dequant":
        from modelgen import golden_dequant

        golden_dequant.write_all(args.out)
    else:
        from modelgen import golden_models

        golden_models.write_all(
            args.out, args.converter, args.reference_eval, args.reference_version, args.only
        )


if __name__ == "__main__":
    main()
