// The engine that fails by plan: a decorator over any other engine.
//
// In: an engine and a plan (from text, see parse_fault_plan). Out: the same reads, some of them
// refused, cut short, late, never answered or altered, the same ones for the same seed and the same
// order of requests. It also paces: real reads, answered no faster than drives of a stated speed
// would. For tests, the hidden flag --io-fault and --pace.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "io/engine.h"

namespace offstage {

enum class FaultKind : uint8_t {
  kNone,       // only a delay
  kErrno,      // refused: the drive isn't asked
  kShort,      // answered short; the rest of the buffer is overwritten
  kNever,      // never answered
  kFlip,       // one bit differs
  kZeros,      // all bytes are zero
  kStale,      // the buffer keeps what it held
  kElsewhere,  // the bytes of another offset of the file
  kTorn,       // the last sector keeps what it held
};
inline constexpr size_t kFaultKinds = 9;

// Applies to requests that touch the file and range; `nth`, `every`, `from` and `until` count
// those, from 1. All conditions given must hold. Of several rules the first that fires acts.
struct FaultRule {
  std::optional<uint32_t> file;
  uint64_t range_begin = 0;
  uint64_t range_end = std::numeric_limits<uint64_t>::max();
  uint64_t nth = 0;    // 0: any
  uint64_t every = 0;  // 0: any
  uint64_t from = 1;
  uint64_t until = std::numeric_limits<uint64_t>::max();
  double probability = 1;
  uint64_t times = std::numeric_limits<uint64_t>::max();  // fires at most
  bool once = false;  // never twice running at the same place: a retry of what it hit goes through

  FaultKind kind = FaultKind::kNone;
  int err = 0;              // kErrno
  int64_t short_bytes = 0;  // kShort: so many bytes arrive; negative: so many are missing
  int64_t delay_ns = 0;     // before the drive is asked; with every kind
};

struct FaultPlan {
  uint64_t seed = 1;
  uint64_t pace_bytes_per_s = 0;  // of every drive; 0: its own speed
  std::vector<FaultRule> rules;
};

// "seed=7; every=7,errno=EIO; file=1,range=4096+8192,times=1,short=511; p=0.01,delay=10ms":
// rules apart by ';', their parts by ','. Conditions: file=N range=OFFSET+BYTES nth=N every=N
// from=N until=N p=X times=N once. Actions: errno=NAME|N short=N (negative: all but N) never
// corrupt=flip|zeros|stale|elsewhere|torn, delay=TIME (us, ms, s) alone or beside them. For the
// whole plan: seed=N, pace=BYTES (per second, for example 500M). Errors name the part.
Result<FaultPlan> parse_fault_plan(std::string_view text);
// One line for log and report; parse_fault_plan() reads it back.
std::string describe_fault_plan(const FaultPlan& plan);

struct FaultCounters {
  uint64_t requests = 0;
  uint64_t delayed = 0;
  uint64_t injected[kFaultKinds] = {};  // by FaultKind
};

class FaultEngine final : public IoEngine {
 public:
  // `drives`: by file, the drive it lies on (io/drives.h), for the pace; without it all are on one.
  FaultEngine(std::unique_ptr<IoEngine> inner, FaultPlan plan, const Clock& clock,
              std::vector<uint32_t> drives = {});
  ~FaultEngine() override;

  std::string_view name() const override;  // "fault(uring)"; "paced(uring)" if it only paces
  bool direct_io(uint32_t file) const override;
  uint64_t file_bytes(uint32_t file) const override;
  uint32_t depth() const override;
  IoEngineCounters counters() const override;
  size_t submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override;
  void interrupt() override;

  const FaultPlan& plan() const;                // with the seed, for messages
  const FaultCounters& fault_counters() const;  // owner thread

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace offstage
