// Prompts: whether VRAM has room for what their chunks work in, and the tier's part in them.
#include <utility>

#include "base/units.h"
#include "runtime/device_experts.h"

namespace offstage {
namespace {

// Of what --vram leaves to experts. The rest is for those that stay, which every token gains by.
constexpr uint64_t kChunkShare = 8;

}  // namespace

uint64_t DeviceExperts::chunk_bytes() const {
  return options_.chunk_rows == 0
             ? 0
             : DeviceChunks::memory_bytes(parts_.spec, parts_.kernels, options_.chunk_rows);
}

// Empty: it is worth asking for the memory.
std::string DeviceExperts::why_no_chunks() const {
  if (parts_.spec.router.n_experts > gpu::kRouterExpertsMax)
    return fmt::format("the kernel that groups them knows {} experts at most",
                       gpu::kRouterExpertsMax);
  if (chunk_bytes() > options_.vram_bytes / kChunkShare)
    return fmt::format(
        "a chunk of {} tokens works in {}, more than 1/{} of the {} of VRAM for experts",
        options_.chunk_rows, format_bytes(chunk_bytes()), kChunkShare,
        format_bytes(options_.vram_bytes));
  return "";
}

Status DeviceExperts::leave_chunks_to_cpu(const std::string& reason) {
  parts_.notices.add("vram_prompts", fmt::format("prompts' experts stay with the CPU: {}", reason));
  return {};
}

// Refused memory costs prompts the device, and nobody else.
Status DeviceExperts::open_chunks() {
  DeviceChunks::Options options;
  options.rows_max = options_.chunk_rows;
  options.placement = options_.placement;
  options.deadline_ns = options_.deadline_ns;
  auto chunks = DeviceChunks::create({parts_.device, parts_.kernels, parts_.spec, parts_.weights,
                                      parts_.layout, *vram_, biases_, parts_.timer, parts_.clock},
                                     options);
  if (!chunks && chunks.error().code != ErrorCode::kOutOfMemory)
    return tl::unexpected(std::move(chunks).error());
  if (!chunks) return leave_chunks_to_cpu(chunks.error().message);
  chunks_ = std::move(*chunks);
  const Status pinned = parts_.scratch.empty() ? Status() : parts_.device.pin(parts_.scratch);
  if (!pinned)
    parts_.notices.add("vram_prompts", fmt::format("working memory in RAM can't be pinned, so "
                                                   "prompts go to the device slower: {}",
                                                   pinned.error().message));
  return {};
}

std::span<const ExpertCall> DeviceExperts::take_chunk(LayerIndex layer, const Routing& routing,
                                                      const float* normed,
                                                      const float* normed_on_device) {
  const CauseScope scope(parts_.timer, Cause::kGpu);
  const Status begun = chunks_->begin(layer, routing, normed, normed_on_device);
  if (!begun) {
    lose(begun.error());
    in_chunk_ = false;
    return routing.calls;
  }
  return chunks_->left();
}

std::span<const ReadyExpert> DeviceExperts::place_chunk(std::span<const ReadyExpert> ready) {
  if (vram_->is_lost()) return ready;
  if (const Status placed = chunks_->place(ready); !placed) lose(placed.error());
  return chunks_->here();
}

void DeviceExperts::let_go() {
  if (!in_chunk_ || vram_->is_lost()) return;
  if (const Status gone = chunks_->let_go(); !gone) lose(gone.error());
}

DeviceExperts::Lost DeviceExperts::collect_chunk(float* expert_out) {
  if (!vram_->is_lost()) {
    const Status collected = chunks_->collect(expert_out);
    if (!collected) lose(collected.error());
  }
  if (vram_->is_lost()) {
    in_chunk_ = false;
    return {chunks_->residents(), chunks_->streamed()};
  }
  hits_ += chunks_->residents().size();
  return {};
}

}  // namespace offstage
