#include "runtime/placement.h"

#include <algorithm>
#include <numeric>

namespace offstage {
namespace {

constexpr double kNewestCounts = 1.0 / 16;

}  // namespace

uint32_t experts_to_copy(uint32_t n, const PlacementCosts& costs, const PlacementQueues& queues) {
  if (costs.cpu_ns == 0) return 0;
  // The drive's experts come later whatever is done with these.
  const auto done_ns = [&](uint32_t copied) {
    const int64_t cpu_ns = int64_t{n - copied} * costs.cpu_ns;
    const int64_t there_ns = queues.bus_ns + int64_t{copied} * costs.copy_ns;
    const int64_t device_ns =
        copied == 0 ? queues.device_ns : std::max(there_ns, queues.device_ns) + costs.device_ns;
    return std::max({cpu_ns, device_ns, queues.drive_ns});
  };
  uint32_t best = 0;
  for (uint32_t copied = 1; copied <= n; ++copied)
    if (done_ns(copied) < done_ns(best)) best = copied;
  return best;
}

void RecentCost::add(int64_t ns, bool exact) {
  const auto newest = static_cast<double>(ns);
  if (ns_ == 0)
    ns_ = newest;
  else if (exact || newest < ns_)
    ns_ += (newest - ns_) * kNewestCounts;
}

void PlacementMeter::add_cpu(LayerIndex layer, uint32_t n, int64_t ns) {
  if (n != 0) cpu_[layer.value].add(ns / n, true);
}

void PlacementMeter::add_device(LayerIndex layer, uint32_t n, int64_t ns, bool exact) {
  if (n != 0) device_[layer.value].add(ns / n, exact);
}

void PlacementMeter::add_drive(uint32_t n, int64_t ns, bool exact) {
  if (n != 0) drive_.add(ns / n, exact);
}

uint32_t experts_to_stream(std::span<const uint32_t> rows, const StreamCosts& costs) {
  const auto n = static_cast<uint32_t>(rows.size());
  if (costs.cpu_row_ns == 0) return n / 2;
  uint64_t left = std::accumulate(rows.begin(), rows.end(), uint64_t{0});
  const auto done_ns = [&](uint32_t streamed) {
    const int64_t cpu_ns = static_cast<int64_t>(left) * costs.cpu_row_ns;
    return std::max(cpu_ns, costs.device_ns + int64_t{streamed} * costs.stream_ns);
  };
  uint32_t best = 0;
  int64_t best_ns = done_ns(0);
  for (uint32_t streamed = 1; streamed <= n; ++streamed) {
    left -= rows[streamed - 1];
    if (done_ns(streamed) >= best_ns) continue;
    best = streamed;
    best_ns = done_ns(streamed);
  }
  return best;
}

void ChunkMeter::add_cpu(uint64_t rows, int64_t ns) {
  if (rows != 0) cpu_row_.add(ns / static_cast<int64_t>(rows), true);
}

void ChunkMeter::add_stream(uint32_t n, int64_t ns, bool exact) {
  if (n != 0) stream_.add(ns / n, exact);
}

void ChunkMeter::add_device(uint64_t rows, int64_t ns, bool exact) {
  if (rows != 0) device_row_.add(ns / static_cast<int64_t>(rows), exact);
}

}  // namespace offstage
