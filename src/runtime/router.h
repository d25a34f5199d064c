// From router logits to who computes what: top-k per row, then rows grouped by expert.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/types.h"
#include "cache/ram_tier.h"
#include "cpu/kernels.h"
#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/weights.h"

namespace offstage {

// One forward's calls at one layer. A row's k calls stand in router order (highest score first, the
// selection bias included; ties to the lower expert id): that is the order in which results are
// added (promise 1).
struct Routing {
  uint32_t n_rows = 0, n_used = 0;
  std::vector<ExpertId> experts;  // [n_rows][n_used]
  std::vector<float> weights;     // [n_rows][n_used]

  // The same calls, sorted by expert: expert e's rows are calls[first[e] … first[e + 1]).
  std::vector<uint32_t> first;      // [n_experts + 1]
  std::vector<uint32_t> call_rows;  // by place in that order: the row
  std::vector<uint32_t> place_of;   // [n_rows][n_used] → place in that order

  // Distinct experts with their uses and weights; in router order of the first row that called
  // them.
  std::vector<ExpertCall> calls;
};

class Router {
 public:
  Router(const RouterSpec& spec, const Kernels& kernels, uint32_t rows_max);

  // `logits` [n_rows][n_experts], overwritten with scores. `selection_bias` [n_experts] (or
  // nullptr) is added to them for the choice alone.
  const Routing& route(float* logits, uint32_t n_rows, const float* selection_bias = nullptr);
  // The same from a layer's normed input; `logits` [n_rows][n_experts] is scratch.
  const Routing& route(const LayerWeights& weights, const Compute& compute, ActivationCache& input,
                       uint32_t n_rows, float* logits);

  // A choice that was made elsewhere, [n_rows][n_used] each (CHECK: experts of this router).
  const Routing& adopt(const uint32_t* experts, const float* weights, uint32_t n_rows);

  // The last routing with other experts and weights, [n_rows][n_used] each (CHECK).
  const Routing& replace(std::span<const ExpertId> experts, std::span<const float> weights);

 private:
  void score(float* logits) const;
  void mask_groups(float* merits);
  void pick(const float* merits, uint32_t row);
  void weigh(const float* scores, uint32_t row);
  void group();

  RouterSpec spec_;
  const Kernels& kernels_;
  Routing routing_;
  std::vector<float> weight_sums_;                  // scratch: by expert
  std::vector<uint32_t> order_;                     // scratch: candidate ids
  std::vector<float> merits_;                       // scratch: scores as the choice sees them
  std::vector<std::pair<float, uint32_t>> groups_;  // scratch: merit and id
};

}  // namespace offstage
