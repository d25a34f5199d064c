#include "plan/drive_trial.h"

#include <algorithm>

#include "base/check.h"
#include "base/histogram.h"
#include "base/rng.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr int64_t kPatienceNs = 60'000'000'000;
constexpr int64_t kSecondNs = 1'000'000'000;

// A time over a length in bytes.
struct Line {
  double begin_ns = 0, byte_ns = 0;  // ≥ 0
};

Line line_through(uint32_t bytes, double ns, uint32_t more_bytes, double more_ns) {
  if (more_bytes <= bytes) return {ns, 0};
  const double byte_ns = std::max((more_ns - ns) / (more_bytes - bytes), 0.0);
  return {std::max(ns - bytes * byte_ns, 0.0), byte_ns};
}

class Trial {
 public:
  Trial(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape)
      : engine_(engine),
        clock_(clock),
        shape_(shape),
        rng_(shape.seed),
        done_(shape.depth),
        latencies_(1 << 16),
        wakes_(1 << 16),
        begin_ns_(clock.now_ns()) {
    for (uint32_t i = 0; i < shape.depth; ++i) idle_.push_back(i);
  }

  Result<DriveTrial> run() {
    while (!is_over() || idle_.size() < shape_.depth) {
      if (!is_over()) submit();
      OFFSTAGE_TRY_VOID(reap());
    }
    return result();
  }

 private:
  bool is_over() const {
    const bool spent = reads_ * shape_.block_bytes >= shape_.bytes_max;
    return reads_ != 0 && (spent || clock_.now_ns() - begin_ns_ >= shape_.time_ns);
  }

  void submit() {
    const uint64_t places = (shape_.range_bytes - shape_.block_bytes) / kSectorBytes + 1;
    std::vector<ReadRequest> requests;
    for (const uint32_t i : idle_)
      requests.push_back({.tag = i,
                          .offset = shape_.range_begin + rng_.below(places) * kSectorBytes,
                          .buffer = shape_.memory.data() + uint64_t{i} * shape_.block_bytes,
                          .bytes = shape_.block_bytes});
    idle_.clear();
    CHECK_EQ(engine_.submit(requests), requests.size());
  }

  Status reap() {
    const int64_t asleep_ns = clock_.now_ns();
    const size_t n = engine_.reap(done_, kPatienceNs);
    if (n == 0)
      return make_error(ErrorCode::kDeadline, "drive trial: nothing came for {} s",
                        kPatienceNs / kSecondNs);
    if (done_[0].completed_ns >= asleep_ns) wakes_.add(clock_.now_ns() - done_[0].completed_ns);
    for (const ReadCompletion& done : std::span(done_).first(n)) {
      if (done.result != static_cast<int32_t>(shape_.block_bytes))
        return make_error(ErrorCode::kIo, "drive trial: a read of {} bytes answered {}",
                          shape_.block_bytes, done.result);
      const int64_t took_ns = done.completed_ns - done.issued_ns;
      latencies_.add(took_ns);
      least_ns_ = reads_ == 0 ? took_ns : std::min(least_ns_, took_ns);
      ++reads_;
      const auto second = static_cast<size_t>((clock_.now_ns() - begin_ns_) / kSecondNs);
      if (second >= by_second_.size()) by_second_.resize(second + 1, 0);
      by_second_[second] += shape_.block_bytes;
      idle_.push_back(static_cast<uint32_t>(done.tag));
    }
    return {};
  }

  DriveTrial result() const {
    const auto took_ns = static_cast<double>(std::max<int64_t>(clock_.now_ns() - begin_ns_, 1));
    DriveTrial trial;
    trial.reads = reads_;
    trial.bytes_per_s =
        static_cast<double>(reads_) * static_cast<double>(shape_.block_bytes) * 1e9 / took_ns;
    if (by_second_.size() > 1)  // the last isn't whole
      trial.slowest_second =
          static_cast<double>(*std::min_element(by_second_.begin(), by_second_.end() - 1));
    trial.least_ns = least_ns_;
    trial.mean_ns = latencies_.sum() / static_cast<int64_t>(reads_);
    trial.p50_ns = latencies_.percentile(50);
    trial.p99_ns = latencies_.percentile(99);
    trial.max_ns = latencies_.max();
    trial.wake_ns = wakes_.percentile(50);
    return trial;
  }

  IoEngine& engine_;
  const Clock& clock_;
  const DriveTrialShape& shape_;
  Rng rng_;
  std::vector<ReadCompletion> done_;
  std::vector<uint32_t> idle_;
  Samples latencies_, wakes_;
  std::vector<uint64_t> by_second_;
  uint64_t reads_ = 0;
  int64_t least_ns_ = 0;
  const int64_t begin_ns_;
};

}  // namespace

Result<DriveTrial> try_drive(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape) {
  DriveTrialShape aligned = shape;
  aligned.range_begin = round_up(shape.range_begin, kSectorBytes);
  const uint64_t lost = aligned.range_begin - shape.range_begin;
  const uint64_t bytes = shape.range_bytes - std::min(shape.range_bytes, lost);
  aligned.range_bytes = round_down(bytes, kSectorBytes);
  if (shape.block_bytes == 0 || shape.block_bytes % kSectorBytes != 0 || shape.depth == 0 ||
      aligned.range_bytes < shape.block_bytes ||
      shape.memory.size() < uint64_t{shape.block_bytes} * shape.depth)
    return make_error(ErrorCode::kInvalidArgument,
                      "drive trial: {} reads of {} bytes don't fit {} bytes of the file or {} of "
                      "memory",
                      shape.depth, shape.block_bytes, shape.range_bytes, shape.memory.size());
  return Trial(engine, clock, aligned).run();
}

void fit_drive(const DriveTrials& trials, DriveSpeed& drive) {
  drive.bytes_per_s = trials.loaded.bytes_per_s;
  drive.slowest_second = trials.loaded.slowest_second;
  drive.read_p99_ns = trials.loaded.p99_ns;
  const Line busy =
      line_through(kShortReadBytes, kShortReadBytes * 1e9 / trials.crowd.bytes_per_s,
                   kLongerReadBytes, kLongerReadBytes * 1e9 / trials.longer_crowd.bytes_per_s);
  drive.request_ns = static_cast<int64_t>(busy.begin_ns);
  const auto alone_ns = [](const DriveTrial& trial) { return static_cast<double>(trial.mean_ns); };
  const Line alone = line_through(kShortReadBytes, alone_ns(trials.idle), drive.block_bytes,
                                  alone_ns(trials.lone));
  drive.lone_bytes_per_s = alone.byte_ns > 0 ? 1e9 / alone.byte_ns : 0;
  drive.jitter_ns = std::max<int64_t>(trials.idle.mean_ns - trials.idle.least_ns, 0);
  drive.latency_ns = std::max<int64_t>(
      static_cast<int64_t>(alone.begin_ns) - drive.jitter_ns - drive.request_ns, 0);
}

}  // namespace offstage
