// How long the arithmetic of a forward takes on a profile's machine, part by part.
//
// One row's products read every weight once, so a matrix costs its bytes at the speed that its
// format's kernel reached in the profile (never more than RAM's); the rows of a prompt share that
// and cost products instead: the greater of the two is what rows take. Beside them a layer's parts
// take what they took in the layers that a probe timed, with caches that a token's weights had gone
// through; with a profile that doesn't know, or a model of which a token's weights fit the cache,
// the profile's hand-out for all that is handed out to the workers, and for a product what it needs
// until the weights flow and the last worker has its share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/notices.h"
#include "cpu/kernels.h"
#include "plan/hardware_profile.h"
#include "plan/planned_model.h"

namespace offstage {

// One or more matrix products.
struct Work {
  double weights_ns = 0;  // to go through the weights
  double row_ns = 0;      // of a wide chunk, each row

  double ns(uint32_t rows) const { return weights_ns > rows * row_ns ? weights_ns : rows * row_ns; }
};

class TokenCost {
 public:
  // Formats that the profile doesn't know are announced.
  TokenCost(const PlannedModel& model, const HardwareProfile& profile, KvType k_type, KvType v_type,
            Notices& notices);

  // `layer`: of the model. `position`: of the last row; all see what is before them.
  double attention_ns(uint32_t layer, uint32_t rows, uint32_t position) const;
  double router_ns(uint32_t layer, uint32_t rows) const;
  // A dense layer's FFN, or the shared expert's; 0 in a layer without.
  double ffn_ns(uint32_t layer, uint32_t rows) const;
  // Experts that are computed together, each for so many rows.
  double batch_ns(uint32_t layer, std::span<const uint32_t> rows_by_expert) const;
  // What closes a layer with experts: their sum, unless a layer's measure has it in it, and the
  // tier's bookkeeping, so many of them read, which weighs them all where not all can stay.
  double event_ns(uint64_t reads, bool evicts) const {
    return sum_ns_ + event_ns_ + (evicts ? policy_ns_ : 0) + miss_ns_ * static_cast<double>(reads);
  }
  double output_ns() const { return output_.weights_ns + dispatch_ns_; }
  double sample_ns() const { return token_ns_; }
  // One more row of a wide chunk, all layers together.
  double row_ns() const;

 private:
  struct Layer {
    Work attention, router, ffn, expert;
    uint64_t kv_bytes = 0;  // of one position
    uint32_t window = 0;    // positions seen; 0: all
  };
  std::vector<Layer> layers_;
  Work output_;
  double called_share_ = 0;  // of the experts, by a row
  double ram_bytes_per_s_ = 1;
  double attention_ns_ = 0, router_ns_ = 0, ffn_ns_ = 0;  // beside their weights
  double dispatch_ns_ = 0, sum_ns_ = 0, event_ns_ = 0, policy_ns_ = 0, miss_ns_ = 0, token_ns_ = 0;
};

}  // namespace offstage
