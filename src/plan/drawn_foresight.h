// The next-layer gate of a forecast: right as often as the model's own, where that was measured.
//
// Each place of a guess names the expert that will be called there with probability `accuracy`,
// from n layers before with its nth power, and else one that won't be. The same word for the same
// token, layer and place every time.
#pragma once

#include <cstdint>
#include <optional>

#include "cache/route_log.h"
#include "runtime/foresight.h"

namespace offstage {

class DrawnForesight final : public Foresight {
 public:
  DrawnForesight(double accuracy, uint64_t seed) : accuracy_(accuracy), seed_(seed) {}

  // Guesses are for this token's rows from now on; the log must live as long.
  void look_at(const RouteLog& log, uint64_t token) {
    log_ = &log;
    token_ = token;
  }
  std::optional<ExpertId> foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                   uint32_t ahead) const override;

 private:
  double accuracy_;
  uint64_t seed_;
  const RouteLog* log_ = nullptr;
  uint64_t token_ = 0;
};

}  // namespace offstage
