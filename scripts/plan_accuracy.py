#!/usr/bin/env python3
"""Forecasts held against runs: a table of both, setting by setting, in Markdown.

  plan_accuracy.py --model FILE@RAM,RAM[@PACE] ... [--p99-model ...] [--drives FOLDER FOLDER]

For every model its routing is recorded on --texts texts, others than the ones that are measured and
as long; a forecast is the mean of what `plan` says with each. Then, for each budget, with one free
drive, one paced one and (with --drives, into which the model is packed) two paced ones: `probe` and
`plan`, and --turns times `run` (--runs of them), `probe`, `plan`; every run's text is another. A
shared machine isn't the same from turn to turn, and texts aren't equally local, so forecasts and runs
are means. Texts of both kinds begin with the same five kinds of prompt, taken in turns. Where both
drives are folders of one real drive, PACE has to leave it the faster one.
Forecasts know nothing of a run; the one that the run makes of itself (`forecast` of its JSON), with
its own routing and the profile before it, stands beside, so that errors of the profile and of
guessed routing can be told apart.

A drive that remembers what was read lately (a virtual machine's may be 20 times as fast then) would
answer the probe and the run differently, so each model is read whole before its rows.

Needs a machine that does nothing else, and time: two probes and a run for each row.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile

# Prose, dictionary, manual page, Python and C, as in the demo model's training text, and again.
RECORDED_PROMPTS = [
    "A theatre in winter: the stage is dark, and the",
    "Understudy, n. One who learns the part of",
    "DESCRIPTION\n       This command reads the file and",
    "def read_lines(path):\n    with open(path) as file:",
    "static int count_words(const char *text)\n{",
    "In the second act the lamps",
    "Curtain, n. A cloth that",
    "OPTIONS\n       -o, --output=FILE\n              write to",
    "class Queue:\n    def __init__(self, size):",
    "/* Reads the next word into the buffer. */\nint",
]
MEASURED_PROMPTS = [
    "The prompter looked at the empty house and",
    "Scene, n. The place in which",
    "SYNOPSIS\n       sort [OPTION]... [FILE]...\n\nDESCRIPTION",
    "import os\n\ndef find(folder, name):",
    "int main(int argc, char **argv)\n{\n    int i;",
    "She had come by the night train, with",
    "Lantern, n. A case with sides of",
    "EXIT STATUS\n       The program exits with",
    "    for key, value in sorted(table.items()):",
    "/* Returns the length of the list, or -1. */\nstatic",
]
RECORDED_SEED, MEASURED_SEED = 7, 102
RECORDED_TOKENS_MIN = 256
CONTEXT_SPARE = 64


def say(text):
    print(text, file=sys.stderr, flush=True)


class Program:
    """The program with a cache folder of its own, so that its profile is this measurement's."""

    def __init__(self, path, folder, threads):
        self.path = path
        self.folder = folder
        self.threads = ["-t", str(threads)] if threads else []
        self.environment = dict(os.environ, XDG_CACHE_HOME=folder)

    def __call__(self, *arguments):
        done = subprocess.run([self.path, *map(str, arguments)], env=self.environment,
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{self.path} {' '.join(map(str, arguments))}: exit code {done.returncode}\n"
                     f"{done.stderr}")
        return done.stdout

    def json(self, *arguments):
        return json.loads(self(*arguments, "--json"))


def parse_model(text):
    file, *rest = text.split("@")
    if len(rest) not in (1, 2) or not all([file, *rest]):
        raise argparse.ArgumentTypeError(f"'{text}': expected FILE@RAM,RAM or FILE@RAM,RAM@PACE")
    return file, rest[0].split(","), rest[1] if len(rest) == 2 else None


def read_whole(file):
    """Past the page cache: for what the drive remembers."""
    block = mmap.mmap(-1, 4 << 20)
    handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        at = 0
        while n_read := os.preadv(handle, [block], at):
            at += n_read
            if at % mmap.PAGESIZE:
                break
    finally:
        os.close(handle)
        block.close()


def recall_of(run):
    """What the gate got right, by distance, as `plan --guess-accuracy` takes it."""
    by_distance = [place["recall"] for place in run["prefetch"]["by_distance"] if place["guesses"]]
    return ",".join(f"{share:.4f}" for share in by_distance) or "0"


def record(program, file, budget, text, tokens):
    """The routing of a text, and how well it could be guessed."""
    trace = os.path.join(program.folder, f"routing-{text}.trace")
    run = program.json("run", "-m", file, *program.threads, "--ram", budget, "-c",
                       tokens + 2 * CONTEXT_SPARE, "-p", RECORDED_PROMPTS[text % len(RECORDED_PROMPTS)],
                       "-n", tokens, "--temp", 1, "-s", RECORDED_SEED + text, "--ignore-eos",
                       "--no-warm-start", "--no-forecast", "--record-routing", trace)
    return trace, recall_of(run)


def prompt_of(run):
    return MEASURED_PROMPTS[run % len(MEASURED_PROMPTS)]


def prompt_tokens(program, file, n_runs):
    """Of the measured prompts, the mean."""
    counts = [len(program.json("tokenize", "-m", file, "-p", prompt, "--add-special")["tokens"])
              for prompt in map(prompt_of, range(min(n_runs, len(MEASURED_PROMPTS))))]
    return round(statistics.mean(counts))


def measure(program, options, file, budget, recordings, tokens, n_prompt, n_drives, pace):
    """One row: profile and forecast, runs, profile and forecast."""
    context = n_prompt + tokens + CONTEXT_SPARE
    paced = ["--pace", pace] if pace else []
    shared = ["-m", file, "--ram", budget, "-c", context]
    added = ["--add-drive", n_drives - 1] if n_drives > 1 else []

    def forecast():
        program("probe", "--on", file, "--seconds", options.probe_seconds, *program.threads)
        return means([forecast_of(*recording) for recording in recordings])

    def forecast_of(trace, recall):
        plan = program.json("plan", *shared, "--routing", trace, "--guess-accuracy", recall,
                            "--cold", "-p", n_prompt, "-n", tokens, *paced, *added)
        cell = next(cell for cell in plan["cells"] if cell["drives"] == n_drives)
        return {"tok_s": cell["decode_tok_s"], "hits": cell["hit_rate"]["ram"],
                "p99": cell["token_ms"]["p99"]}

    folders = [word for folder in options.drives or [] for word in ("--drive", folder)]
    striped = [*folders, "--folders-are-drives"] if n_drives > 1 else []

    def run(text):
        return program.json("run", *shared, *program.threads, "-p", prompt_of(text), "-n",
                            tokens + 1, "--temp", 1, "-s", MEASURED_SEED + text,
                            "--ignore-eos", "--no-warm-start", *paced, *striped)

    forecasts, runs = [forecast()], []
    for turn in range(options.turns):
        runs += [run(turn * options.runs + at) for at in range(options.runs)]
        forecasts.append(forecast())
    return {
        "model": os.path.basename(file).removesuffix(".gguf"),
        "ram": budget,
        "drives": n_drives,
        "pace": pace or "free",
        "tokens": len(runs[0]["token_records"]),
        "forecast": means(forecasts),
        "forecasts": forecasts,
        "measured": means([figures_of(run) for run in runs]),
        "runs": [figures_of(run) for run in runs],
        "hindsight": [run["forecast"] for run in runs],
        "wait_ms": [run["wait_ms"] for run in runs],
    }


def figures_of(run):
    hits = run["experts"]["ram_hits"]
    calls = hits + run["experts"]["drive_reads"]
    return {"tok_s": run["decode_tok_s"], "hits": hits / calls if calls else 1,
            "p99": run["token_ms"]["p99"]}


def means(figures):
    """Of speeds the one of all tokens together."""
    mean_of = {"tok_s": statistics.harmonic_mean}
    return {key: mean_of.get(key, statistics.mean)([one[key] for one in figures])
            for key in figures[0]}


def settings_of(budgets, pace, options):
    for budget in budgets:
        yield budget, 1, None
        yield budget, 1, pace
        if options.drives:
            yield budget, 2, pace


def measure_all(program, options, models, tokens):
    rows = []
    for file, budgets, pace in models:
        say(f"{file}: reading it")
        read_whole(file)
        say(f"{file}: recording its routing")
        recordings = [record(program, file, budgets[0], text, max(tokens, RECORDED_TOKENS_MIN))
                      for text in range(options.texts)]
        n_prompt = prompt_tokens(program, file, options.turns * options.runs)
        if options.drives:
            say(f"{file}: packing it into {', '.join(options.drives)}")
            program("pack", "-m", file, *(word for folder in options.drives
                                          for word in ("--drive", folder)))
        for budget, n_drives, paced in settings_of(budgets, pace or options.pace, options):
            row = measure(program, options, file, budget, recordings, tokens, n_prompt,
                          n_drives, paced)
            rows.append(row)
            say(line_of(row))
    return rows


def relative(row, key):
    return row["forecast"][key] / row["measured"][key] - 1


def in_hindsight(row):
    return statistics.mean(turn["error"]["decode_tok_s"] for turn in row["hindsight"])


def points(row):
    return 100 * (row["forecast"]["hits"] - row["measured"]["hits"])


def line_of(row):
    forecast, measured = row["forecast"], row["measured"]
    return (f"| `{row['model']}` | {row['ram']} | {row['drives']} | {row['pace']} | "
            f"{row['tokens']} | {forecast['tok_s']:.2f} | {measured['tok_s']:.2f} | "
            f"{100 * relative(row, 'tok_s'):+.1f} % | {100 * forecast['hits']:.1f} | "
            f"{100 * measured['hits']:.1f} | {points(row):+.1f} | {forecast['p99']:.1f} | "
            f"{measured['p99']:.1f} | {100 * relative(row, 'p99'):+.1f} % | "
            f"{100 * in_hindsight(row):+.1f} % |")


def table(rows):
    head = ["model", "RAM", "drives", "pace", "tokens", "forecast tok/s", "measured", "error",
            "hits %", "measured", "points", "p99 ms", "measured", "error",
            "tok/s error in hindsight"]
    lines = ["| " + " | ".join(head) + " |",
             "|---|---:|---:|---:|" + "---:|" * (len(head) - 4)]
    return "\n".join(lines + [line_of(row) for row in rows])


def summary(rows):
    speeds = [abs(relative(row, "tok_s")) for row in rows]
    tails = [abs(relative(row, "p99")) for row in rows]
    after = [abs(in_hindsight(row)) for row in rows]
    hits = [abs(points(row)) for row in rows]
    return (f"Median error of {len(rows)} settings: {100 * statistics.median(speeds):.1f} % of "
            f"tok/s (within 10 %: {sum(e <= .1 for e in speeds)}; in hindsight "
            f"{100 * statistics.median(after):.1f} %), {statistics.median(hits):.1f} points of hits "
            f"(within 1.5: {sum(e <= 1.5 for e in hits)}), "
            f"{100 * statistics.median(tails):.1f} % of p99 (within 20 %: "
            f"{sum(e <= .2 for e in tails)}).")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=parse_model, action="append", default=[],
                        metavar="FILE@RAM,RAM[@PACE]", help="speed and hits, over --tokens tokens")
    parser.add_argument("--p99-model", type=parse_model, action="append", default=[],
                        metavar="FILE@RAM,RAM[@PACE]", help="p99 too, over --p99-tokens tokens")
    parser.add_argument("--drives", nargs=2, metavar="FOLDER",
                        help="two folders that stand for two drives, paced")
    parser.add_argument("--pace", default="400M", help="of each paced drive, if the model names none (400M)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--p99-tokens", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=2, help="on which routing is recorded (2)")
    parser.add_argument("--turns", type=int, default=1,
                        help="between two profiles each, of every setting (1)")
    parser.add_argument("--runs", type=int, default=1, help="of each turn (1)")
    parser.add_argument("--probe-seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--program", default="build/release/offstage")
    parser.add_argument("--out", metavar="JSON", help="keep the rows as JSON, too")
    options = parser.parse_args()
    if not options.model and not options.p99_model:
        parser.error("no --model and no --p99-model")
    with tempfile.TemporaryDirectory() as folder:
        program = Program(options.program, folder, options.threads)
        rows = measure_all(program, options, options.model, options.tokens)
        tails = measure_all(program, options, options.p99_model, options.p99_tokens)
    for part in (rows, tails):
        if part:
            print(table(part) + "\n\n" + summary(part) + "\n")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"settings": rows, "p99": tails}, file, indent=1)


if __name__ == "__main__":
    main()
