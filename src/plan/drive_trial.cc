#include "plan/drive_trial.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/histogram.h"
#include "base/rng.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr int64_t kPatienceNs = 60'000'000'000;
constexpr int64_t kSecondNs = 1'000'000'000;
constexpr size_t kVolleys = 5;
// From where on the first answer comes with the last. A drive that shares its time among all it has
// comes to 3/4.
constexpr double kTogether = 0.9;

// A time over a length in bytes.
struct Line {
  double begin_ns = 0, byte_ns = 0;  // ≥ 0
};

Line line_through(uint32_t bytes, double ns, uint32_t more_bytes, double more_ns) {
  if (more_bytes <= bytes) return {ns, 0};
  const double byte_ns = std::max((more_ns - ns) / (more_bytes - bytes), 0.0);
  return {std::max(ns - bytes * byte_ns, 0.0), byte_ns};
}

// Into the memory's i-th block.
ReadRequest request_at_random(const DriveTrialShape& shape, Rng& rng, uint32_t tag, uint64_t i) {
  const uint64_t places = (shape.range_bytes - shape.block_bytes) / kSectorBytes + 1;
  return {.tag = tag,
          .offset = shape.range_begin + rng.below(places) * kSectorBytes,
          .buffer = shape.memory.data() + i * shape.block_bytes,
          .bytes = shape.block_bytes};
}

Status check_answer(const DriveTrialShape& shape, const ReadCompletion& done) {
  if (done.result == static_cast<int32_t>(shape.block_bytes)) return {};
  return make_error(ErrorCode::kIo, "drive trial: a read of {} bytes answered {}",
                    shape.block_bytes, done.result);
}

tl::unexpected<Error> nothing_came() {
  return make_error(ErrorCode::kDeadline, "drive trial: nothing came for {} s",
                    kPatienceNs / kSecondNs);
}

class Trial {
 public:
  Trial(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape)
      : engine_(engine),
        clock_(clock),
        shape_(shape),
        rng_(shape.seed),
        done_(shape.depth),
        submitted_ns_(shape.depth),
        turns_(shape.depth),
        turns_max_(shape.memory.size() / (uint64_t{shape.depth} * shape.block_bytes)),
        latencies_(1 << 16),
        begin_ns_(clock.now_ns()) {
    for (uint32_t i = 0; i < shape.depth; ++i) idle_.push_back(i);
  }

  Result<DriveTrial> run() {
    while (!is_over() || idle_.size() < shape_.depth) {
      const bool all_idle = idle_.size() == shape_.depth;
      if (!is_over() && (shape_.pause_ns == 0 || all_idle)) submit();
      OFFSTAGE_TRY_VOID(reap());
      if (shape_.pause_ns != 0 && idle_.size() == shape_.depth) end_burst();
    }
    return result();
  }

 private:
  bool is_over() const {
    const bool spent = reads_ * shape_.block_bytes >= shape_.bytes_max;
    return reads_ != 0 && (spent || clock_.now_ns() - begin_ns_ >= shape_.time_ns);
  }

  void submit() {
    std::vector<ReadRequest> requests;
    const int64_t now_ns = clock_.now_ns();
    for (const uint32_t i : idle_) {
      turn_ = turns_[i]++ % turns_max_;
      requests.push_back(request_at_random(shape_, rng_, i, turn_ * shape_.depth + i));
      submitted_ns_[i] = now_ns;
    }
    idle_.clear();
    CHECK_EQ(engine_.submit(requests), requests.size());
  }

  Status reap() {
    const int64_t asleep_ns = clock_.now_ns();
    const size_t n = engine_.reap(done_, kPatienceNs);
    if (n == 0) return nothing_came();
    if (done_[0].completed_ns >= asleep_ns) {
      wakes_ns_ += clock_.now_ns() - done_[0].completed_ns;
      ++n_wakes_;
    }
    for (const ReadCompletion& done : std::span(done_).first(n)) {
      OFFSTAGE_TRY_VOID(check_answer(shape_, done));
      const int64_t took_ns = done.completed_ns - submitted_ns_[done.tag];
      latencies_.add(took_ns);
      least_ns_ = reads_ == 0 ? took_ns : std::min(least_ns_, took_ns);
      last_ns_ = std::max(last_ns_, done.completed_ns);
      ++reads_;
      const auto second = static_cast<size_t>((clock_.now_ns() - begin_ns_) / kSecondNs);
      if (second >= by_second_.size()) by_second_.resize(second + 1, 0);
      by_second_[second] += shape_.block_bytes;
      idle_.push_back(static_cast<uint32_t>(done.tag));
    }
    return {};
  }

  void end_burst() {
    bursts_ns_ += last_ns_ - submitted_ns_[0];
    ++n_bursts_;
    const uint64_t bytes = uint64_t{shape_.depth} * shape_.block_bytes;
    if (shape_.after_burst) shape_.after_burst(shape_.memory.subspan(turn_ * bytes, bytes));
    engine_.reap(done_, shape_.pause_ns);  // nothing is under way: a pause
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
    if (n_bursts_ != 0) trial.burst_ns = bursts_ns_ / n_bursts_;
    trial.least_ns = least_ns_;
    trial.mean_ns = latencies_.sum() / static_cast<int64_t>(reads_);
    trial.p50_ns = latencies_.percentile(50);
    trial.p99_ns = latencies_.percentile(99);
    trial.max_ns = latencies_.max();
    if (n_wakes_ != 0) trial.wake_ns = wakes_ns_ / n_wakes_;
    return trial;
  }

  IoEngine& engine_;
  const Clock& clock_;
  const DriveTrialShape& shape_;
  Rng rng_;
  std::vector<ReadCompletion> done_;
  std::vector<int64_t> submitted_ns_;
  // Every read goes elsewhere, as slots do: into memory that a processor's cache still has, a drive
  // of a virtual machine reads faster.
  std::vector<uint64_t> turns_;
  const uint64_t turns_max_;
  uint64_t turn_ = 0;  // of the read that was sent last
  std::vector<uint32_t> idle_;
  Samples latencies_;
  int64_t wakes_ns_ = 0, n_wakes_ = 0;
  std::vector<uint64_t> by_second_;
  uint64_t reads_ = 0;
  int64_t least_ns_ = 0, last_ns_ = 0;
  int64_t bursts_ns_ = 0, n_bursts_ = 0;
  const int64_t begin_ns_;
};

// The range begins and ends at sectors' bounds, and everything fits.
Result<DriveTrialShape> aligned_shape(const DriveTrialShape& shape) {
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
  return aligned;
}

// As many reads as `shape` is deep, in two halves.
class Volley {
 public:
  Volley(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape, Rng& rng)
      : engine_(engine), clock_(clock), shape_(shape), rng_(rng), done_(shape.depth) {}

  // The time of the first answer, of that of the last.
  Result<double> run(int64_t second_half_ns) {
    const int64_t begin_ns = clock_.now_ns();
    const uint32_t half = shape_.depth / 2;
    submit(0, half);
    while (n_done_ < half && clock_.now_ns() - begin_ns < second_half_ns)
      OFFSTAGE_TRY_VOID(reap(begin_ns + second_half_ns - clock_.now_ns()));
    submit(half, shape_.depth - half);
    while (n_done_ < shape_.depth) {
      const size_t before = n_done_;
      OFFSTAGE_TRY_VOID(reap(kPatienceNs));
      if (n_done_ == before) return nothing_came();
    }
    return static_cast<double>(first_ns_ - begin_ns) / static_cast<double>(last_ns_ - begin_ns);
  }

 private:
  void submit(uint32_t first, uint32_t n) {
    std::vector<ReadRequest> requests;
    for (uint32_t i = first; i < first + n; ++i)
      requests.push_back(request_at_random(shape_, rng_, i, i));
    CHECK_EQ(engine_.submit(requests), requests.size());
  }

  Status reap(int64_t timeout_ns) {
    const size_t n = engine_.reap(done_, timeout_ns);
    for (const ReadCompletion& done : std::span(done_).first(n)) {
      OFFSTAGE_TRY_VOID(check_answer(shape_, done));
      first_ns_ = n_done_ == 0 ? done.completed_ns : std::min(first_ns_, done.completed_ns);
      last_ns_ = std::max(last_ns_, done.completed_ns);
      ++n_done_;
    }
    return {};
  }

  IoEngine& engine_;
  const Clock& clock_;
  const DriveTrialShape& shape_;
  Rng& rng_;
  std::vector<ReadCompletion> done_;
  size_t n_done_ = 0;
  int64_t first_ns_ = 0, last_ns_ = 0;
};

}  // namespace

Result<DriveTrial> try_drive(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape) {
  OFFSTAGE_TRY(const DriveTrialShape aligned, aligned_shape(shape));
  return Trial(engine, clock, aligned).run();
}

Result<bool> answers_together(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape,
                              double bytes_per_s) {
  OFFSTAGE_TRY(const DriveTrialShape aligned, aligned_shape(shape));
  Rng rng(shape.seed);
  const double half_ns =
      shape.depth / 2 * static_cast<double>(shape.block_bytes) * 1e9 / bytes_per_s;
  std::array<double, kVolleys> firsts = {};
  for (double& first : firsts) {
    OFFSTAGE_TRY(first, Volley(engine, clock, aligned, rng).run(static_cast<int64_t>(half_ns / 2)));
  }
  std::nth_element(firsts.begin(), firsts.begin() + kVolleys / 2, firsts.end());
  return firsts[kVolleys / 2] > kTogether;
}

void fit_drive(const DriveTrials& trials, DriveSpeed& drive) {
  drive.bytes_per_s = trials.loaded.bytes_per_s;
  drive.slowest_second = trials.loaded.slowest_second;
  drive.read_p99_ns = trials.loaded.p99_ns;
  drive.answers_together = trials.answers_together;
  // A burst takes its latency once, then every read's own time.
  const auto idle_ns = static_cast<double>(trials.idle.burst_ns);
  const double each_ns = (static_cast<double>(trials.burst.burst_ns) - idle_ns) / (kBurst - 1);
  const double longer_ns =
      (static_cast<double>(trials.longer_burst.burst_ns) - idle_ns + each_ns) / kBurst;
  const Line busy = line_through(kShortReadBytes, each_ns, kLongerReadBytes, longer_ns);
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
