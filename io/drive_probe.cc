#include "io/drive_probe.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/rng.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr double kNearBest = 0.95;
// Bursts shorter than this measure the first read's latency, not speed.
constexpr uint64_t kBurstBytesMin = 4ull << 20;
constexpr uint32_t kBlockBytesMin = 128u << 10;
constexpr int64_t kPatience = 10;  // × time_max_ns, for a single burst
// In this order, so that a slow drive, whose time is over soon, has told the middle.
constexpr uint32_t kDepths[] = {8, 16, 4, 32, 2, 64, 1, 128};

class Prober {
 public:
  Prober(IoEngine& engine, const Clock& clock, const DriveProbeShape& shape)
      : engine_(engine),
        clock_(clock),
        shape_(shape),
        rng_(shape.seed),
        begin_ns_(clock.now_ns()),
        done_(engine.depth()) {}

  Result<DriveProfile> run() {
    const auto longest = static_cast<uint32_t>(round_down(shape_.read_bytes, kSectorBytes));
    for (const uint32_t depth : kDepths)
      if (depth <= shape_.depth_max) OFFSTAGE_TRY_VOID(measure(longest, depth));
    // Does the drive like shorter reads, with as much or more in flight?
    const uint32_t near_best = choose_cell(profile_.cells).depth;
    for (uint32_t block = longest / 2; block >= kBlockBytesMin; block /= 2)
      for (const uint32_t depth : {near_best, 2 * near_best})
        if (depth <= shape_.depth_max)
          OFFSTAGE_TRY_VOID(measure(static_cast<uint32_t>(round_down(block, kSectorBytes)), depth));
    // With what is left, once more: a burst that met somebody else's reads doesn't decide alone.
    const std::vector<DriveProbeCell> once = profile_.cells;
    for (const DriveProbeCell& cell : once)
      OFFSTAGE_TRY_VOID(measure(cell.block_bytes, cell.depth));
    const DriveProbeCell best = choose_cell(profile_.cells);
    profile_.block_bytes = best.block_bytes;
    profile_.depth = best.depth;
    profile_.bytes_per_s = best.bytes_per_s;
    profile_.took_ns = clock_.now_ns() - begin_ns_;
    return std::move(profile_);
  }

 private:
  // One burst, if bytes and time are left for it; the very first is always measured.
  Status measure(uint32_t block_bytes, uint32_t depth) {
    depth = std::min(depth, engine_.depth());
    if (uint64_t{block_bytes} * depth > shape_.memory.size()) return {};
    const uint64_t burst = std::max(2 * uint64_t{block_bytes} * depth, kBurstBytesMin);
    const uint64_t count = (burst + block_bytes - 1) / block_bytes;
    const bool spent = profile_.bytes_read + count * block_bytes > shape_.bytes_max ||
                       clock_.now_ns() - begin_ns_ >= shape_.time_max_ns;
    if (spent && !profile_.cells.empty()) return {};
    OFFSTAGE_TRY(const double speed, run_burst(block_bytes, depth, spent ? depth : count));
    for (DriveProbeCell& cell : profile_.cells)
      if (cell.block_bytes == block_bytes && cell.depth == depth) {
        cell.bytes_per_s = std::max(cell.bytes_per_s, speed);
        return {};
      }
    profile_.cells.push_back({block_bytes, depth, speed});
    return {};
  }

  Result<double> run_burst(uint32_t block_bytes, uint32_t depth, uint64_t count) {
    const uint64_t places = (shape_.range_bytes - block_bytes) / kSectorBytes + 1;
    const uint64_t first = round_up(shape_.range_begin, kSectorBytes);
    std::vector<uint64_t> idle;
    for (uint32_t i = 0; i < depth; ++i) idle.push_back(i);
    std::vector<ReadRequest> requests;
    const int64_t start_ns = clock_.now_ns();
    for (uint64_t submitted = 0, completed = 0; completed < count;) {
      requests.clear();
      for (; !idle.empty() && submitted < count; ++submitted, idle.pop_back())
        requests.push_back({.tag = idle.back(),
                            .file = shape_.file,
                            .offset = first + rng_.below(places) * kSectorBytes,
                            .buffer = shape_.memory.data() + idle.back() * block_bytes,
                            .bytes = block_bytes});
      CHECK_EQ(engine_.submit(requests), requests.size());
      const size_t n = engine_.reap(done_, shape_.time_max_ns);
      const int64_t waited_ns = clock_.now_ns() - start_ns;
      if (n == 0 && waited_ns > kPatience * shape_.time_max_ns)
        return make_error(ErrorCode::kDeadline,
                          "drive probe: {} reads of {} bytes did not arrive within {} ms",
                          count - completed, block_bytes, waited_ns / 1'000'000);
      for (size_t i = 0; i < n; ++i) {
        OFFSTAGE_TRY_VOID(check(done_[i], block_bytes));
        idle.push_back(done_[i].tag);
      }
      completed += n;
    }
    profile_.bytes_read += count * block_bytes;
    const auto took_ns = static_cast<double>(std::max<int64_t>(clock_.now_ns() - start_ns, 1));
    return static_cast<double>(count * block_bytes) * 1e9 / took_ns;
  }

  // The range lies within the file, so a short read is as wrong as an error.
  static Status check(const ReadCompletion& done, uint32_t block_bytes) {
    if (done.result == static_cast<int32_t>(block_bytes)) return {};
    return make_error(ErrorCode::kIo, "drive probe: a read of {} bytes answered {}{}", block_bytes,
                      done.result,
                      done.result < 0 ? std::string(" (") + std::strerror(-done.result) + ")" : "");
  }

  IoEngine& engine_;
  const Clock& clock_;
  const DriveProbeShape& shape_;
  Rng rng_;
  const int64_t begin_ns_;
  std::vector<ReadCompletion> done_;
  DriveProfile profile_;
};

}  // namespace

DriveProbeCell choose_cell(std::span<const DriveProbeCell> cells) {
  DriveProbeCell best;
  double fastest = 0;
  for (const DriveProbeCell& cell : cells) fastest = std::max(fastest, cell.bytes_per_s);
  for (const DriveProbeCell& cell : cells) {
    if (cell.bytes_per_s < kNearBest * fastest) continue;
    const bool is_better = best.depth == 0 || cell.depth < best.depth ||
                           (cell.depth == best.depth && cell.bytes_per_s > best.bytes_per_s);
    if (is_better) best = cell;
  }
  return best;
}

Result<DriveProfile> probe_drive(IoEngine& engine, const Clock& clock,
                                 const DriveProbeShape& shape) {
  const uint64_t read = round_down(shape.read_bytes, kSectorBytes);
  const uint64_t first = round_up(shape.range_begin, kSectorBytes);
  const uint64_t end = shape.range_begin + shape.range_bytes;
  if (read == 0 || first + read > end || read > shape.memory.size())
    return make_error(ErrorCode::kInvalidArgument,
                      "drive probe: reads of {} bytes don't fit {} bytes of the file or {} of "
                      "memory",
                      shape.read_bytes, shape.range_bytes, shape.memory.size());
  CHECK_LE(end, engine.file_bytes(shape.file));
  DriveProbeShape aligned = shape;
  aligned.range_begin = first;
  aligned.range_bytes = end - first;
  return Prober(engine, clock, aligned).run();
}

}  // namespace offstage
