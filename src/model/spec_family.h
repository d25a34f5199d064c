// What a family's files don't state: the table behind ModelSpec. A new family is a new row.
#pragma once

#include <span>
#include <string_view>

#include "model/spec.h"

namespace offstage {

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
  bool scales = false;  // embedding, residual, attention and logits are scaled as the file says
};

// nullptr for an architecture nobody here knows.
const Family* find_family(std::string_view architecture);

}  // namespace offstage
