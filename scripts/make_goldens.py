#!/usr/bin/env python3
"""Writes the reference data under tests/data from independent implementations. See scripts/README.md.

  make_goldens.py dequant                    tests/data/dequant/<TYPE>.bin: blocks and PyPI gguf's float32 of them
  make_goldens.py models [--converter PATH]  tests/data/models: tiny checkpoints, transformers' logits and greedy text
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    dequant = commands.add_parser("dequant", help="dequantisation goldens (needs numpy, gguf)")
    dequant.add_argument("--out", type=Path, default=ROOT / "tests/data/dequant")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from modelgen import golden_dequant
    golden_dequant.write_all(args.out)


if __name__ == "__main__":
    main()
