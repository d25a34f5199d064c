#include "cache/route_stats.h"

#include <algorithm>
#include <limits>

namespace offstage {
namespace {

constexpr uint32_t kReachMax = 64;

double share(uint64_t part, uint64_t whole) {
  return whole == 0 ? std::numeric_limits<double>::quiet_NaN()
                    : static_cast<double>(part) / static_cast<double>(whole);
}

// Calls f(begin, end) for every sequence.
template <typename F>
void for_each_sequence(const RouteLog& log, F f) {
  for (size_t i = 0; i < log.starts.size(); ++i)
    f(log.starts[i], i + 1 < log.starts.size() ? log.starts[i + 1] : log.n_tokens());
}

double reuse_at(const RouteLog& log, uint32_t lag) {
  uint64_t again = 0, calls = 0;
  for_each_sequence(log, [&](uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t + lag < end; ++t)
      for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
        const auto now = log.calls(t, l), later = log.calls(t + lag, l);
        for (const uint16_t expert : now)
          again += std::find(later.begin(), later.end(), expert) != later.end();
        calls += now.size();
      }
  });
  return share(again, calls);
}

// Windows don't overlap: as many as fit from each sequence's start.
double distinct_over(const RouteLog& log, uint32_t n_tokens) {
  uint64_t distinct = 0, windows = 0;
  std::vector<uint64_t> seen(log.shape.n_experts, 0);  // the window that called it last
  for_each_sequence(log, [&](uint64_t begin, uint64_t end) {
    for (; begin + n_tokens <= end; begin += n_tokens)
      for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
        ++windows;
        for (uint64_t t = begin; t < begin + n_tokens; ++t)
          for (const uint16_t expert : log.calls(t, l))
            distinct += std::exchange(seen[expert], windows) != windows;
      }
  });
  return share(distinct, windows);
}

}  // namespace

RouteStats route_stats(const RouteLog& log) {
  RouteStats stats;
  for (uint32_t n = 1; n <= kReachMax; n *= 2) {
    stats.reuse_at_lag.push_back({n, reuse_at(log, n)});
    stats.distinct_over.push_back({n, distinct_over(log, n)});
  }
  std::vector<uint8_t> seen(size_t{log.shape.n_layers} * log.shape.n_experts, 0);
  uint64_t first = 0;
  for (uint64_t t = 0; t < log.n_tokens(); ++t)
    for (uint32_t l = 0; l < log.shape.n_layers; ++l)
      for (const uint16_t expert : log.calls(t, l))
        first += std::exchange(seen[size_t{l} * log.shape.n_experts + expert], 1) == 0;
  stats.first_touch_share = share(first, log.experts.size());
  return stats;
}

}  // namespace offstage
