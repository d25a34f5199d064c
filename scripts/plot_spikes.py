#!/usr/bin/env python3
"""The README's first picture: what every token took, here and where the kernel pages the model in.

  plot_spikes.py collect --turn OURS THEIRS [--turn OURS THEIRS] -o bench/spikes.csv
  plot_spikes.py draw bench/spikes.csv -o bench/spikes

`collect` puts the times of one or more turns into one small table, which is committed. OURS and
THEIRS are each the JSON of `offstage run --json`, a table of `offstage bench --csv`, a JSON object
with `token_ms` (a list of milliseconds), or plain text with one number of milliseconds a line: any
program's times will do. `draw` writes OUT-light.svg and OUT-dark.svg, and says what is in them in
figures. Needs matplotlib (requirements.txt).
"""

import argparse
import csv
import json
import math
import os
import sys

COLUMNS = ["turn", "token", "offstage_ms", "paging_ms"]
NAMES = {"offstage_ms": "Offstage", "paging_ms": "llama.cpp, mmap: paged in by the kernel"}
SPIKE_MS = 50  # over a run's own median

# Okabe and Ito, "Color Universal Design" (2008): told apart by everybody, and on grey paper by
# their lightness. Text and grid: at least 4.5 to 1 and 1.2 to 1 against the page.
THEMES = {
    "light": {"page": "#ffffff", "text": "#1f2328", "grid": "#d8dee4",
              "offstage_ms": "#0072B2", "paging_ms": "#D55E00"},
    "dark": {"page": "#0d1117", "text": "#e6edf3", "grid": "#30363d",
             "offstage_ms": "#56B4E9", "paging_ms": "#E69F00"},
}
WIDTH, HEIGHT = 9.0, 3.6  # inches of 96 pixels: as wide as a README is shown


def times_in(path):
    """Milliseconds by token."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "token_records" in whole:
        return [record["wall_ns"] / 1e6 for record in whole["token_records"]]
    if isinstance(whole, dict) and isinstance(whole.get("token_ms"), list):
        return [float(ms) for ms in whole["token_ms"]]
    lines = text.splitlines()
    if lines and "wall_ns" in lines[0].split(","):
        rows = csv.DictReader(lines)  # a bench has lines of prompts too: tests named pp512
        return [int(row["wall_ns"]) / 1e6 for row in rows if not row.get("test", "").startswith("pp")]
    try:
        return [float(line) for line in lines if line.strip()]
    except ValueError:
        sys.exit(f"{path}: neither a run's JSON, nor `token_ms`, nor `wall_ns`, nor numbers")


def percentile(values, p):
    """Nearest rank: one of the values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def collect(turns, out):
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for turn, (ours, theirs) in enumerate(turns, 1):
            ours_ms, theirs_ms = times_in(ours), times_in(theirs)
            # A sampled first token belongs to the prompt for one program and not for the other.
            for token in range(min(len(ours_ms), len(theirs_ms))):
                writer.writerow([turn, token, f"{ours_ms[token]:.1f}", f"{theirs_ms[token]:.1f}"])


def read_table(path):
    """{turn: {column: [ms]}}"""
    turns = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            series = turns.setdefault(row["turn"], {name: [] for name in NAMES})
            for name in NAMES:
                series[name].append(float(row[name]))
    return turns


def say(turns):
    for turn, series in turns.items():
        for name, values in series.items():
            median = percentile(values, 50)
            over = [value - median for value in values if value - median >= SPIKE_MS]
            print(f"turn {turn}, {name}: {len(values)} tokens, {1e3 * len(values) / sum(values):.2f} "
                  f"tok/s, p50 {median:.0f} ms, p99 {percentile(values, 99):.0f}, max "
                  f"{max(values):.0f}; {len(over)} tokens at least {SPIKE_MS} ms over the median, "
                  f"{sum(over) / max(len(over), 1):.0f} ms on average")


def draw_theme(turns, out, theme):
    import matplotlib  # not needed to collect
    matplotlib.use("svg")
    # Outlines instead of text: the same everywhere; and the same bytes every time.
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "offstage",
                                "font.family": "DejaVu Sans", "font.size": 9})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, panels = plt.subplots(1, len(turns), figsize=(WIDTH, HEIGHT), sharey=True,
                                  squeeze=False, facecolor=theme["page"], layout="constrained")
    for panel, (turn, series) in zip(panels[0], turns.items()):
        panel.set_facecolor(theme["page"])
        for name in reversed(NAMES):  # ours on top
            values = series[name]
            panel.plot(range(len(values)), values, color=theme[name], linewidth=1.1,
                       label=NAMES[name])
            panel.annotate(f"median {percentile(values, 50):.0f} ms, slowest {max(values):,.0f}",
                           (len(values) * 0.985, min(values) / 1.12), ha="right", va="top",
                           color=theme[name], fontsize=8.5, fontweight="bold")
        panel.set_yscale("log")
        panel.set_ylim(30, 12000)
        panel.set_xlim(0, max(len(values) for values in series.values()))
        panel.yaxis.set_major_formatter(FuncFormatter(
            lambda ms, _: f"{ms / 1e3:g} s" if ms >= 1e3 else f"{ms:g} ms"))
        panel.set_title(f"turn {turn}", color=theme["text"], fontsize=9, loc="left")
        panel.set_xlabel("token", color=theme["text"])
        panel.grid(True, which="major", color=theme["grid"], linewidth=0.7)
        panel.tick_params(which="both", colors=theme["text"])
        for spine in panel.spines.values():
            spine.set_color(theme["grid"])
    panels[0][0].set_ylabel("time of the token, log scale", color=theme["text"])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=2, frameon=False,
                  labelcolor=theme["text"], fontsize=10)
    figure.savefig(out, metadata={"Date": None}, facecolor=theme["page"])
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("--turn", nargs=2, action="append", required=True,
                            metavar=("OURS", "THEIRS"))
    collecting.add_argument("-o", required=True, metavar="FILE.csv")
    drawing = commands.add_parser("draw")
    drawing.add_argument("table")
    drawing.add_argument("-o", required=True, metavar="OUT", help="OUT-light.svg, OUT-dark.svg")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.turn, arguments.o)
        say(read_table(arguments.o))
        return 0
    turns = read_table(arguments.table)
    for name, theme in THEMES.items():
        path = f"{arguments.o}-{name}.svg"
        draw_theme(turns, path, theme)
        print(f"{path}: {os.path.getsize(path)} bytes")
    say(turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
