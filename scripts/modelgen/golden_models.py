"""Golden models: tiny random checkpoints, what `transformers` computes from them in float32, and
their GGUF.

For every case: a checkpoint with a trained tokenizer is made in a temporary folder; `transformers`
(eager attention and experts, float32) gives logits, NLL and greedy text; a converter the user has
(--converter) writes the GGUF, so that our reader is tested on a file that our own writer never
touched. Without one, the committed GGUF is checked against the checkpoint and kept.
--reference-eval PROGRAM adds what a second implementation makes of the GGUF; it is called as
`PROGRAM model.gguf ids.txt logits.bin` (ids separated by blanks, KV in float32) and writes
[n_pos][n_vocab] float32.

Weights are drawn until no choice of experts and no greedy token hangs on rounding (ROUTER_GAP,
GREEDY_GAP).
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers

from . import golden_checkpoint
from . import tiny_tokenizers as tok
from .golden_cases import CASES
from .golden_weights import SENTENCEPIECE, RouterGaps, make_model

N_GREEDY = 24
# Least distance between the router logits of the last expert chosen and the first not chosen.
ROUTER_GAP = 2e-3
# Sigmoid scores lie closer together than logits, and so do softmaxes and sums of two of them.
CLOSER = {"Glm4Moe": 4, "MiniMaxM2": 4, "DeepseekV2": 10, "DeepseekV3": 10}
GREEDY_GAP = 2e-2  # least distance between the two best logits at a greedy step
DISTINCT_MIN = 12  # of the greedy tokens: a loop would test little

TOKENIZER_VOCAB = 300  # fewer tokens than rows in some cases: padding rows


GLM_TOKENS = ["[gMASK]", "<|user|>", "<|observation|>"]  # that its converter asks for


def make_tokenizer(family, folder):
    if family in SENTENCEPIECE:
        return tok.sentencepiece_bpe(folder, 320)
    split = "olmo" if family == "Olmoe" else "qwen2"
    more = GLM_TOKENS if family == "Glm4Moe" else []
    return tok.byte_level_bpe(folder, TOKENIZER_VOCAB + len(more), split, more)


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, ids):
    """(tokens, least gap between the two best logits)."""
    ids, out, gap = list(ids), [], math.inf
    for _ in range(N_GREEDY):
        best = torch.topk(logits_of(model, ids)[-1], 2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        out.append(best.indices[0].item())
        ids.append(out[-1])
    return out, gap


def nll_of(logits, ids):
    """-ln p(ids[i + 1] | ids[..i]), n - 1 values, in float64 from float32 logits."""
    logits = np.asarray(logits, np.float64)[:-1]
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return log_sum - logits[np.arange(len(logits)), ids[1:]]


def first_seed(case):
    """The first eight cases were drawn by their place in the table, later ones by name, so that a
    new case moves nobody's seed."""
    place = list(CASES).index(case)
    return place * 1000 if place < 8 else zlib.crc32(case.encode()) // 1000 * 1000


def draw(case, family, fields, extras, eos, prompts):
    """The first seed whose choices are clear-cut. Returns (model, MXFP4 blocks, seed, results per
    prompt, gaps)."""
    least_gap = ROUTER_GAP / CLOSER.get(family, 1)
    for seed in range(first_seed(case), first_seed(case) + 400):
        generator = torch.Generator().manual_seed(seed)
        model, blocks = make_model(family, fields, extras, eos, generator)
        gaps, results, ok = RouterGaps(model), {}, True
        for name, ids in prompts.items():
            tokens, greedy_gap = greedy(model, ids)
            results[name] = (logits_of(model, ids).numpy(), tokens, greedy_gap)
            ok = (
                ok
                and greedy_gap >= GREEDY_GAP
                and gaps.least >= least_gap
                and len(set(tokens)) >= DISTINCT_MIN
            )
            if not ok:
                break
        if ok:
            return model, blocks, seed, results, gaps.least
    raise RuntimeError(f"{case}: no clear-cut seed")


def convert(converter, folder, case, out_type, path):
    command = [sys.executable, converter, str(folder), "--outtype", out_type]
    command += ["--model-name", f"golden {case}", "--outfile", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{case}: the converter failed\n{done.stdout}\n{done.stderr}")


def check_gguf(path, model):
    """The committed GGUF belongs to this checkpoint: embedding and output norm agree bit for
    bit."""
    from gguf import GGUFReader

    tensors = {t.name: t.data for t in GGUFReader(path).tensors}
    for ours, theirs in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("output_norm.weight", model.model.norm.weight),
    ):
        if not np.array_equal(tensors[ours], theirs.detach().numpy()):
            sys.exit(f"{path}: {ours} differs from the checkpoint; run with --converter")


def reference_eval(program, gguf_path, prompts, results):
    """What a second implementation makes of the file: mean NLL of each prompt and the largest |Δ
    logit|."""
    out = {}
    for name, ids in prompts.items():
        with tempfile.TemporaryDirectory() as folder:
            ids_file, logits_file = Path(folder) / "ids.txt", Path(folder) / "logits.bin"
            ids_file.write_text(" ".join(map(str, ids)))
            subprocess.run([program, str(gguf_path), str(ids_file), str(logits_file)], check=True)
            logits = np.fromfile(logits_file, "<f4").reshape(len(ids), -1)
        delta = np.abs(logits - results[name][0]).max()
        out[name] = (
            float(nll_of(logits, ids).mean()),
            float(delta),
            bool((logits.argmax(1) == results[name][0].argmax(1)).all()),
        )
    return out


def write_case(case, out, converter, reference, reference_version):
    family, fields, extras = (*CASES[case], {})[:3]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        encode, n_tokens, eos = make_tokenizer(family, folder)
        assert n_tokens <= fields["vocab_size"], (case, n_tokens)
        prompts = {name: encode(text) for name, text in tok.PROMPTS.items()}
        model, blocks, seed, results, router_gap = draw(
            case, family, fields, extras, eos, prompts
        )
        gguf_path, json_path = out / f"{case}.gguf", out / f"{case}.golden.json"
        mxfp4_path = out / f"{case}-mxfp4.gguf"
        if converter:
            golden_checkpoint.save(model, folder, extras)
            convert(converter, folder, case, "f32", gguf_path)
            if blocks:
                golden_checkpoint.save_mxfp4(model, blocks, folder)
                convert(converter, folder, case, "f32", mxfp4_path)
        check_gguf(gguf_path, model)
        wide = {name: logits_of(model.double(), ids).numpy() for name, ids in prompts.items()}

    long_logits = results["long"][0]
    long_logits.astype("<f4").tofile(out / f"{case}.logits.bin")
    golden = {
        "model": gguf_path.name,
        "architecture": family,
        "seed": seed,
        "n_vocab": fields["vocab_size"],
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, "
        "float32, eager",
        "min_router_logit_gap": router_gap if math.isfinite(router_gap) else None,
        "logits_file": f"{case}.logits.bin",
        "logits_prompt": "long",
        "logits_std": float(long_logits.std()),
        "logits_max_abs": float(np.abs(long_logits).max()),
        "prompts": {},
    }
    second = reference_eval(reference, gguf_path, prompts, results) if reference else {}
    if blocks:
        golden["mxfp4"] = {"model": mxfp4_path.name}
        for name, (nll, _, _) in (
            reference_eval(reference, mxfp4_path, prompts, results) if reference else {}
        ).items():
            golden["mxfp4"][f"llama_cpp_nll_{name}"] = nll
    before = json.loads(json_path.read_text()) if json_path.exists() else {}
    for name, ids in prompts.items():
        logits, tokens, greedy_gap = results[name]
        nll = nll_of(logits, ids)
        entry = {
            "text": tok.PROMPTS[name],
            "tokens": ids,
            "greedy": tokens,
            "min_greedy_logit_gap": greedy_gap,
            "nll": [float(np.float32(v)) for v in nll],
            "mean_nll": float(nll.mean()),
            "float64_max_abs_delta": float(np.abs(wide[name] - logits).max()),
        }
        if name in second:
            (
                entry["llama_cpp_nll"],
                entry["llama_cpp_max_abs_delta"],
                entry["llama_cpp_same_argmax"],
            ) = second[name]
        else:
            old = before.get("prompts", {}).get(name, {})
            entry.update({k: v for k, v in old.items() if k.startswith("llama_cpp")})
        golden["prompts"][name] = entry
    golden["llama_cpp_commit"] = reference_version if reference else before.get("llama_cpp_commit")
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    text = re.sub(
        r"\[[\d\s.,e+-]*\]", lambda m: " ".join(m.group().split()), text
    )  # a list of numbers: one line
    json_path.write_text(text + "\n")
    entry = golden["prompts"]["long"]
    print(
        f"{case:12} seed {seed} {gguf_path.stat().st_size // 1024:4} KB  {len(entry['tokens'])} + "
        f"{len(prompts['short'])} tokens  logits std {golden['logits_std']:.2f}  "
        f"router gap {router_gap:.4f}  "
        f"greedy gap {entry['min_greedy_logit_gap']:.3f}  f64 Δ {entry['float64_max_abs_delta']:.1e}  "
        f"nll {entry['mean_nll']:.6f}  "
        f"second nll {entry.get('llama_cpp_nll', math.nan):.6f}  "
        f"Δ {entry.get('llama_cpp_max_abs_delta', math.nan):.1e}",
        flush=True,
    )


def write_all(out, converter=None, reference=None, reference_version=None, only=None):
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for case in only or CASES:
        write_case(case, out, converter, reference, reference_version)
