// A hardware profile as `offstage probe` writes it, made up.
#pragma once

namespace offstage::testing {

inline constexpr const char* kMachine = R"({
  "schema": "offstage.profile/1", "machine": "two cores", "date": "2026-11-22T00:00:00Z",
  "ram": {"bytes": 25769803776, "read_bytes_per_s": 25e9},
  "cpu": {"threads": 2, "hash_bytes_per_s": 6e9, "dispatch_ns": 3000, "event_ns": 9000,
          "token_ns": 60000, "slowdown_beside_reads": 1.15,
          "kernels": [{"type": "Q4_K", "decode_bytes_per_s": 21e9, "prefill_params_per_s": 45e9}]},
  "drives": [{"name": "vda", "bytes_per_s": 1.3e9, "latency_ns": 180000, "jitter_ns": 90000,
              "channels": 32, "block_bytes": 1048576, "depth": 16, "slowest_second": 0,
              "read_p99_ns": 0}]})";

}  // namespace offstage::testing
