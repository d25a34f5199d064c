// What a family's files don't state: the table behind ModelSpec. A new family is a new row.
#pragma once

#include <span>
#include <string_view>

#include "model/spec.h"

namespace offstage {

// Which of the two matrices of the vocabulary a family's makers count among the parameters that a
// token activates. (Table 1 of arXiv 2401.04088, 2508.10925, 2412.19437 and 2508.06471 each do it
// their own way; a figure is only worth something if it can be held against theirs.)
enum class VocabularyCounts { kBoth, kOutput, kNeither };

enum class Has { kNo, kYes, kIfPresent };  // kIfPresent: the first block that could tells

struct Family {
  std::string_view architecture;
  Has experts = Has::kYes;
  RotaryKind rotary = RotaryKind::kNeox;
  QkNorm qk_norm = QkNorm::kNone;
  Has has_qk_norm = Has::kYes;  // where qk_norm isn't kNone
  bool mla = false;
  Has qkv_bias = Has::kNo;
  Has o_bias = Has::kNo;
  bool sinks = false;
  uint32_t window_period = 0;
  NormKind norm = NormKind::kRms;
  Activation activation = Activation::kSwiglu;
  RouterScore score = RouterScore::kSoftmax;
  bool normalise_weights = false;
  bool router_bias = false;
  Has selection_bias = Has::kNo;
  bool expert_bias = false;
  bool shared_expert = false;  // of a width the file states
  bool shared_gate = false;
  bool output_bias = false;
  VocabularyCounts vocabulary = VocabularyCounts::kBoth;
  bool scales = false;  // embedding, residual, attention and logits are scaled as the file says
};

// nullptr for an architecture nobody here knows.
const Family* find_family(std::string_view architecture);

}  // namespace offstage
