// What this machine's processors and memory do with weights, measured in a few seconds.
//
// In: the kernels and workers that a run would use, and memory of the caller's: so much that no
// cache holds it, or a speed is that of the cache (announced). Out: the "ram" and "cpu" parts of a
// hardware profile. The bytes multiplied are no model's, which no kernel here takes longer or
// shorter for. Everything is measured in turns and the median counts.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "base/clock.h"
#include "base/notices.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "plan/hardware_profile.h"

namespace offstage {

struct CpuTrialParts {
  const Kernels& kernels;
  ThreadPool& workers;
  const Clock& clock;
  std::span<std::byte> memory;     // 64-byte-aligned, at least kCpuTrialBytesMin; written
  int64_t format_ns = 60'000'000;  // for each format, one row and many
  std::function<void(size_t done, size_t total)> progress = {};
};
inline constexpr size_t kCpuTrialBytesMin = 1u << 20;

// Fills threads, kernels, RAM, hash, dispatch, event and token of the profile.
void try_cpu(const CpuTrialParts& parts, HardwareProfile& profile, Notices& notices);

// Bytes per second of one row's products with weights of that format, all workers.
double decode_bytes_per_s(const CpuTrialParts& parts, TensorType type);

}  // namespace offstage
