// The families that people run, as their makers' config.json states them. Every number was read in
// the source named; tests/plan/shapes_test.cc holds the sums against the published totals.
#include <vector>

#include "plan/model_shape.h"

namespace offstage {
namespace {

using Shapes = std::vector<ModelShape>;

void add_mistral(Shapes& shapes) {
  ModelShape shape = {
      .name = "mixtral-8x7b",
      .architecture = "llama",
      .source = "mistralai/Mixtral-8x7B-v0.1 config.json; arXiv 2401.04088, table 1",
      .published = {46.7, 12.9},
      .nominal = {8, 7},
      .n_layers = 32,
      .hidden = 4096,
      .n_vocab = 32000,
      .context_train = 32768,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 128,
      .n_experts = 8,
      .n_used = 2,
      .expert_ffn = 14336,
  };
  shapes.push_back(shape);
  shape.name = "mixtral-8x22b";
  shape.source = "mistralai/Mixtral-8x22B-v0.1 config.json";
  shape.published = {141, 39};
  shape.nominal = {8, 22};
  shape.n_layers = 56;
  shape.hidden = 6144;
  shape.context_train = 65536;
  shape.n_heads = 48;
  shape.expert_ffn = 16384;
  shapes.push_back(shape);
}

void add_qwen(Shapes& shapes) {
  ModelShape shape = {
      .name = "qwen3-30b-a3b",
      .architecture = "qwen3moe",
      .source = "Qwen/Qwen3-30B-A3B config.json and card",
      .published = {30.5, 3.3},
      .n_layers = 48,
      .hidden = 2048,
      .n_vocab = 151936,
      .context_train = 40960,
      .n_heads = 32,
      .n_kv_heads = 4,
      .head_dim = 128,
      .n_experts = 128,
      .n_used = 8,
      .expert_ffn = 768,
  };
  shapes.push_back(shape);
  shape.name = "qwen3-235b-a22b";
  shape.source = "Qwen/Qwen3-235B-A22B config.json and card";
  shape.published = {235, 22};
  shape.n_layers = 94;
  shape.hidden = 4096;
  shape.n_heads = 64;
  shape.expert_ffn = 1536;
  shapes.push_back(shape);
}

void add_gpt_oss(Shapes& shapes) {
  ModelShape shape = {
      .name = "gpt-oss-20b",
      .architecture = "gpt-oss",
      .source = "openai/gpt-oss-20b config.json; model card, table 1 (arXiv 2508.10925)",
      .published = {20.9, 3.6},
      .n_layers = 24,
      .hidden = 2880,
      .n_vocab = 201088,
      .context_train = 131072,
      .n_heads = 64,
      .n_kv_heads = 8,
      .head_dim = 64,
      .n_experts = 32,
      .n_used = 4,
      .expert_ffn = 2880,
      .window = 128,
  };
  shapes.push_back(shape);
  shape.name = "gpt-oss-120b";
  shape.source = "openai/gpt-oss-120b config.json; model card, table 1 (arXiv 2508.10925)";
  shape.published = {116.8, 5.1};
  shape.n_layers = 36;
  shape.n_experts = 128;
  shapes.push_back(shape);
}

void add_deepseek(Shapes& shapes) {
  ModelShape shape = {
      .name = "deepseek-v3",
      .architecture = "deepseek2",
      .source = "deepseek-ai/DeepSeek-V3 config.json; arXiv 2412.19437, section 4.2",
      .published = {671, 37},
      .n_layers = 61,
      .hidden = 7168,
      .n_vocab = 129280,
      .context_train = 163840,
      .n_heads = 128,
      .mla = {.kv_rank = 512, .q_rank = 1536, .nope_dim = 128, .rope_dim = 64, .v_dim = 128},
      .n_experts = 256,
      .n_used = 8,
      .expert_ffn = 2048,
      .shared_ffn = 2048,
      .n_dense_layers = 3,
      .dense_ffn = 18432,
      .selection_bias = true,
  };
  shapes.push_back(shape);
  shape.name = "deepseek-r1";
  shape.source = "deepseek-ai/DeepSeek-R1 config.json: the sizes of V3";
  shapes.push_back(shape);
  shape.name = "kimi-k2";
  shape.source = "moonshotai/Kimi-K2-Instruct config.json and card";
  shape.published = {1000, 32};
  shape.n_vocab = 163840;
  shape.context_train = 131072;
  shape.n_heads = 64;
  shape.n_experts = 384;
  shape.n_dense_layers = 1;
  shapes.push_back(shape);
}

// The published totals count the layer that predicts a second token, and no vocabulary.
void add_glm(Shapes& shapes) {
  ModelShape shape = {
      .name = "glm-4.5",
      .architecture = "glm4moe",
      .source = "zai-org/GLM-4.5 config.json; arXiv 2508.06471, table 1",
      .published = {355, 32},
      .n_layers = 92,
      .hidden = 5120,
      .n_vocab = 151552,
      .context_train = 131072,
      .n_heads = 96,
      .n_kv_heads = 8,
      .head_dim = 128,
      .n_rot = 64,
      .n_experts = 160,
      .n_used = 8,
      .expert_ffn = 1536,
      .shared_ffn = 1536,
      .n_dense_layers = 3,
      .dense_ffn = 12288,
      .qk_norm = true,
      .qkv_bias = true,
  };
  shapes.push_back(shape);
  shape.name = "glm-4.5-air";
  shape.source = "zai-org/GLM-4.5-Air config.json; arXiv 2508.06471, table 1";
  shape.published = {106, 12};
  shape.n_layers = 46;
  shape.hidden = 4096;
  shape.n_experts = 128;
  shape.expert_ffn = shape.shared_ffn = 1408;
  shape.n_dense_layers = 1;
  shape.dense_ffn = 10944;
  shape.qk_norm = false;
  shapes.push_back(shape);
}

void add_others(Shapes& shapes) {
  shapes.push_back({
      .name = "minimax-m2",
      .architecture = "minimax-m2",
      .source = "MiniMaxAI/MiniMax-M2 config.json and card",
      .published = {230, 10},
      .n_layers = 62,
      .hidden = 3072,
      .n_vocab = 200064,
      .context_train = 196608,
      .n_heads = 48,
      .n_kv_heads = 8,
      .head_dim = 128,
      .n_rot = 64,
      .n_experts = 256,
      .n_used = 8,
      .expert_ffn = 1536,
  });
  shapes.push_back({
      .name = "olmoe-1b-7b",
      .architecture = "olmoe",
      .source = "allenai/OLMoE-1B-7B-0924 config.json; arXiv 2409.02060, table 10",
      .published = {6.9, 1.3},
      .n_layers = 16,
      .hidden = 2048,
      .n_vocab = 50304,
      .context_train = 4096,
      .n_heads = 16,
      .n_kv_heads = 16,
      .head_dim = 128,
      .n_experts = 64,
      .n_used = 8,
      .expert_ffn = 1024,
  });
  shapes.push_back({
      .name = "phi-3.5-moe",
      .architecture = "phimoe",
      .source = "microsoft/Phi-3.5-MoE-instruct config.json and card",
      .published = {41.9, 6.6},
      .n_layers = 32,
      .hidden = 4096,
      .n_vocab = 32064,
      .context_train = 131072,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 128,
      .n_experts = 16,
      .n_used = 2,
      .expert_ffn = 6400,
  });
}

// For comparison, and to hold calculators of "N x M" against.
void add_yardsticks(Shapes& shapes) {
  shapes.push_back({
      .name = "moe-16x8b",
      .architecture = "llama",
      .source = "made up: Llama 3 8B (meta-llama/Meta-Llama-3-8B config.json) with 16 experts of "
                "its FFN's width, 2 called, as Mixtral 8x7B is made of Mistral 7B",
      .nominal = {16, 8},
      .n_layers = 32,
      .hidden = 4096,
      .n_vocab = 128256,
      .context_train = 8192,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 128,
      .n_experts = 16,
      .n_used = 2,
      .expert_ffn = 14336,
  });
  ModelShape shape = {
      .name = "dense-7b",
      .architecture = "llama",
      .source = "meta-llama/Llama-2-7b-hf config.json",
      .published = {6.74, 6.74},
      .n_layers = 32,
      .hidden = 4096,
      .n_vocab = 32000,
      .context_train = 4096,
      .n_heads = 32,
      .n_kv_heads = 32,
      .head_dim = 128,
      .dense_ffn = 11008,
  };
  shapes.push_back(shape);
  shape.name = "dense-70b";
  shape.source = "meta-llama/Llama-2-70b-hf config.json";
  shape.published = {68.98, 68.98};
  shape.n_layers = 80;
  shape.hidden = 8192;
  shape.n_heads = 64;
  shape.n_kv_heads = 8;
  shape.dense_ffn = 28672;
  shapes.push_back(shape);
}

Shapes all_shapes() {
  Shapes shapes;
  add_mistral(shapes);
  add_qwen(shapes);
  add_gpt_oss(shapes);
  add_deepseek(shapes);
  add_glm(shapes);
  add_others(shapes);
  add_yardsticks(shapes);
  return shapes;
}

}  // namespace

std::span<const ModelShape> known_shapes() {
  static const Shapes shapes = all_shapes();
  return shapes;
}

}  // namespace offstage
