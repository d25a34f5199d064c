// The RAM tier: hands out experts that are resident and verified, and reads the others.
//
// One event is one forward's visit of one layer:
//
//   tier.begin(layer, calls, phase);           residents are ready at once, reads start
//   while (true) {
//     OFFSTAGE_TRY(auto pinned, tier.next());  hits first, then misses in order of arrival
//     if (pinned.experts().empty()) break;
//     compute(pinned.experts());               pins are held as long as `pinned` lives
//   }
//   tier.end();                                back to the layer's share of slots
//
// Decode keeps what it read and evicts the policy's victims at end(). Prefill calls nearly every
// expert of a layer, so it streams: misses in file order through the staging slots, kept only while
// the layer has unused slots (the most called first), so a prompt can't flush what decode lives on.
//
// A coming event's calls may be guessed: prefetch() reads them into slots that nobody needs now,
// behind every demand read. begin() of their layer takes over those that are called, finished or
// not, and gives up the others; nothing that is called or kept is ever evicted for a guess.
// A prompt's chunk calls nearly all experts, so there guesses needn't be timid: read_ahead() names
// what the next layer will call, and slots that come back go on reading it as soon as this layer
// has all it needs.
//
// No kernel sees bytes that weren't held against the index (promise 3): matrices are hashed by the
// compute workers as they arrive; a mismatch is read again once, then next() fails with file,
// tensor and offset. After an error, end() still brings the tier back to a sound state.
// Decode thread only.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/notices.h"
#include "base/result.h"
#include "base/trace.h"
#include "base/types.h"
#include "cache/eviction.h"
#include "cache/expert_layout.h"
#include "cache/slot_plan.h"
#include "cache/slot_pool.h"
#include "cpu/thread_pool.h"
#include "io/hash_index.h"
#include "io/read_scheduler.h"

namespace offstage {

enum class Phase : uint8_t { kDecode, kPrefill };

struct ReadyExpert {
  ExpertId expert;
  SlotIndex slot;
  const std::byte* gate = nullptr;
  const std::byte* up = nullptr;
  const std::byte* down = nullptr;
};

// An expert's gate, up and down.
using ExpertBytes = std::array<std::span<const std::byte>, kExpertMatrices>;
using ExpertSpace = std::array<std::span<std::byte>, kExpertMatrices>;

class RamTier;

// Experts that can't be evicted while this lives.
class PinnedExperts {
 public:
  PinnedExperts(PinnedExperts&& other) noexcept;
  PinnedExperts& operator=(PinnedExperts&& other) = delete;
  ~PinnedExperts();
  std::span<const ReadyExpert> experts() const { return experts_; }

 private:
  friend class RamTier;
  PinnedExperts(RamTier* tier, std::span<const ReadyExpert> experts)
      : tier_(tier), experts_(experts) {}
  RamTier* tier_;
  std::span<const ReadyExpert> experts_;
};

struct ExpertPlace {
  LayerIndex layer;
  ExpertId expert;
};

struct TierCounters {
  uint64_t ram_hits = 0;     // experts called and resident, once per event
  uint64_t drive_reads = 0;  // experts called and read
  uint64_t evictions = 0;
  uint64_t rereads = 0;  // matrices read again because of their hash
  // Guesses. The useful ones are drive_reads too: they were read for this call.
  uint64_t prefetches = 0;             // experts whose read was started before their layer called
  uint64_t prefetches_useful = 0;      // of them called by the next event of their layer
  uint64_t prefetches_late = 0;        // of the useful ones: not yet verified when called
  uint64_t prefetches_failed = 0;      // a read or its hash failed before anybody called it
  uint64_t prefetch_useful_bytes = 0;  // of experts, as called
  uint64_t prefetch_wasted_bytes = 0;  // read in vain
  uint64_t preloads = 0;               // experts read by preload()
  uint64_t preload_bytes = 0;
  uint64_t adopted = 0;  // experts that a faster tier gave up
};

// What guesses made from one distance were worth, matrix by matrix: time that the drive had worked
// on right ones when they were called, and time that it still worked on wrong ones although others
// were called. Those that it hadn't begun cost and bring nothing; it begins when all that was
// called before has arrived.
struct GuessPayback {
  uint64_t right = 0, wrong = 0;
  int64_t saved_ns = 0, lost_ns = 0;
};

struct RamTierParts {
  const ExpertLayout& layout;
  const SlotPlan& plan;
  SlotPool& pool;
  ReadScheduler& reads;
  HashIndex& index;
  ThreadPool& workers;
  EvictionPolicy& policy;
  CauseTimer& timer;
  Notices& notices;
  std::vector<std::string> paths;  // by Extent::file, for messages
  uint32_t reads_max = 64;         // matrices in flight
  Trace* trace = nullptr;          // told what is missing, what arrives and what is waited for
  // Hashes reads that arrived together, one each; empty: hash_piece() of their bytes, by the
  // workers. A forecast, which has no bytes, says here what it costs.
  std::function<void(std::span<const ReadDone>, std::span<PieceHash>)> hash = {};
  // True: a faster tier has the expert. It isn't guessed, and leaves RAM before those that nobody
  // else has: so the two tiers hold more experts together than either. Empty: there is none.
  std::function<bool(LayerIndex, ExpertId)> is_elsewhere = {};
};

class RamTier {
 public:
  explicit RamTier(RamTierParts parts);

  // `calls`: distinct experts. In decode in router order, so that the first is read first.
  void begin(const LayerEvent& event, Phase phase) { begin(event, event.calls, phase); }
  // `here`: of the event's calls those that this tier is to bring; the others are computed
  // elsewhere.
  void begin(const LayerEvent& event, std::span<const ExpertCall> here, Phase phase);
  // Within an event: more of its calls, which somebody else had promised to compute.
  void call(std::span<const ExpertCall> more);
  // The same of calls that were handed out already and then given to somebody else: they don't
  // count as hits twice.
  void call_again(std::span<const ExpertCall> calls);
  void begin(LayerIndex layer, std::span<const ExpertCall> calls, Phase phase) {
    begin(LayerEvent{layer, calls}, phase);
  }
  Result<PinnedExperts> next();
  void end();

  // Starts reading experts that `layer`'s next event will probably call, likeliest first, as far as
  // there are empty slots and reads to spare. Within an event of another layer or between events.
  // `ahead`: from how many layers before it they were guessed, 1 … kGuessDistances.
  static constexpr uint32_t kGuessDistances = 4;
  void prefetch(LayerIndex layer, std::span<const ExpertId> experts, uint32_t ahead = 1);
  const GuessPayback& payback(uint32_t ahead) const { return paybacks_[ahead - 1]; }

  // The same for a prompt's chunk and experts that will almost certainly be called, in the order of
  // the file: all of them, as slots come back, with the drive's whole depth. Until begin().
  void read_ahead(LayerIndex layer, std::span<const ExpertId> experts);

  // Between events: makes experts resident as far as their layers' shares have room, in the order
  // of the files at full depth; `progress` sees bytes. The first failure ends it, announced: the
  // rest is read when it is called.
  void preload(std::span<const ExpertPlace> experts,
               const std::function<void(uint64_t done, uint64_t total)>& progress);

  // The expert's bytes, which stay as they are until release(), to be copied elsewhere. Nothing if
  // it isn't resident, or if the layer can't spare another slot.
  std::optional<ExpertBytes> hold(LayerIndex layer, ExpertId expert);
  void release(LayerIndex layer, ExpertId expert);

  // A faster tier gives the expert up: where its bytes may be written, until adopted(). Nothing if
  // it is here, if its layer is in its event or can't spare another slot, if none of the layer's
  // residents is worth less to the policy (what the faster tier has is worth nothing), or if it
  // doesn't pay: asked with the resident that has to leave, or with none.
  using Pays = std::function<bool(std::optional<ExpertId> leaves)>;
  std::optional<ExpertSpace> adopt(LayerIndex layer, ExpertId expert, const Pays& pays);
  // They are written: held against the index, and the expert is resident. False: they are wrong
  // (announced), or it was read in the meantime. Without adopted() the slot stays out of use.
  bool adopted(LayerIndex layer, ExpertId expert);

  const TierCounters& counters() const { return counters_; }
  uint32_t resident_count(LayerIndex layer) const;
  // Has a slot: called in an event before, or guessed.
  bool is_resident(LayerIndex layer, ExpertId expert) const;
  // Its bytes are there, too.
  bool is_ready(LayerIndex layer, ExpertId expert) const;
  // No drive is needed to compute it.
  bool is_at_hand(LayerIndex layer, ExpertId expert) const {
    return is_resident(layer, expert) || is_elsewhere(layer, expert);
  }

 private:
  friend class PinnedExperts;
  struct Reading {  // beside a slot in READING
    uint8_t verified_mask = 0;
    uint8_t reread_mask = 0;  // matrices whose mismatch was already read again
    bool guessed = false;     // prefetched, and its layer has had no event since
    ReadLane lane = ReadLane::kDemand;
    // Of a guess by prefetch(), for its payback: the distance, whether its layer has called it, and
    // what the drive had done until then.
    enum class Truth : uint8_t { kUnknown, kRight, kWrong };
    uint8_t ahead = 0;
    Truth truth = Truth::kUnknown;
    uint8_t n_served = 0;
    int64_t served_ns = 0, known_ns = 0, idle_since_ns = 0;
  };
  struct Preload;
  struct Adoption {  // a slot in READING that nobody finds yet
    LayerIndex layer;
    ExpertId expert;
    SlotIndex slot;
  };

  std::vector<ExpertCall> take_calls(std::span<const ExpertCall> calls);
  void start_missing(std::span<const ExpertCall> newcomers);
  bool is_elsewhere(LayerIndex layer, ExpertId expert) const {
    return parts_.is_elsewhere && parts_.is_elsewhere(layer, expert);
  }
  void start_reads();
  bool has_reads_for_an_expert() const;
  bool take_slot_for(ExpertId expert);
  void queue_reads(SlotIndex slot, LayerIndex layer, ExpertId expert, Reading reading);
  void take_slots_ahead();
  void plan_what_stays(std::vector<ExpertCall>& newcomers);
  void hand_out();
  uint32_t share(LayerIndex layer) const;
  std::optional<SlotIndex> acquire_slot();
  ReadJob read_job(SlotIndex slot, ExpertMatrix matrix);
  size_t take_arrivals(bool wait);
  ReadRecord record_of(const ReadDone& done) const;
  void trace_miss(ExpertId expert);  // on the drives of its gate matrix
  void trace_arrival(const ReadDone& done);
  Status absorb(std::span<const ReadDone> done);
  void hash_all(std::span<const ReadDone> done);
  Status judge(const ReadDone& done, PieceHash hash);
  void release_quarantined();
  void unpin(std::span<const ReadyExpert> experts);
  bool is_of_event(SlotIndex slot) const;  // called, and not yet handed out
  void take_over_guess(SlotIndex slot);
  void learn_truth(SlotIndex slot, Reading::Truth truth);
  void account(Reading& reading, const ReadDone& done);
  void give_up_wrong_guesses();
  void give_up(SlotIndex slot);
  void drop_guess(SlotIndex slot, const Error& error);
  bool evict_guess(uint32_t slot_class);
  std::vector<Preload> take_slots_for(std::span<const ExpertPlace> experts);
  void evict(LayerIndex layer, SlotIndex slot);
  bool evict_one(LayerIndex layer);
  std::optional<ExpertId> least_worth(LayerIndex layer) const;
  bool can_hold_more(LayerIndex layer) const;
  bool is_as_read(SlotIndex slot);
  ReadyExpert ready_expert(SlotIndex slot) const;
  std::span<const std::byte> matrix_bytes(SlotIndex slot, ExpertMatrix matrix) const;
  size_t place(LayerIndex layer, ExpertId expert) const;

  RamTierParts parts_;
  TierCounters counters_;
  std::array<GuessPayback, kGuessDistances> paybacks_;
  static constexpr int32_t kAbsent = -1;
  std::vector<int32_t> slot_of_;     // [layer][expert] → slot that is READING, VERIFIED or IN USE
  std::vector<Reading> reading_;     // by slot
  std::vector<uint8_t> needed_;      // by expert: called in this event, not yet computed
  std::vector<uint8_t> keep_;        // by expert: stays when computed
  std::vector<uint32_t> residents_;  // by layer
  std::vector<uint32_t> held_;       // by layer: hold() without release()
  std::vector<uint32_t> adopting_;   // by layer: adopt() without adopted()
  std::vector<Adoption> adoptions_;

  // The event.
  bool in_event_ = false;
  int64_t begun_ns_ = 0;
  int64_t demand_done_ns_ = 0;  // when the last called matrix arrived
  LayerIndex layer_;
  Phase phase_ = Phase::kDecode;
  std::deque<ExpertId> missing_;     // called, not yet being read
  std::vector<ReadyExpert> ready_;   // verified, not yet handed out
  std::vector<ReadyExpert> handed_;  // backs the PinnedExperts that is out
  uint32_t experts_reading_ = 0;     // of this event
  uint32_t matrices_in_flight_ = 0;
  std::deque<ExpertId> ahead_;  // of ahead_layer_, not yet being read
  LayerIndex ahead_layer_;
  std::vector<ReadDone> done_;     // scratch of reap()
  std::vector<PieceHash> hashes_;  // scratch of absorb()
  std::vector<ReadJob> burst_;     // scratch of start_reads()
  Status preload_status_;
};

}  // namespace offstage
