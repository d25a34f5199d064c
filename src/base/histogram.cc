#include "base/histogram.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace offstage {

Samples::Samples(size_t capacity) : capacity_(capacity) {
  CHECK_GT(capacity, 0u);
  ring_.reserve(capacity);
}

void Samples::add(int64_t value) {
  if (ring_.size() < capacity_) {
    ring_.push_back(value);
  } else {
    ring_[total_ % capacity_] = value;
  }
  ++total_;
  sum_ += value;
  max_ = total_ == 1 ? value : std::max(max_, value);
}

int64_t Samples::percentile(double p) const {
  if (ring_.empty()) return 0;
  std::vector<int64_t> sorted = ring_;
  const double rank = std::ceil(p / 100.0 * static_cast<double>(sorted.size()));
  const size_t index = rank < 1 ? 0 : std::min(static_cast<size_t>(rank), sorted.size()) - 1;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(index), sorted.end());
  return sorted[index];
}

}  // namespace offstage
