#!/usr/bin/env python3
"""Slows the demo model down in ways that are known, and checks that the record names them.

  show_causes.py [OFFSTAGE]    default: build/release/offstage; exit status 1 if the rule is broken

The rule, for every row of the table:

  recall     of the tokens that were hit, at least 95 % are slow and are named by the cause that hit
             them. Of a few tokens that means all.
  precision  of the tokens that are so named, at least 95 % were hit. Counted are tokens that were
             slowed as much as the injection slows one (half of it), hit or not; tokens that it
             grazed are neither.

and of 10,000 tokens that nothing was done to: causes sum to the wall time, and `other` is at most
2 % of any.

Which tokens were hit is found without the record's causes: by counting reads, and by the clocks of
the processes that took the CPUs. Files are read through the page cache, so that the only slow drive
is the injected one, and the program has real-time priority, so that others don't take its CPU. Where
the CPUs are taken, it is those who take them that have it (root may; else that row is left out with a
line), many times, so that what the machine does besides weighs little: it is named, too, and wasn't
injected. In a virtual machine the host takes CPUs, too: a run from which it took more than 1 % of
them is repeated, whatever came out. Takes a minute or two and all CPUs.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
RECALL_MIN, PRECISION_MIN = 0.95, 0.95
SUM_OFF_MAX, OTHER_MAX = 0.01, 0.02

PROMPT = "static int parse(const char *"
N_TOKENS = 480
HALF, NEARLY_ALL, ALL = "52M", "60M", "120M"  # of the experts
# The same reads in every run, each when its expert is called and not before.
PLAIN = ["--prefetch", "off", "--cache-policy", "lru", "--no-warm-start", "--no-preload",
         "--direct-io", "off"]
EVERY_SLOW_TOKEN = ["--spikes", "1000000"]
MS = 1_000_000

BURSTS, BURST_S, BURST_EVERY_S = 120, 0.02, 0.1

STOLEN_MAX, ATTEMPTS = 0.01, 8


@dataclass
class Injection:
    what: str
    expected: list  # causes, each of which is right
    slows_ns: int  # a token that is hit, at least
    hit: set
    grazed: set = field(default_factory=set)


class Stolen:
    """Which share of the CPUs' time the host gave to others since this was made."""

    def __init__(self):
        self.begin_s, self.begin = time.monotonic(), self.ticks()

    @staticmethod
    def ticks():
        with open("/proc/stat", encoding="ascii") as stat:
            return int(stat.readline().split()[8])

    def share(self):
        cpu_s = (time.monotonic() - self.begin_s) * os.cpu_count()
        return (self.ticks() - self.begin) / os.sysconf("SC_CLK_TCK") / cpu_s


def undisturbed(measure):
    """What `measure` returns the first time that the host leaves this machine its CPUs."""
    for _ in range(ATTEMPTS):
        stolen = Stolen()
        result = measure()
        share = stolen.share()
        if share <= STOLEN_MAX:
            return result
        print(f"  the host took {100 * share:.1f} % of the CPUs: this run is repeated", file=sys.stderr)
    sys.exit(f"the host took more than {100 * STOLEN_MAX:.0f} % of the CPUs {ATTEMPTS} times: "
             "what was injected can't be told from it")


def go_first():
    """Of a process that is about to run the program and to wait now and then: before everybody, if
    that is allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pass


def go_early():
    """Of one that will never wait: Linux takes 50 ms of every second from real time, and gives them
    to others, so it is merely nice to nobody."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)


def offstage(program, *arguments):
    command = [program, *arguments, *EVERY_SLOW_TOKEN, "--json"]

    def measure():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                              preexec_fn=go_first)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.decode()}")
        return json.loads(done.stdout)

    return undisturbed(measure)


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


def reads_of(result):
    reads = [record["hits"]["drive"] for record in result["token_records"]]
    return reads, sorted(reads)[len(reads) // 2]


class Table:
    def __init__(self):
        self.failed = False
        print("| injected | tokens | hit | named | so by the record | recall | elsewhere | precision "
              "|\n|---|---:|---:|---|---:|---:|---:|---:|")

    def row(self, injection, spikes, n_tokens):
        spikes = {spike["token"]: spike for spike in spikes}
        named = {token for token, spike in spikes.items()
                 if spike["cause"] in injection.expected
                 and 2 * spike["excess_ns"] >= injection.slows_ns} - injection.grazed
        found, elsewhere = named & injection.hit, named - injection.hit
        recall = len(found) / max(len(injection.hit), 1)
        precision = len(found) / max(len(named), 1)
        print(f"| {injection.what} | {n_tokens} | {len(injection.hit)} | "
              f"{', '.join(injection.expected)} | {len(found)} | {100 * recall:.1f} % | "
              f"{len(elsewhere)} | {100 * precision:.1f} % |", flush=True)
        if recall >= RECALL_MIN and precision >= PRECISION_MIN:
            return
        self.fail(f"{injection.what}: recall {recall:.3f}, precision {precision:.3f}")
        for token in sorted(injection.hit - found)[:20]:
            said = spikes[token]["sentence"] if token in spikes else f"token {token}: isn't slow"
            print(f"  hit, not named: {spikes.get(token, {}).get('cause', '')} {said}",
                  file=sys.stderr)
        for token in sorted(elsewhere)[:20]:
            print(f"  named, not hit: {spikes[token]['sentence']}", file=sys.stderr)

    def fail(self, why):
        self.failed = True
        print(f"FAILED {why}", file=sys.stderr)


def late_reads(table, program, clean):
    before = requests_before(clean)
    late = [before[N_TOKENS // 4] + 1, before[N_TOKENS // 2] + 1]
    faults = ";".join(f"nth={nth},delay={ms}ms" for nth, ms in zip(late, (250, 400)))
    result = run(program, HALF, "--io-fault", faults)
    hit = set().union(*(tokens_with(result, nth, nth) for nth in late))
    table.row(Injection("two reads, 250 and 400 ms late", ["late_read"], 250 * MS, hit),
              result["spikes"], N_TOKENS)
    slowest = {spike["token"] for spike in result["spikes"][:2]}
    if slowest != hit:
        table.fail(f"the slowest are {sorted(slowest)}, hit were {sorted(hit)}")


def slow_spell(table, program, clean):
    before = requests_before(clean)
    first, last = before[200] + 1, before[260]
    result = run(program, HALF, "--io-fault", f"from={first},until={last},delay=8ms")
    hit = tokens_with(result, first, last)
    # The first and the last token may have had few of these reads, and others beside them.
    ends = {min(hit), max(hit)}
    table.row(Injection(f"each of {last - first + 1} reads 8 ms later", ["slow_drive", "late_read"],
                        8 * MS, hit - ends, ends), result["spikes"], N_TOKENS)


def more_reads(table, result, what, pace, from_token=0):
    """Slow among tokens that wait for the drive are those that read more than usual."""
    reads, usual = reads_of(result)
    hit = {token for token, n in enumerate(reads) if token >= from_token and n >= 1.5 * usual + 1}
    grazed = {token for token, n in enumerate(reads) if n > usual} - hit
    bytes_per_expert = (sum(sum(record["bytes"].values()) for record in result["token_records"])
                        / max(sum(reads), 1))
    slows_ns = int((0.5 * usual + 1) * bytes_per_expert / pace * 1e9)
    table.row(Injection(what, ["misses"], slows_ns, hit, grazed), result["spikes"], N_TOKENS)
    return reads


def paced_drive(table, program):
    result = run(program, HALF, "--pace", "40M")
    more_reads(table, result, "a drive of 40 MB/s: tokens with half as many reads again", 40e6)
    drive = result["ceilings"]["drives"][0]
    most = max(result["wait_ms"], key=result["wait_ms"].get)
    print(f"  paced: most of the time is {most}, the drive gave {drive['gb_s']:.3f} GB/s while busy, "
          f"{drive['expected_gb_s']:.3f} expected", file=sys.stderr)
    if most != "wait_drive" or not 0.8 < drive["gb_s"] / drive["expected_gb_s"] < 1.2:
        table.fail("the pace isn't seen in the record")


def small_budget(table, program):
    """Nearly all experts fit: tokens that read some are the ones that a whole cache has not."""
    whole = run(program, ALL)
    result = run(program, NEARLY_ALL, "--pace", "100M")
    if result["tokens"] != whole["tokens"]:
        sys.exit("another budget, another text")
    warm = N_TOKENS // 2  # from there on a cache that holds all misses nothing
    n_whole = sum(record["hits"]["drive"] for record in whole["token_records"][warm:])
    kept = result["experts"]["slots"]
    reads = more_reads(table, result, f"room for {kept} experts of 192, 100 MB/s: tokens that miss "
                       "more than usual", 100e6, warm)
    print(f"  small budget: {sum(reads[warm:])} experts read in the second half, {n_whole} if all "
          "fit", file=sys.stderr)


def burn(cpu, begins, spells):
    """Keeps a CPU from everybody else, from each time on for BURST_S; says when it really did."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    for begin in begins:
        time.sleep(max(0, begin - time.monotonic()))
        began = time.monotonic_ns()
        while time.monotonic_ns() - began < BURST_S * 1e9:
            pass
        spells.put((cpu, began, time.monotonic_ns()))


def may_take_cpus():
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, before, os.sched_param(0))
    except OSError:
        return False
    return True


def bench_with_hogs(program):
    """A bench, and when each CPU was taken during it: (cpu, begin, end) in its clock's ns."""
    cpus = sorted(os.sched_getaffinity(0))
    begins = [time.monotonic() + 1.5 + i * BURST_EVERY_S for i in range(BURSTS)]
    spells = multiprocessing.Queue()
    hogs = [multiprocessing.Process(target=burn, args=(cpu, begins, spells)) for cpu in cpus]
    bench = [program, "bench", "-p", "0", "-n", "480", "-r", "120", "--ram", ALL, "--no-warm-start",
             *EVERY_SLOW_TOKEN, "--json"]
    with subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          preexec_fn=go_early) as process:
        for hog in hogs:
            hog.start()
        taken = [spells.get() for _ in range(BURSTS * len(cpus))]
        for hog in hogs:
            hog.join()
        return json.loads(process.stdout.read())["results"][0], taken


def taken_cpus(table, program):
    """Every CPU is taken at once, for BURST_S, BURSTS times: whoever computes then is hit."""
    if not may_take_cpus():
        print("  CPUs taken: left out, real-time priority isn't allowed here", file=sys.stderr)
        return
    cpus = sorted(os.sched_getaffinity(0))
    result, taken = undisturbed(lambda: bench_with_hogs(program))

    def overlap(token, begin, end):
        return min(token["began_ns"] + token["wall_ns"], end) - max(token["began_ns"], begin)

    every_cpu = []  # in each burst, while all were taken
    for burst in zip(*(sorted(spell[1:] for spell in taken if spell[0] == cpu) for cpu in cpus)):
        every_cpu.append((max(begin for begin, _ in burst), min(end for _, end in burst)))
    any_cpu = [spell[1:] for spell in taken]
    enough_ns = BURST_S * 1e9 / 2
    touched = {token["index"] for token in result["tokens"]
               if any(overlap(token, *spell) > 0 for spell in any_cpu)}
    hit = {token["index"] for token in result["tokens"]
           if any(overlap(token, *spell) >= enough_ns for spell in every_cpu)}
    table.row(Injection(f"all {len(cpus)} CPUs taken for {1e3 * BURST_S:.0f} ms, {BURSTS} times",
                        ["cpu_taken"], int(BURST_S * 1e9), hit, touched - hit),
              result["spikes"], len(result["tokens"]))


def nobodys(table, program):
    result = offstage(program, "bench", "-p", "0", "-n", "500", "-r", "20", "--ram", HALF)
    tokens = result["results"][0]["tokens"]
    off = max(abs(sum(t["causes"].values()) / t["wall_ns"] - 1) for t in tokens)
    wall = sum(t["wall_ns"] for t in tokens)
    share = {cause: sum(t["causes"][cause] for t in tokens) / wall
             for cause in ("other", "record", "descheduled")}
    most = max(t["causes"]["other"] / t["wall_ns"] for t in tokens)
    print(f"\n{len(tokens)} tokens: causes and wall time differ by {100 * off:.4f} % at most; "
          f"`other` is {100 * share['other']:.3f} % of all, {100 * most:.3f} % of one; `record` "
          f"{100 * share['record']:.2f} %, `descheduled` {100 * share['descheduled']:.2f} %")
    if off > SUM_OFF_MAX or most > OTHER_MAX:
        table.fail("some time is nobody's")


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "build/release/offstage")
    clean = run(program, HALF)
    table = Table()
    late_reads(table, program, clean)
    slow_spell(table, program, clean)
    paced_drive(table, program)
    small_budget(table, program)
    taken_cpus(table, program)
    nobodys(table, program)
    print("the rule is broken" if table.failed else "the rule holds")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
