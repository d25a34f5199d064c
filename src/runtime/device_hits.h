// Which of a router's choice lie in VRAM, found by the device behind its router, before the host
// knows the choice.
//
//   look()   what the table names as the next kernel will find it: the host's picture
//   args()   of the kernel that makes a list of the choice: by expert, those alone that the table
//            names. The kernels of experts take it; what is beyond its end they leave at once.
//   check()  when the kernels were waited for: what the device says it computed is what the host
//            made of the same choice by its picture
//
// Whatever comes to VRAM or leaves it meanwhile, the two agree: the table's entries change in the
// order of the stream, behind the kernels that read them (vram_tier.h), and the picture not at all.
// So a difference is a mistake, of the device or of ours: its results aren't taken.
// Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "cache/eviction.h"
#include "cache/vram_tier.h"
#include "gpu/device.h"

namespace offstage {

class DeviceHits {
 public:
  DeviceHits(uint32_t n_experts, uint32_t n_used, uint32_t rows_max);

  uint64_t device_bytes() const;
  uint64_t pinned_bytes() const;
  // The caller's; at multiples of 64.
  void set_memory(std::byte* on_device, std::byte* pinned);

  // False: the table names nobody.
  bool look(const VramTier& vram, LayerIndex layer);
  bool was_there(ExpertId expert) const { return was_there_[expert.value] != 0; }
  gpu::GroupCallsArgs args(const VramTier& vram, const uint32_t* experts, uint32_t n_rows);

  // In device memory: the list, as group_calls() leaves it.
  const gpu::ExpertJob* jobs() const { return jobs_; }
  const uint32_t* place_rows() const { return place_rows_; }
  const uint32_t* n_places() const { return n_places_; }
  uint32_t n_jobs(uint32_t n_rows) const;  // at most

  // `hits` ascending, of the choice that args() was for. kIo: the device has computed others.
  Status check(std::span<const ExpertCall> hits) const;

 private:
  uint32_t n_experts_, n_used_, calls_max_;
  gpu::ExpertJob* jobs_ = nullptr;
  uint32_t *place_rows_ = nullptr, *n_places_ = nullptr;
  gpu::ExpertJob* told_ = nullptr;  // pinned
  std::vector<uint8_t> was_there_;  // by expert
  LayerIndex layer_;
  uint32_t n_rows_ = 0;
};

}  // namespace offstage
