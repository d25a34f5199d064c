// A machine as the planner sees it: what its drives, its memory and its CPU do, measured or stated.
//
// `offstage probe` measures it. JSON, one object, versioned (kProfileSchema); a reader takes its
// own version and says which it found. Times are ns, sizes bytes, speeds bytes per second:
//
//   {"schema": "offstage.profile/1",
//    "machine": "two-core EPYC, virtio disk", "date": "2026-11-22T14:03:11Z",
//    "ram": {"bytes": 25769803776, "read_bytes_per_s": 25e9, "cache_bytes": 33554432},
//    "cpu": {"threads": 2, "hash_bytes_per_s": 12e9, "dispatch_ns": 3000, "product_ns": 5000,
//            "attention_ns": 30000, "router_ns": 9000, "experts_ns": 22000, "event_ns": 4000,
//            "policy_ns": 20000, "miss_ns": 3000, "token_ns": 60000, "wake_ns": 40000, "asleep_ns":
//            30000, "slowdown_beside_reads": 1.15, "kernels": [{"type": "Q4_K",
//            "decode_bytes_per_s": 21e9,
//                         "prefill_params_per_s": 45e9}]},
//    "drives": [{"name": "vda", "bytes_per_s": 1.3e9, "lone_bytes_per_s": 0.9e9,
//                "request_ns": 20000, "latency_ns": 180000, "jitter_ns": 90000, "channels": 32,
//                "block_bytes": 1048576, "depth": 16, "slowest_second": 1.1e9,
//                "read_p99_ns": 21000000, "answers_together": false}]}
//
// `wake_ns`, `asleep_ns`, `policy_ns`, `miss_ns`, `product_ns`, `attention_ns`, `router_ns`,
// `experts_ns`, `cache_bytes`, `lone_bytes_per_s`, `request_ns` and `answers_together` came later:
// 0 where a profile has none. `slowest_second` and `read_p99_ns`
// say how steady a drive was; forecasts don't use them.
//
// `kernels` without a type that a model has: the slowest one's speed stands in, announced by
// kernel_of(). Who wants another machine edits the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "base/tensor_type.h"
#include "io/sim.h"

namespace offstage {

inline constexpr std::string_view kProfileSchema = "offstage.profile/1";
// Logits that `token_ns` is the choice among.
inline constexpr uint32_t kLogitsChosenAmong = 128 << 10;

struct KernelSpeed {
  TensorType type = TensorType::kF32;
  double decode_bytes_per_s = 0;    // weights of one row's products, all threads, nothing else on
  double prefill_params_per_s = 0;  // parameters × rows of a wide chunk
};

struct DriveSpeed {
  std::string name;
  double bytes_per_s = 0;       // random reads of block_bytes at depth, sustained
  double lone_bytes_per_s = 0;  // of a read that is alone, beyond its latency; 0: not known
  int64_t request_ns = 0;       // of the drive's time for each read, beside its bytes
  int64_t latency_ns = 0;       // of a read that finds the drive idle, without its transfer
  int64_t jitter_ns = 0;        // mean of what is added to it
  uint32_t channels = 32;       // reads that it works on at once
  uint32_t block_bytes = 1u << 20;
  uint32_t depth = 32;
  double slowest_second = 0;      // bytes per second of the worst second seen; 0: not known
  int64_t read_p99_ns = 0;        // of a read at that depth; 0: not known
  bool answers_together = false;  // says that reads are over when it has none left (io/sim.h)

  SimDrive simulated() const;
};

struct HardwareProfile {
  std::string machine, date;
  uint64_t ram_bytes = 0;
  double ram_read_bytes_per_s = 0;
  uint64_t cache_bytes = 0;  // of the last level; 0: not known
  uint32_t threads = 0;
  double hash_bytes_per_s = 0;  // of each thread
  int64_t dispatch_ns = 0;      // to hand work out to the workers and have it back
  int64_t product_ns = 0;       // of a product with one row, beside its bytes and its hand-out
  // A layer's, beside weights and KV that come from RAM (plan/layer_trial.h). 0: not known;
  // hand-outs and products are counted in their place, as they are where a token's weights fit the
  // cache.
  int64_t attention_ns = 0, router_ns = 0, experts_ns = 0;
  int64_t event_ns = 0;   // a layer's bookkeeping in the cache where all experts stay
  int64_t policy_ns = 0;  // beyond it where some go, of kTriedExperts (plan/tier_trial.h)
  int64_t miss_ns = 0;    // beyond both for every expert that is read
  int64_t token_ns = 0;   // the choice of a token among kLogitsChosenAmong
  int64_t asleep_ns = 0;  // of the first hand-out to workers who sleep, beyond the others'
  int64_t wake_ns = 0;    // from a read's end until the thread that slept is awake
  double slowdown_beside_reads = 1;  // of compute while drives deliver, ≥ 1
  std::vector<KernelSpeed> kernels;
  std::vector<DriveSpeed> drives;
  uint64_t pace_bytes_per_s = 0;  // that every drive is held to (--pace); 0: its own. Not kept

  // What the drive gives, held to the pace.
  double drive_bytes_per_s(size_t drive) const;
  // Of the type, or the slowest of those measured, with a notice. Never above what RAM delivers.
  KernelSpeed kernel_of(TensorType type, Notices& notices) const;
};

// `name` begins every error. kCorrupt (not JSON, a value of another kind or out of range, with its
// key), kNotFound (a key that must be there), kUnsupported (another version).
Result<HardwareProfile> parse_profile(std::string_view text, const std::string& name);
std::string profile_text(const HardwareProfile& profile);

// Where `offstage probe` keeps this machine's, and forecasts look for it; none without a home.
std::optional<std::string> kept_profile_path();
// Under a temporary name, then renamed; makes the folder. Errors: kPermission, kIo.
Status keep_profile(const std::string& path, const HardwareProfile& profile);

}  // namespace offstage
