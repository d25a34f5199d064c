// A prompt's chunk at a layer with experts, as far as the device computes it.
//
//   begin():   experts that lie in VRAM are the device's, launched together
//   place():   of those that RAM hands out, the most called may go through VRAM one after another:
//              while one computes, the next is copied (VramTier's visitors)
//   let_go():  the copies are there, RAM may have its slots back
//   collect(): the device's rows come back to their places, where they are added in router order
//
// The chunk's rows, unless the device has them (device_dense.h), and its router's choice go over
// once a layer, and the device groups them by expert itself, in the order of Routing. How many
// experts go through VRAM: as many as make the layer done earliest, by costs measured chunk after
// chunk (placement.h).
//
// All memory is taken at the start: device memory for the widest chunk, and a little pinned memory
// that results come back through, piece by piece, so that what the device writes after it was given
// up meets nobody. An error of any call is the device's; what it had taken is then the CPU's, as
// DeviceExperts hands it back. Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/cause_timer.h"
#include "base/clock.h"
#include "base/result.h"
#include "cache/ram_tier.h"
#include "cache/vram_tier.h"
#include "gpu/device.h"
#include "model/spec.h"
#include "runtime/device_pieces.h"
#include "runtime/options.h"
#include "runtime/placement.h"
#include "runtime/router.h"
#include "runtime/weights.h"

namespace offstage {

// Of a layer's experts, in device memory; or null.
struct DeviceBiases {
  const float *gate = nullptr, *up = nullptr, *down = nullptr;
};

// Calls of prompts in layers that have slots in VRAM, an expert of a chunk once.
struct ChunkCounts {
  uint64_t in_place = 0;  // lay in VRAM
  uint64_t streamed = 0;  // went through it
  uint64_t cpu = 0;
};

class DeviceChunks {
 public:
  // All outlive it.
  struct Parts {
    Device& device;
    const DeviceKernels& kernels;
    const ModelSpec& spec;
    const DenseWeights& weights;
    const ExpertLayout& layout;
    VramTier& vram;
    std::span<const DeviceBiases> biases;  // by layer
    CauseTimer& timer;
    const Clock& clock;
  };
  struct Options {
    uint32_t rows_max = 0;
    Placement placement = Placement::kAuto;
    int64_t deadline_ns = 0;  // of a layer, and of a copy
  };

  // What a chunk of so many rows takes of the device's memory.
  static uint64_t memory_bytes(const ModelSpec& spec, const DeviceKernels& kernels, uint32_t rows);
  // Errors: the device's; kOutOfMemory leaves it as it was.
  static Result<std::unique_ptr<DeviceChunks>> create(const Parts& parts, const Options& options);
  DeviceChunks(const DeviceChunks&) = delete;
  DeviceChunks& operator=(const DeviceChunks&) = delete;

  // `routing` and `normed` [n_rows][hidden] must stay until collect(); so must `normed_on_device`,
  // if the device has those rows already.
  Status begin(LayerIndex layer, const Routing& routing, const float* normed,
               const float* normed_on_device = nullptr);
  // What RAM is to bring.
  std::span<const ExpertCall> left() const { return left_; }
  // After it, whatever it says, here() is what the CPU is to compute.
  Status place(std::span<const ReadyExpert> ready);
  std::span<const ReadyExpert> here() const { return here_; }
  Status let_go();
  // expert_out [calls][hidden] ← the device's.
  Status collect(float* expert_out);
  // What the device had, if it fails: those that lay in VRAM, and those that RAM had handed out.
  std::span<const ExpertCall> residents() const { return std::span(taken_).first(n_residents_); }
  std::span<const ExpertCall> streamed() const { return std::span(taken_).subspan(n_residents_); }
  // The CPU's share of the layer took that long.
  void add_cpu(int64_t ns) { meter_.add_cpu(cpu_rows_, ns); }

  uint32_t rows_max() const { return options_.rows_max; }
  uint64_t memory_bytes() const { return memory_bytes_; }
  const ChunkCounts& counts() const { return counts_; }

 private:
  // In device memory, for rows_max rows: so many calls, in Routing's order by expert.
  struct Work {
    float* x = nullptr;
    std::byte* forms = nullptr;
    uint32_t *experts = nullptr, *place_rows = nullptr, *place_of = nullptr;
    gpu::ExpertJob* jobs = nullptr;
    float *gate = nullptr, *up = nullptr, *out = nullptr;
    std::byte* hidden_forms = nullptr;
  };
  // Places of results that stand side by side.
  struct Places {
    uint32_t first = 0, n = 0;
  };

  DeviceChunks(const Parts& parts, const Options& options);
  static uint64_t lay_out(const ModelSpec& spec, const DeviceKernels& kernels, uint32_t rows,
                          std::byte* base, Work* work);
  Status take_memory();
  const LayerWeights& weights() const;
  Places places_of(ExpertId expert) const;
  void join_places(std::span<const ExpertCall> experts);
  Status hand_over();
  Status launch(std::span<const ExpertCall> experts, uint32_t first_job, uint32_t n_jobs);
  gpu::MatvecArgs matmul_args(ExpertMatrix matrix, std::span<const ExpertCall> experts,
                              uint32_t first_job, uint32_t n_jobs) const;
  uint32_t streams_of(int64_t now_ns);
  Result<bool> stream(const ReadyExpert& expert);
  Result<bool> wait_for(DeviceMark mark);
  Status bring_back(float* expert_out);
  template <typename Args>
  Status put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel, const Args& args,
             std::span<const ExpertCall> experts = {}, uint64_t bytes = 0);

  Parts parts_;
  Options options_;
  uint64_t memory_bytes_ = 0;
  std::byte* memory_ = nullptr;
  Work work_;
  DevicePieces pieces_;               // of results
  uint32_t* experts_over_ = nullptr;  // pinned: what goes over

  // The layer.
  LayerIndex layer_;
  const Routing* routing_ = nullptr;
  const float *normed_ = nullptr, *rows_there_ = nullptr;
  std::vector<uint32_t> job_of_;  // by expert called
  uint32_t n_jobs_ = 0;
  std::vector<ExpertCall> taken_, left_;  // taken: the residents first, then what went through
  size_t n_residents_ = 0;
  std::vector<ReadyExpert> here_;
  std::vector<Places> places_;  // scratch of join_places()
  std::vector<uint32_t> rows_;  // scratch of streams_of()
  bool in_flight_ = false;
  std::optional<DeviceMark> copied_;  // of what place() began to copy
  int64_t begun_ns_ = 0, copies_begun_ns_ = 0, device_free_ns_ = 0;
  uint32_t n_copies_ = 0;
  uint64_t resident_rows_ = 0, cpu_rows_ = 0;
  ChunkMeter meter_;
  ChunkCounts counts_;
};

}  // namespace offstage
