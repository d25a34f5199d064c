// Latency samples with exact percentiles: a token's record is kept, not a bucket.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace offstage {

// A bounded ring of samples; percentiles by nearest rank (the smallest sample such that at least
// p per cent of samples are ≤ it), so p100 is the maximum and every printed figure was measured.
class Samples {
 public:
  explicit Samples(size_t capacity);
  void add(int64_t value);
  size_t count() const { return total_; }  // all ever added
  int64_t percentile(double p) const;      // p in [0, 100]; 0 without samples
  int64_t max() const { return max_; }     // of all ever added
  int64_t sum() const { return sum_; }     // of all ever added

 private:
  std::vector<int64_t> ring_;
  size_t capacity_;
  size_t total_ = 0;
  int64_t max_ = 0;
  int64_t sum_ = 0;
};

}  // namespace offstage
