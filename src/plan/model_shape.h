// The sizes that say what a model is, without a file of it: of a published family, or of a
// config.json.
//
// A shape states numbers; what goes without saying in its architecture (which norms, which biases,
// which rotary kind) is the same table that a GGUF is read with (model/spec_family.h). spec_of()
// makes of both the ModelSpec that everything else follows, so a shape and a file of the same model
// are planned by the same code.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/spec.h"

namespace offstage {

// As its makers count it, in billions; 0: they don't say. (What of the vocabulary counts as active
// differs from maker to maker: VocabularyCounts.)
struct PublishedParams {
  double total_b = 0;
  double active_b = 0;
};

// What the name promises: 8 experts "of 7 B", as if nothing were shared between them.
struct NominalParams {
  uint32_t n_experts = 0;
  double each_b = 0;

  double total_b() const { return n_experts * each_b; }
  double active_b(uint32_t n_used) const { return n_used * each_b; }
};

struct ModelShape {
  std::string name;          // as --shape spells it
  std::string architecture;  // as GGUF's general.architecture
  std::string source;        // where the numbers were read
  PublishedParams published = {};
  NominalParams nominal = {};  // n_experts 0: the name promises nothing
  uint32_t n_layers = 0;       // that are computed: without those that predict further tokens
  uint32_t hidden = 0;
  uint32_t n_vocab = 0;
  uint32_t context_train = 0;
  uint32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  uint32_t n_rot = 0;  // of a head's dimensions, rotated; 0: all
  MlaSpec mla = {};    // kv_rank 0: none; else n_kv_heads and head_dim are its own
  uint32_t n_experts = 0, n_used = 0, expert_ffn = 0;  // 0 experts: dense
  uint32_t shared_ffn = 0;                             // all shared experts together; 0: none
  uint32_t n_dense_layers = 0;                         // leading ones, of a model with experts
  uint32_t dense_ffn = 0;
  uint32_t window = 0;          // positions that a windowed layer sees; 0: no such layers
  bool tied_embedding = false;  // the output matrix is the embedding
  // Where the architecture leaves it to the file:
  bool qk_norm = false, qkv_bias = false, o_bias = false, selection_bias = false;
};

// Errors: kUnsupported for an architecture that Offstage doesn't compute (named, with those it
// does), kInvalidArgument for sizes that can't be a model; both begin with shape.name.
Result<ModelSpec> spec_of(const ModelShape& shape);

// The built-in ones (shapes.cc), in the order that they are listed in.
std::span<const ModelShape> known_shapes();
// kNotFound naming all that there are.
Result<ModelShape> find_shape(std::string_view name);

}  // namespace offstage
