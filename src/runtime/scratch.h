// Working memory of a forward pass: sized by the widest chunk, taken once, never grown.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/arena.h"
#include "model/spec.h"

namespace offstage {

// Logits are made for this many rows at a time; more rows are passed to the sink in turns.
inline constexpr uint32_t kLogitRows = 8;

// The dense FFN's or the shared expert's: a layer has one of them.
struct FfnScratch {
  float* gate = nullptr;              // [rows][widest of the two]
  float* up = nullptr;                // [rows][widest]
  std::byte* hidden_forms = nullptr;  // ActivationCache of [rows][widest]
};

struct MoeScratch {
  float* router_logits = nullptr;     // [rows][n_experts]
  float* gate = nullptr;              // [rows · n_used][expert_ffn]
  float* up = nullptr;                // [rows · n_used][expert_ffn]
  std::byte* hidden_forms = nullptr;  // [rows · n_used][activation row of expert_ffn]
  float* expert_out = nullptr;        // [rows · n_used][hidden]
  float* router_sum = nullptr;        // [rows][hidden]
  std::byte* input_forms = nullptr;   // ActivationCache of [rows][hidden]
  FfnScratch shared;
  float* shared_out = nullptr;  // [rows][hidden]
};

// Of attention_gqa.
struct GqaScratch {
  float* q = nullptr;                   // [rows][q_width]
  float* k = nullptr;                   // [rows][k_width]
  float* v = nullptr;                   // [rows][v_width]
  float* attended = nullptr;            // [rows][o_width]
  std::byte* attended_forms = nullptr;  // ActivationCache of [rows][o_width]
};

// Of attention_mla.
struct MlaScratch {
  float* q_low = nullptr;             // [rows][q_rank]
  std::byte* q_low_forms = nullptr;   // ActivationCache of [rows][q_rank]
  float* q = nullptr;                 // [rows][n_heads][nope_dim + rope_dim]
  float* kv = nullptr;                // [rows][kv_rank + rope_dim]
  float* absorbed = nullptr;          // [rows][n_heads][kv_rank + rope_dim]
  float* latents = nullptr;           // [rows][n_heads][kv_rank]
  float* values = nullptr;            // [rows][n_heads][v_dim]
  std::byte* head_forms = nullptr;    // [n_heads][rows][activation row of nope_dim or kv_rank]
  std::byte* values_forms = nullptr;  // ActivationCache of [rows][n_heads · v_dim]
};

struct Scratch {
  float* x = nullptr;                // [rows][hidden]: the residual stream
  float* normed = nullptr;           // [rows][hidden]
  float* projected = nullptr;        // [rows][hidden]
  std::byte* input_forms = nullptr;  // ActivationCache of [rows][hidden]
  float* logits = nullptr;           // [kLogitRows][n_vocab]
  GqaScratch gqa;                    // or, where spec.attention has MLA:
  MlaScratch mla;
  FfnScratch ffn;
  MoeScratch moe;

  // Bytes of all of it; and the same walk that hands out an arena of that size.
  static uint64_t bytes_needed(const ModelSpec& spec, uint32_t rows);
  static Scratch take(const ModelSpec& spec, uint32_t rows, HostArena& arena);
};

}  // namespace offstage
