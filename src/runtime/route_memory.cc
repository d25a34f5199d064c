#include "runtime/route_memory.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {

RouteMemory::RouteMemory(const RouteShape& shape, uint32_t tokens_max)
    : shape_(shape),
      tokens_max_(tokens_max),
      experts_(size_t{tokens_max} * shape.calls_per_token()),
      tokens_(tokens_max),
      starts_(tokens_max) {
  CHECK_GE(tokens_max, 1u);
}

void RouteMemory::begin_forward(std::span<const Row> rows, bool is_prefill) {
  n_begun_ = n_tokens_;
  if (is_prefill) return;
  for (const Row& row : rows) {
    tokens_[place(n_begun_)] = row.token;
    starts_[place(n_begun_)] = row.position != last_position_ + 1;
    last_position_ = row.position;
    ++n_begun_;
  }
}

void RouteMemory::add_layer(LayerIndex layer, const Routing& routing) {
  for (uint64_t token = n_tokens_; token < n_begun_; ++token) {
    const auto row =
        routing.experts.begin() + static_cast<ptrdiff_t>((token - n_tokens_) * routing.n_used);
    std::transform(
        row, row + routing.n_used,
        experts_.begin() +
            static_cast<ptrdiff_t>((place(token) * shape_.n_layers + layer.value) * shape_.n_used),
        [](ExpertId expert) { return static_cast<uint16_t>(expert.value); });
  }
}

void RouteMemory::end_forward() { n_tokens_ = n_begun_; }

RouteLog RouteMemory::log() const {
  RouteLog log;
  log.shape = shape_;
  log.shape.has_tokens = true;
  log.shape.has_probs = false;
  // A forward that failed has overwritten the oldest.
  const uint64_t first = n_begun_ > tokens_max_ ? n_begun_ - tokens_max_ : 0;
  const size_t calls = shape_.calls_per_token();
  for (uint64_t token = first; token < n_tokens_; ++token) {
    if (token == first || starts_[place(token)] != 0) log.starts.push_back(token - first);
    const auto begin = experts_.begin() + static_cast<ptrdiff_t>(place(token) * calls);
    log.experts.insert(log.experts.end(), begin, begin + static_cast<ptrdiff_t>(calls));
    log.tokens.push_back(tokens_[place(token)]);
    log.prefill.push_back(0);
  }
  return log;
}

}  // namespace offstage
