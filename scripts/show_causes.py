#!/usr/bin/env python3
"""Slows the demo model down in ways that are known, and checks that the record names them.

  show_causes.py [OFFSTAGE]    default: build/release/offstage; exit status 1 if one wasn't named

What is injected: two reads that come late and a spell of slow reads (by the fault engine), a drive
of a fixed speed (--pace), processes that use every CPU, a budget a little under what the model's
tokens call. Which tokens it must hit is found without the record's times: by counting reads, by
this script's own clock, by the same tokens in a run that was left alone. Takes two minutes and all
CPUs; on a machine that does other things, those are named too.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PROMPT = "static int parse(const char *"
N_TOKENS = 480
HALF, NEARLY_ALL, ALL = "52M", "60M", "120M"  # of the experts
# The same reads in every run, each when its expert is called and not before.
PLAIN = ["--prefetch", "off", "--cache-policy", "lru", "--no-warm-start", "--no-preload"]
EVERY_SLOW_TOKEN = ["--spikes", "1000000"]
SHARE_MIN = 0.8  # of the hit tokens, or of their time over the median


def offstage(program, *arguments):
    command = [program, *arguments, *EVERY_SLOW_TOKEN, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode()}")
    return json.loads(done.stdout)


def run(program, ram, *more):
    return offstage(program, "run", "-p", PROMPT, "-n", str(N_TOKENS), "-c", "512", "--temp", "0.7",
                    "-s", "1", "--ignore-eos", "--ram", ram, *PLAIN, *more)


def requests_before(result):
    """By token: how many reads the drive had been asked for before it. An expert is three. Counted
    from the end, because loading reads too; and for each run, because the plan's estimate of what
    the process needs, and so the number of slots, differs a little from start to start."""
    before = sum(drive["reads"] for drive in result["drives"])
    counts = []
    for record in reversed(result["token_records"]):
        before -= 3 * record["hits"]["drive"]
        counts.append(before)
    return counts[::-1]


def tokens_with(result, first, last):
    """Indices of the tokens that asked for reads first to last, counted from 1."""
    before = requests_before(result)
    after = before[1:] + [sum(drive["reads"] for drive in result["drives"])]
    return {i for i, (begin, end) in enumerate(zip(before, after))
            if begin < end and begin < last and end >= first}


def spikes_of(result):
    return {spike["token"]: spike for spike in result["spikes"]}


class Table:
    def __init__(self):
        self.failed = False
        print("| injected | tokens it hit | of them slow | named | so by the record | of their time "
              "over the median | elsewhere |")
        print("|---|---:|---:|---|---:|---:|---:|")

    def row(self, what, hit, spikes, expected):
        """`elsewhere`: tokens of that cause that weren't hit, as far as this script knows."""
        slow = hit & set(spikes)
        named = {token for token in slow if spikes[token]["cause"] in expected}
        elsewhere = {token for token, one in spikes.items() if one["cause"] in expected} - hit
        excess = sum(spikes[token]["excess_ns"] for token in slow)
        share = sum(spikes[token]["excess_ns"] for token in named) / max(excess, 1)
        print(f"| {what} | {len(hit)} | {len(slow)} | {', '.join(expected)} | {len(named)} | "
              f"{100 * share:.1f} % | {len(elsewhere)} |", flush=True)
        if not slow or max(share, len(named) / len(slow)) < SHARE_MIN:
            self.failed = True
            for token in sorted(slow - named):
                print(f"  not named: {spikes[token]['sentence']}", file=sys.stderr)


def late_reads(table, program, clean):
    before = requests_before(clean)
    late = [before[N_TOKENS // 4] + 1, before[N_TOKENS // 2] + 1]
    faults = ";".join(f"nth={nth},delay={ms}ms" for nth, ms in zip(late, (250, 400)))
    result = run(program, HALF, "--io-fault", faults)
    hit = set().union(*(tokens_with(result, nth, nth) for nth in late))
    table.row("two reads, 250 and 400 ms late", hit, spikes_of(result), ["late_read"])
    slowest = [spike["token"] for spike in result["spikes"][:2]]
    if set(slowest) != hit:
        table.failed = True
        print(f"  the slowest are {slowest}, hit were {sorted(hit)}", file=sys.stderr)


def slow_spell(table, program, clean):
    before = requests_before(clean)
    first, last = before[200] + 1, before[260]
    result = run(program, HALF, "--io-fault", f"from={first},until={last},delay=8ms")
    table.row(f"each of {last - first + 1} reads 8 ms later", tokens_with(result, first, last),
              spikes_of(result), ["slow_drive", "late_read"])


def paced_drive(table, program):
    """All tokens wait for it; slow among them are those that read more than usual."""
    result = run(program, HALF, "--pace", "40M")
    reads = [record["hits"]["drive"] for record in result["token_records"]]
    usual = sorted(reads)[len(reads) // 2]
    hit = {token for token, n in enumerate(reads) if n >= 1.5 * usual}
    table.row("a drive of 40 MB/s: tokens with half as many reads again", hit, spikes_of(result),
              ["misses"])
    drive = result["ceilings"]["drives"][0]
    most = max(result["wait_ms"], key=result["wait_ms"].get)
    print(f"  paced: most of the time is {most}, the drive gave {drive['gb_s']:.3f} GB/s while busy, "
          f"{drive['expected_gb_s']:.3f} expected", file=sys.stderr)
    table.failed |= most != "wait_drive" or not 0.8 < drive["gb_s"] / drive["expected_gb_s"] < 1.1


def small_budget(table, program):
    """Nearly all experts fit: tokens that read some are the ones that a whole cache has not."""
    whole = run(program, ALL)
    result = run(program, NEARLY_ALL, "--pace", "100M")
    if result["tokens"] != whole["tokens"]:
        sys.exit("another budget, another text")
    warm = N_TOKENS // 2  # from there on a cache that holds all misses nothing
    n_whole = sum(record["hits"]["drive"] for record in whole["token_records"][warm:])
    reads = [record["hits"]["drive"] for record in result["token_records"]]
    usual = sorted(reads)[len(reads) // 2]
    hit = {token for token, n in enumerate(reads) if token >= warm and n > usual + 1}
    kept = result["experts"]["slots"]
    table.row(f"room for {kept} experts of 192", hit, spikes_of(result), ["misses"])
    print(f"  small budget: {sum(reads[warm:])} experts read in the second half, {n_whole} if all "
          "fit", file=sys.stderr)


def burn(until):
    while time.monotonic() < until:
        pass


def hogged_cpus(table, program):
    """Other processes on every CPU for half a second, four times."""
    times = []

    def hog():
        for _ in range(4):
            time.sleep(0.7)
            begin = time.monotonic_ns()
            hogs = [multiprocessing.Process(target=burn, args=(time.monotonic() + 0.5,))
                    for _ in range(2 * os.cpu_count())]
            for process in hogs:
                process.start()
            for process in hogs:
                process.join()
            times.append((begin, time.monotonic_ns()))

    bench = [program, "bench", "-p", "0", "-n", "480", "-r", "16", "--ram", ALL, "--no-warm-start",
             *EVERY_SLOW_TOKEN, "--json"]
    with subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        hog()
        result = json.loads(process.stdout.read())["results"][0]
    hit = {token["index"] for token in result["tokens"]
           if any(begin < token["began_ns"] and token["began_ns"] + token["wall_ns"] < end
                  for begin, end in times)}
    table.row(f"{2 * os.cpu_count()} processes that compute, 4 times 0.5 s", hit, spikes_of(result),
              ["cpu_taken"])


def sums(program):
    result = offstage(program, "bench", "-p", "0", "-n", "500", "-r", "20", "--ram", HALF)
    tokens = result["results"][0]["tokens"]
    off = max(abs(sum(t["causes"].values()) / t["wall_ns"] - 1) for t in tokens)
    wall = sum(t["wall_ns"] for t in tokens)
    share = {cause: sum(t["causes"][cause] for t in tokens) / wall for cause in ("other", "record")}
    most = max(t["causes"]["other"] / t["wall_ns"] for t in tokens)
    print(f"\n{len(tokens)} tokens: causes and wall time differ by {100 * off:.4f} % at most; "
          f"`other` is {100 * share['other']:.2f} % of all, {100 * most:.2f} % of one; `record` "
          f"{100 * share['record']:.2f} %")
    return off <= 0.01


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "build/release/offstage")
    clean = run(program, HALF)
    table = Table()
    late_reads(table, program, clean)
    slow_spell(table, program, clean)
    paced_drive(table, program)
    small_budget(table, program)
    hogged_cpus(table, program)
    return 0 if sums(program) and not table.failed else 1


if __name__ == "__main__":
    sys.exit(main())
