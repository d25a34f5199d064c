"""Model shapes: the sizes of published models, and small ones made like them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deepseek:
    """What a deepseek2 model has beside the fields of Shape. Its heads are nope + rope wide."""

    q_rank: int  # 0: queries aren't compressed
    kv_rank: int
    nope: int
    rope: int
    v: int
    dense_layers: int
    shared_experts: int  # each of the experts' width
    sigmoid: bool = False  # V3's way: a bias for the choice, weights normalised
    groups: int = 1
    groups_used: int = 1
    weights_scale: float = 1.0
    yarn_factor: float = 40.0
    context_original: int = 4096
    mscale: float = 0.707

    @property
    def head(self):
        return self.nope + self.rope


@dataclass(frozen=True)
class Shape:
    arch: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_ff: int
    vocab: int
    shared_ff: int = 0
    dense_ff: int = (
        0  # the family's feed_forward_length where it isn't the experts' (metadata only)
    )
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    context: int = 32768
    window: int = 0  # gpt-oss: positions that every other layer sees
    pre: str = "qwen2"  # "" means a SentencePiece-style vocabulary
    deepseek: Deepseek | None = None

    @property
    def moe_layers(self):
        return self.layers - (self.deepseek.dense_layers if self.deepseek else 0)


SHAPES = {
    "mixtral-8x7b": Shape("llama", 32, 4096, 32, 8, 128, 8, 2, 14336, 32000, norm_eps=1e-5, pre=""),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 48, 2048, 32, 4, 128, 128, 8, 768, 151936, dense_ff=6144, context=40960
    ),
    "olmoe-7b": Shape(
        "olmoe",
        16,
        2048,
        16,
        16,
        128,
        64,
        8,
        1024,
        50304,
        rope_base=1e4,
        norm_eps=1e-5,
        context=4096,
        pre="olmo",
    ),
    "qwen2moe-57b-a14b": Shape(
        "qwen2moe", 28, 3584, 28, 4, 128, 64, 8, 2560, 151936, shared_ff=20480, dense_ff=18944
    ),
    "gpt-oss-20b": Shape(  # 2880 isn't a multiple of 256: no K-quants
        "gpt-oss",
        24,
        2880,
        64,
        8,
        64,
        32,
        4,
        2880,
        201088,
        rope_base=1.5e5,
        norm_eps=1e-5,
        context=131072,
        window=128,
        pre="gpt-4o",
    ),
    # head_dim is that of a cached row, as the files' key_length.
    "deepseek-v2-lite": Shape(
        "deepseek2",
        27,
        2048,
        16,
        1,
        576,
        64,
        6,
        1408,
        102400,
        dense_ff=10944,
        rope_base=1e4,
        context=163840,
        deepseek=Deepseek(0, 512, 128, 64, 128, dense_layers=1, shared_experts=2),
    ),
    # V3's every feature at a size for tests of speed on two cores.
    "small-deepseek-v3": Shape(
        "deepseek2",
        12,
        1024,
        16,
        1,
        576,
        64,
        8,
        512,
        8192,
        dense_ff=4096,
        rope_base=1e4,
        context=163840,
        deepseek=Deepseek(
            768,
            512,
            128,
            64,
            128,
            dense_layers=1,
            shared_experts=1,
            sigmoid=True,
            groups=8,
            groups_used=4,
            weights_scale=2.5,
            mscale=1.0,
        ),
    ),
    # Everything divides by 256, so every quantisation fits. Small: experts beyond a budget of tens
    # of MB.
    "small-qwen3moe": Shape("qwen3moe", 12, 512, 8, 2, 64, 64, 8, 256, 8192, dense_ff=1536),
    # Committed as test data (tests/data/models/micro-*).
    "micro-qwen3moe": Shape("qwen3moe", 3, 256, 4, 2, 64, 8, 2, 256, 384, dense_ff=768),
    "micro-qwen2moe": Shape(
        "qwen2moe", 3, 256, 4, 2, 64, 8, 2, 256, 384, shared_ff=256, dense_ff=512
    ),
    "tiny-gpt-oss": Shape(
        "gpt-oss",
        4,
        288,
        4,
        2,
        64,
        16,
        4,
        288,
        2048,
        rope_base=1.5e5,
        norm_eps=1e-5,
        window=16,
        pre="gpt-4o",
    ),
    "micro-deepseek2": Shape(
        "deepseek2",
        3,
        256,
        4,
        1,
        96,
        8,
        2,
        256,
        384,
        dense_ff=256,
        rope_base=1e4,
        deepseek=Deepseek(
            64,
            64,
            32,
            32,
            32,
            dense_layers=1,
            shared_experts=1,
            sigmoid=True,
            groups=2,
            groups_used=1,
            weights_scale=2.5,
            context_original=48,
            mscale=1.0,
        ),
    ),
    "tiny-mixtral": Shape("llama", 4, 256, 4, 2, 64, 8, 2, 512, 2048, norm_eps=1e-5, pre=""),
    "tiny-olmoe": Shape(
        "olmoe", 4, 256, 4, 4, 64, 32, 4, 256, 2048, rope_base=1e4, norm_eps=1e-5, pre="olmo"
    ),
    "tiny-qwen2moe": Shape(
        "qwen2moe", 4, 256, 4, 2, 64, 16, 4, 256, 2048, shared_ff=512, dense_ff=1024
    ),
    "tiny-qwen3moe": Shape("qwen3moe", 4, 256, 4, 2, 128, 32, 4, 256, 2048, dense_ff=768),
}
