// Stands between the scheduler and the drives and sees everything that passes: what the drives
// really did, which memory they may still write to. The checkers believe it and nobody else.
//
// Nothing below it or above it is altered, but for the poison: with it, memory that is about to be
// read into is filled first, so that a byte that wasn't read shows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cache/expert_layout.h"
#include "cache/slot_pool.h"
#include "io/engine.h"

namespace offstage::sim {

// Ends a seed from within the production code: virtual time stands still.
struct Hang : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How the drives answered the reads of one matrix since it was last handed out.
struct PieceAnswers {
  uint32_t errors = 0;       // -errno, but for "try again"
  uint32_t no_progress = 0;  // short by so much that nothing was gained
  uint32_t wrong = 0;        // bytes unlike the file's
  int last_errno = 0;
};

class Witness final : public IoEngine {
 public:
  Witness(std::unique_ptr<IoEngine> inner, std::vector<std::span<const std::byte>> files,
          const ManualClock& clock, bool poison);

  // From now on every read must be into a slot of this pool that is READING.
  void watch(const SlotPool& pool, const ExpertLayout& layout);

  std::string_view name() const override { return "witness"; }
  bool direct_io(uint32_t file) const override { return inner_->direct_io(file); }
  uint64_t file_bytes(uint32_t file) const override { return inner_->file_bytes(file); }
  uint32_t depth() const override { return inner_->depth(); }
  IoEngineCounters counters() const override { return inner_->counters(); }
  size_t submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override;
  void interrupt() override { inner_->interrupt(); }

  // The drives may still write into this slot.
  bool is_written_to(SlotIndex slot) const { return writers_[slot.value] != 0; }
  uint32_t outstanding() const { return outstanding_; }
  PieceAnswers& answers(LayerIndex layer, ExpertId expert, ExpertMatrix matrix);
  // How long reads took that no healthy drive takes so long for, all of them together.
  int64_t stalled_ns() const;
  // Nobody asked for unfinished reads for so long: as good as a drive that kept them waiting.
  void excuse(int64_t pause_ns) { stalled_ns_ += pause_ns; }
  // The first thing that must not be, if any.
  const std::string& violation() const { return violation_; }

  uint64_t n_errors() const { return n_errors_; }
  uint64_t n_wrong() const { return n_wrong_; }

 private:
  struct Flight {
    ReadRequest request;
    int64_t submitted_ns = 0;
    SlotIndex slot;
    size_t piece = 0;
    bool open = false;
  };
  struct Target {
    SlotIndex slot;
    ExpertMatrix matrix = ExpertMatrix::kGate;
  };
  std::optional<Target> target_of(const ReadRequest& request) const;
  void accept(const ReadRequest& request);
  void see(const ReadCompletion& completion);
  void accuse(std::string what);
  size_t piece_of(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const;

  std::unique_ptr<IoEngine> inner_;
  const std::vector<std::span<const std::byte>> files_;
  const ManualClock& clock_;
  const bool poison_;
  const SlotPool* pool_ = nullptr;
  const ExpertLayout* layout_ = nullptr;
  std::vector<Flight> flights_;    // by tag
  std::vector<uint32_t> writers_;  // by slot
  std::vector<PieceAnswers> answers_;
  uint32_t outstanding_ = 0;
  int64_t stalled_ns_ = 0;
  int64_t idle_since_ns_ = 0;  // reap() gave nothing since, at the same time
  uint32_t idle_reaps_ = 0;
  uint64_t n_errors_ = 0, n_wrong_ = 0;
  std::string violation_;
};

}  // namespace offstage::sim
