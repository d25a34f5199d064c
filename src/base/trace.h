// What happens inside a token: which layer waited, for which expert, for which read of which drive.
//
// The tier tells the trace what is missing, what arrived and what it slept for; the forward pass
// tells it where a layer begins. Per token this is folded into a fixed-size summary (TokenTrace),
// always on: a few stores per read and per layer. Deeper levels keep every layer, or every read as
// well, in rings of fixed size whose memory is taken at start. Owned by the decode thread; not
// thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/cause_timer.h"
#include "base/ring.h"

namespace offstage {

enum class RecordLevel : uint8_t { kToken, kLayer, kRead };

inline constexpr uint32_t kNoLayer = UINT32_MAX;
// Drives that are told apart; further ones count as the last.
inline constexpr uint32_t kDrivesMax = 8;

// One matrix of one expert, read from a drive.
struct ReadRecord {
  uint32_t token = 0;  // index within the generation; the prompt's have kPromptToken
  uint32_t layer = 0;  // block of the model, as in the tensor's name
  uint32_t expert = 0;
  uint8_t matrix = 0;    // cache/expert_layout.h: ExpertMatrix
  uint8_t drive = 0;     // index into the drives' names
  bool guessed = false;  // still nobody had called the expert when it arrived
  uint32_t retries = 0;  // blocks asked for again
  uint64_t bytes = 0;
  int64_t started_ns = 0;      // asked for
  int64_t issued_ns = 0;       // its first block went to the kernel
  int64_t last_issued_ns = 0;  // the block that was answered last went to the kernel
  int64_t completed_ns = 0;    // its last block was answered

  // Of the block that came last, which is what a waiter waits for: for room in the drive's queue,
  // then with kernel and drive.
  int64_t queued_ns() const { return last_issued_ns - started_ns; }
  int64_t service_ns() const { return completed_ns - last_issued_ns; }
};
inline constexpr uint32_t kPromptToken = UINT32_MAX;

// One layer of one token.
struct LayerRecord {
  uint32_t token = 0;
  uint32_t layer = kNoLayer;
  int64_t began_ns = 0;
  int64_t wall_ns = 0;
  int64_t wait_ns = 0;                           // asleep until a read came
  uint32_t waits = 0;                            // times it slept
  uint32_t depth_max = 0;                        // most reads outstanding when it fell asleep
  std::array<uint16_t, kDrivesMax> misses = {};  // experts called and not resident, by drive
  uint16_t striped_misses = 0;                   // such experts that lie on several drives
  uint8_t striped_over = 0;                      // those drives, a bit each
  static_assert(kDrivesMax <= 8);
  int64_t longest_ns = 0;  // its longest sleep, and the read that ended it
  ReadRecord longest;

  uint32_t all_misses() const {
    uint32_t sum = striped_misses;
    for (const uint16_t n : misses) sum += n;
    return sum;
  }
};

// A layer's split of time by cause, at level kLayer and deeper.
struct LayerSample {
  LayerRecord record;
  CauseTimes causes;
};

// Sleeps, split by what the read that ended each was doing meanwhile.
struct DriveWait {
  int64_t queued_ns = 0;   // it stood before the drive
  int64_t service_ns = 0;  // it was with kernel and drive
  int64_t woken_ns = 0;    // it had come, but the thread wasn't awake yet
};

// A token in a few numbers.
struct TokenTrace {
  LayerRecord waiting;  // the layer that waited longest; kNoLayer: none waited
  uint32_t slowest_layer = kNoLayer;
  int64_t slowest_layer_ns = 0;
  uint32_t depth_max = 0;  // most reads outstanding when something arrived or was waited for
  uint32_t reads = 0;      // that came in
  uint32_t read_retries = 0;
  int64_t service_ns = 0;                             // the reads' sum
  std::array<uint64_t, kDrivesMax> drive_bytes = {};  // of these reads
  std::array<DriveWait, kDrivesMax> waits = {};       // by the drive of the read that ended each
};

// Length of a union of intervals that come in nearly in order: the time in which a drive had
// something to do. Exact unless more than kOpen gaps are still open to later arrivals.
class BusyTime {
 public:
  void add(int64_t begin_ns, int64_t end_ns);
  int64_t total_ns() const;

 private:
  static constexpr size_t kOpen = 32;
  struct Interval {
    int64_t begin_ns, end_ns;
  };
  std::array<Interval, kOpen> open_ = {};  // disjoint, ascending
  size_t n_open_ = 0;
  int64_t closed_ns_ = 0;
};

struct TraceOptions {
  RecordLevel level = RecordLevel::kToken;
  size_t layers_max = 1 << 14;  // of the ring, where the level has one
  size_t reads_max = 1 << 16;
  uint32_t first_moe_layer = 0;             // tiers count the layers with experts
  std::vector<uint8_t> drive_of_file = {};  // by file of the model; none: one drive
};

class Trace {
 public:
  Trace(const TraceOptions& options, CauseTimer& timer);

  // Forward: `layer` begins, which ends the one before; at `now_ns`, a reading of the timer's
  // clock.
  void begin_layer(uint32_t layer, int64_t now_ns);
  void end_layers(int64_t now_ns);

  // Tier. Layers count as tiers do. `files`: where the expert lies; several if it is striped.
  void missed(std::span<const uint32_t> files);
  // Slept from `begin_ns` to `end_ns`, until `ended_by` came (null: until a time-out), with `depth`
  // reads outstanding.
  void waited(int64_t begin_ns, int64_t end_ns, uint32_t depth, const ReadRecord* ended_by);
  void arrived(const ReadRecord& read, uint32_t depth);
  // Bytes of an arrived read, by drive (a striped one has several): with the drive from `issued_ns`
  // to `completed_ns`.
  void delivered(uint8_t drive, uint64_t bytes, int64_t issued_ns, int64_t completed_ns);
  // block_of: as in the model; drive_of: index into the drives' names.
  uint32_t block_of(uint32_t moe_layer) const { return moe_layer + options_.first_moe_layer; }
  static uint8_t drive_index(uint32_t drive) {
    return static_cast<uint8_t>(drive < kDrivesMax ? drive : kDrivesMax - 1);
  }
  uint8_t drive_of(uint32_t file) const {
    return file < options_.drive_of_file.size() ? options_.drive_of_file[file] : 0;
  }

  // What was collected since the last take(); what comes next belongs to token `next`.
  TokenTrace take(uint32_t next);
  void clear_rings();

  RecordLevel level() const { return options_.level; }
  const Ring<LayerSample>& layers() const { return layers_; }
  const Ring<ReadRecord>& reads() const { return reads_; }
  // Since the start, by drive: bytes that came in for experts, and the time it took to read them.
  uint64_t drive_bytes(uint32_t drive) const { return drive_bytes_[drive]; }
  int64_t drive_busy_ns(uint32_t drive) const { return busy_[drive].total_ns(); }

 private:
  void end_layer(int64_t now_ns);

  const TraceOptions options_;
  CauseTimer& timer_;
  Ring<LayerSample> layers_;
  Ring<ReadRecord> reads_;
  uint32_t token_ = kPromptToken;
  LayerRecord layer_;       // the one that runs, or that hasn't begun
  CauseTimes layer_begin_;  // the timer's at its begin
  TokenTrace token_trace_;
  std::array<uint64_t, kDrivesMax> drive_bytes_ = {};
  std::array<BusyTime, kDrivesMax> busy_;
};

}  // namespace offstage
