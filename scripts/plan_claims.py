#!/usr/bin/env python3
"""What people say that large MoE models need, recomputed with `offstage plan`: Markdown tables.

  plan_claims.py [--program build/release/offstage] [--profile FILE]

The machine is stated, not measured: a desktop whose RAM reads 60 GB/s, with one drive of the speed
that a column names. --profile takes another one's profile, with its first drive made that fast.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

GIB = 1 << 30
SHAPES = ["dense-7b", "dense-70b", "mixtral-8x7b", "moe-16x8b"]
DRIVES_GB_S = [3.5, 7, 14, 20, 40]
# Shape, recipe, budgets in GiB.
SPEEDS = [
    ("mixtral-8x7b", "f16", [16, 32, 64, 104]),
    ("mixtral-8x7b", "q4_k_m", [8, 16, 32]),
    ("moe-16x8b", "f16", [16, 64, 128, 200]),
    ("moe-16x8b", "q4_k_m", [16, 32, 64]),
    ("qwen3-30b-a3b", "q4_k_m", [4, 8, 20]),
    ("qwen3-235b-a22b", "q4_k_m", [32, 64, 144]),
]
FORMATS = ["F32", "F16", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
RAM_BYTES_PER_S = 60e9


def stated_machine():
    return {
        "schema": "offstage.profile/1",
        "machine": "a desktop, 60 GB/s of RAM (stated)",
        "date": "2026-01-01T00:00:00Z",
        "ram": {"bytes": 512 * GIB, "read_bytes_per_s": RAM_BYTES_PER_S},
        "cpu": {
            "threads": 8, "hash_bytes_per_s": 10e9, "dispatch_ns": 5000, "event_ns": 10000,
            "token_ns": 60000, "wake_ns": 20000, "slowdown_beside_reads": 1.1,
            "kernels": [{"type": name, "decode_bytes_per_s": RAM_BYTES_PER_S,
                         "prefill_params_per_s": 400e9} for name in FORMATS],
        },
        "drives": [{"name": "stated", "bytes_per_s": 7e9, "latency_ns": 80000,
                    "jitter_ns": 20000, "channels": 64, "block_bytes": 1 << 20, "depth": 32,
                    "slowest_second": 0, "read_p99_ns": 0}],
    }


class Planner:
    def __init__(self, program, machine, folder):
        self.program = program
        self.machine = machine
        self.profile = os.path.join(folder, "profile.json")
        self.folder = folder

    def plan(self, *arguments, drive_gb_s=None):
        words = [self.program, "plan", *map(str, arguments), "--json"]
        if drive_gb_s is not None:
            self.machine["drives"][0]["bytes_per_s"] = drive_gb_s * 1e9
            with open(self.profile, "w", encoding="utf-8") as file:
                json.dump(self.machine, file)
            words += ["--profile", self.profile]
        environment = dict(os.environ, XDG_CACHE_HOME=self.folder)
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)


def gb(size):
    return f"{size / 1e9:.1f}"


def sizes(planner):
    print("| shape | by its name: F16, Q4_K_M | parameters (active) | F16 | Q4_K_M | least RAM, F16 |"
          " least RAM, Q4_K_M |\n|---|---|---|---:|---:|---:|---:|")
    for shape in SHAPES:
        plan = planner.plan("--shape", shape, "--ram", "8G")
        named = plan.get("nominal")
        by_name = "–"
        if named:
            weights = named["weights_bytes"]
            by_name = (f"{named['total_b']:g} B ({named['active_b']:g} B active): "
                       f"{gb(weights['f16'])}, {gb(weights['q4_k_m'])} GB")
        floors = {one["quant"]: one["floor_ram_bytes"] for one in plan["capacity"]}
        weights = plan["weights_bytes"]
        print(f"| `{shape}` | {by_name} | {plan['total_params'] / 1e9:.2f} B "
              f"({plan['active_params'] / 1e9:.2f} B) | {gb(weights['f16'])} GB | "
              f"{gb(weights['q4_k_m'])} GB | {floors['f16'] / GIB:.1f} GiB | "
              f"{floors['q4_k_m'] / GIB:.1f} GiB |")


def speeds(planner):
    head = " | ".join(f"{speed:g} GB/s" for speed in DRIVES_GB_S)
    print(f"\n| model | RAM | experts kept | {head} |\n|---|---:|---:|" +
          "---:|" * len(DRIVES_GB_S))
    for shape, quant, budgets in SPEEDS:
        ram = ",".join(f"{budget}G" for budget in budgets)
        plans = [planner.plan("--shape", shape, "--quant", quant, "--ram", ram, drive_gb_s=speed)
                 for speed in DRIVES_GB_S]
        for i, budget in enumerate(budgets):
            cells = [plan["cells"][i] for plan in plans]
            print(f"| `{shape}` {quant} | {budget} GiB | {100 * cells[0]['kept_share']:.0f} % | " +
                  " | ".join(cell_text(cell) for cell in cells) + " |")


def cell_text(cell):
    """Speed, and what the slow tokens take more than the median one."""
    if cell["decode_tok_s"] is None:
        return "too little RAM"
    times = cell["token_ms"]
    return (f"{cell['decode_tok_s']:.2f} tok/s, p50 {times['p50']:.0f} ms, p99 "
            f"+{times['p99'] - times['p50']:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/offstage")
    parser.add_argument("--profile")
    options = parser.parse_args()
    machine = stated_machine()
    if options.profile:
        with open(options.profile, encoding="utf-8") as file:
            machine = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(options.program, machine, folder)
        sizes(planner)
        speeds(planner)


if __name__ == "__main__":
    main()
