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
from pathlib import Path

import numpy as np
import torch
import transformers

from . import tiny_tokenizers as tok

N_GREEDY = 24
# Least distance between the router logits of the last expert chosen and the first not chosen.
ROUTER_GAP = 2e-3
GREEDY_GAP = 2e-2  # least distance between the two best logits at a greedy step
DISTINCT_MIN = 12  # of the greedy tokens: a loop would test little

# One row per case. vocab is the model's; the tokenizer may have fewer tokens (padded rows, as the
# real ones have).
COMMON = dict(
    hidden_size=64, num_attention_heads=4, max_position_embeddings=512, attention_dropout=0.0
)
CASES = {
    "mixtral-s1": (
        "Mixtral",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=16,
            head_dim=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=320,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            theta=1e6,
        ),
    ),
    "mixtral-s2": (
        "Mixtral",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=20,
            head_dim=16,
            num_local_experts=6,
            num_experts_per_tok=3,
            vocab_size=327,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
    ),
    "olmoe-s1": (
        "Olmoe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=4,
            intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            vocab_size=300,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
    ),
    "olmoe-s2": (
        "Olmoe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=4,
            intermediate_size=20,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            vocab_size=304,
            rms_norm_eps=1e-5,
            theta=5e5,
        ),
    ),
    "qwen2moe-s1": (
        "Qwen2Moe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=48,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=40,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            vocab_size=300,
            rms_norm_eps=1e-6,
            theta=1e6,
        ),
    ),
    "qwen2moe-s2": (
        "Qwen2Moe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=4,
            intermediate_size=64,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
    ),
    "qwen3moe-s1": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            vocab_size=300,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            theta=1e6,
        ),
    ),
    "qwen3moe-s2": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            head_dim=24,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e7,
        ),
    ),
}
TOKENIZER_VOCAB = 300  # fewer tokens than rows in some cases: padding rows


def make_tokenizer(family, folder):
    if family == "Mixtral":
        return tok.sentencepiece_bpe(folder, 320)
    return tok.byte_level_bpe(folder, TOKENIZER_VOCAB, "olmo" if family == "Olmoe" else "qwen2")


def make_model(family, fields, eos, generator):
    """Random weights of a scale at which every part matters: scores, gates and blocks of order
    one."""
    fields = {**COMMON, **fields}
    theta = fields.pop("theta")
    config = getattr(transformers, family + "Config")(
        **fields,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        eos_token_id=eos,
        pad_token_id=None,
        bos_token_id=1 if family == "Mixtral" else None,
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, family + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=generator))
            elif name.endswith("bias"):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                fan_in = p.shape[-1]
                gain = 1.5
                if "embed_tokens" in name:
                    fan_in, gain = 1, 0.4 if config.tie_word_embeddings else 1.0
                elif name.endswith("gate.weight"):
                    gain = 2.0
                elif "lm_head" in name:
                    gain = 3.0
                p.copy_(gain / math.sqrt(fan_in) * torch.randn(p.shape, generator=generator))
    return model


class RouterGaps:
    """Watches every router: the least gap between the k-th and the next logit, over all positions
    and layers."""

    def __init__(self, model):
        self.least, self.k = math.inf, model.config.num_experts_per_tok
        for name, module in model.named_modules():
            if name.endswith("mlp.gate") or name.endswith("block_sparse_moe.gate"):
                module.register_forward_hook(self._see)

    def _see(self, module, inputs, output):
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        logits, _ = torch.sort(x @ module.weight.T, dim=-1, descending=True)
        self.least = min(self.least, (logits[:, self.k - 1] - logits[:, self.k]).min().item())


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


def draw(case, family, fields, eos, prompts):
    """The first seed whose choices are clear-cut. Returns (model, seed, results per prompt,
    gaps)."""
    for attempt in range(400):
        seed = list(CASES).index(case) * 1000 + attempt
        model = make_model(family, fields, eos, torch.Generator().manual_seed(seed))
        gaps, results, ok = RouterGaps(model), {}, True
        for name, ids in prompts.items():
            tokens, greedy_gap = greedy(model, ids)
            results[name] = (logits_of(model, ids).numpy(), tokens, greedy_gap)
            ok = (
                ok
                and greedy_gap >= GREEDY_GAP
                and gaps.least >= ROUTER_GAP
                and len(set(tokens)) >= DISTINCT_MIN
            )
            if not ok:
                break
        if ok:
            return model, seed, results, gaps.least
    raise RuntimeError(f"{case}: no clear-cut seed")


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
    family, fields = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        encode, n_tokens, eos = make_tokenizer(family, folder)
        assert n_tokens <= fields["vocab_size"], (case, n_tokens)
        prompts = {name: encode(text) for name, text in tok.PROMPTS.items()}
        model, seed, results, router_gap = draw(case, family, fields, eos, prompts)
        gguf_path, json_path = out / f"{case}.gguf", out / f"{case}.golden.json"
        if converter:
            model.save_pretrained(folder)
            subprocess.run(
                [
                    sys.executable,
                    converter,
                    str(folder),
                    "--outtype",
                    "f32",
                    "--model-name",
                    f"golden {case}",
                    "--outfile",
                    str(gguf_path),
                ],
                check=True,
                capture_output=True,
            )
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
        "min_router_logit_gap": router_gap,
        "logits_file": f"{case}.logits.bin",
        "logits_prompt": "long",
        "logits_std": float(long_logits.std()),
        "logits_max_abs": float(np.abs(long_logits).max()),
        "prompts": {},
    }
    second = reference_eval(reference, gguf_path, prompts, results) if reference else {}
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
