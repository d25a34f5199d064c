#include "runtime/first_routes.h"

#include <algorithm>

namespace offstage {
namespace {

constexpr uint64_t kBytesMax = 4ull << 20;
constexpr uint64_t kRowsLeast = 256, kRowsMost = 4096;

}  // namespace

FirstRoutes::FirstRoutes(const RouteShape& shape, uint32_t rows_max)
    : shape_(shape),
      rows_max_(rows_max),
      experts_(size_t{rows_max} * shape.calls_per_token(), uint16_t{0}) {}

uint32_t FirstRoutes::rows_for(const RouteShape& shape) {
  const uint64_t row_bytes = std::max<uint64_t>(shape.calls_per_token() * sizeof(uint16_t), 1);
  return static_cast<uint32_t>(std::clamp(kBytesMax / row_bytes, kRowsLeast, kRowsMost));
}

void FirstRoutes::begin_forward(uint32_t n_rows) {
  n_begun_ = n_rows_;
  is_full_ = is_full_ || n_rows_ + n_rows > rows_max_;
  if (!is_full_) n_begun_ += n_rows;
}

void FirstRoutes::add_layer(LayerIndex layer, const Routing& routing) {
  for (uint64_t row = n_rows_; row < n_begun_; ++row) {
    const auto calls =
        routing.experts.begin() + static_cast<ptrdiff_t>((row - n_rows_) * routing.n_used);
    const uint64_t place = (row * shape_.n_layers + layer.value) * shape_.n_used;
    std::transform(calls, calls + routing.n_used, experts_.begin() + static_cast<ptrdiff_t>(place),
                   [](ExpertId expert) { return static_cast<uint16_t>(expert.value); });
  }
}

void FirstRoutes::end_forward() { n_rows_ = n_begun_; }

void FirstRoutes::restart() {
  n_rows_ = n_begun_ = 0;
  is_full_ = false;
}

RouteLog FirstRoutes::log() const {
  RouteLog log;
  log.shape = shape_;
  log.shape.has_probs = log.shape.has_tokens = false;
  const uint64_t n_calls = n_rows_ * shape_.calls_per_token();
  log.experts.assign(experts_.begin(), experts_.begin() + static_cast<ptrdiff_t>(n_calls));
  log.tokens.assign(n_rows_, -1);
  log.prefill.assign(n_rows_, 0);
  if (n_rows_ != 0) log.starts.push_back(0);
  return log;
}

}  // namespace offstage
