// What `--vram` is spent on: the dense part first, if all of it fits, then logits of decoded
// tokens, and experts with the rest. Neither is ever a reason to stop: the CPU computes what the
// device doesn't.
#include <algorithm>

#include "base/units.h"
#include "runtime/runtime.h"

namespace offstage {
namespace {

// Rows of a step that a device computes: wider steps are the CPU's. The hand-over is pinned memory,
// and a row's results may take half a MiB of it.
constexpr uint32_t kDeviceRowsMax = 16;

// Of what the dense part leaves, for the output matrix at most: the rest is for experts.
constexpr uint64_t kLogitsShare = 4;

// After another error the device is of no use to anybody.
bool device_survives(const Error& error) {
  return error.code == ErrorCode::kUnsupported || error.code == ErrorCode::kBudget ||
         error.code == ErrorCode::kOutOfMemory;
}

}  // namespace

Status Runtime::choose_device(const Hooks& hooks, Notices& notices) {
  if (options_.vram_bytes.value_or(0) == 0) {
    if (options_.device != DeviceKind::kAuto)
      notices.add("device",
                  "--device has no effect without --vram, which says how much memory "
                  "experts may have there");
    return {};
  }
  if (spec().n_moe_layers() == 0) {
    notices.add("vram", "--vram has no effect: it is for experts, and this model is dense");
  } else if (hooks.choose_device) {
    device_ = hooks.choose_device(*kernels_, clock_);
  } else {
    OFFSTAGE_TRY(device_, offstage::choose_device(options_, *kernels_, clock_, notices));
  }
  return {};
}

// A device that has no room, or no kernels for this model, is a notice: the run works without.
void Runtime::open_vram(Notices& notices) {
  if (device_.device == nullptr) return;
  const Status opened = open_on_device(notices);
  if (opened) return;
  notices.add("vram", fmt::format("--vram has no effect: {}; everything is computed on the CPU",
                                  opened.error().message));
  device_logits_.reset();
  device_experts_.reset();
  device_dense_.reset();
  device_ = {};
}

// An error: of the experts' memory if both got none, else the device's.
Status Runtime::open_on_device(Notices& notices) {
  OFFSTAGE_TRY(const uint64_t budget, usable_vram(*device_.device, *options_.vram_bytes, notices));
  const Status dense = open_device_dense(budget, notices);
  if (!dense && !device_survives(dense.error())) return dense;
  const uint64_t left = budget - (device_dense_ == nullptr ? 0 : device_dense_->memory_bytes());
  const Result<uint64_t> logits = room_for_logits(left);
  const Status experts = open_device_experts(left - logits.value_or(0), notices);
  if (!experts && (device_dense_ == nullptr || !device_survives(experts.error()))) return experts;
  if (!experts)
    notices.add("vram", fmt::format("no experts in VRAM, the CPU computes them: {}",
                                    experts.error().message));
  if (!dense)
    notices.add("vram_dense", fmt::format("attention, router and shared expert stay with the CPU, "
                                          "VRAM is for experts alone: {}",
                                          dense.error().message));
  return options_.dense == DensePart::kCpu ? Status() : open_device_logits(logits, notices);
}

// What the output matrix and its work take, if that is little enough.
Result<uint64_t> Runtime::room_for_logits(uint64_t vram_bytes) const {
  if (options_.dense == DensePart::kCpu) return 0;
  OFFSTAGE_TRY(const uint64_t bytes, DeviceLogits::memory_bytes(spec(), dense_->weights(),
                                                                device_.kernels, logit_rows()));
  if (bytes <= vram_bytes / kLogitsShare) return bytes;
  return make_error(ErrorCode::kBudget,
                    "their matrix takes {} of VRAM, more than 1/{} of the {} "
                    "that is left for it and experts",
                    format_bytes(bytes), kLogitsShare, format_bytes(vram_bytes));
}

uint32_t Runtime::logit_rows() const { return std::min(options_.n_sequences, kLogitRows); }

Status Runtime::open_device_logits(const Result<uint64_t>& room, Notices& notices) {
  Status opened;
  if (room) {
    DeviceLogits::Options options;
    options.rows_max = logit_rows();
    options.deadline_ns = options_.device_deadline_ns;
    auto logits = DeviceLogits::create({*device_.device, device_.kernels, spec(), dense_->weights(),
                                        timer_, device_dense_.get(), device_experts_.get()},
                                       options);
    if (logits)
      device_logits_ = std::move(*logits);
    else
      opened = tl::unexpected(std::move(logits).error());
  } else {
    opened = tl::unexpected(room.error());
  }
  if (opened) return {};
  if (!device_survives(opened.error())) return opened;
  notices.add("vram_logits", fmt::format("logits stay with the CPU: {}", opened.error().message));
  return {};
}

Status Runtime::open_device_dense(uint64_t vram_bytes, Notices& notices) {
  if (options_.dense == DensePart::kCpu) return {};
  const DeviceDense::Parts parts = {
      *device_.device, device_.kernels, spec(),    dense_->weights(), *rotary_, *kv_,
      options_.k_type, options_.v_type, *kernels_, scratch_memory(),  timer_,   notices};
  DeviceDense::Options options;
  options.vram_bytes = vram_bytes;
  options.rows_max = std::min(options_.n_sequences, kDeviceRowsMax);
  options.chunk_rows = plan_.chunk_rows;
  options.n_sequences = options_.n_sequences;
  options.deadline_ns = options_.device_deadline_ns;
  OFFSTAGE_TRY(device_dense_, DeviceDense::create(parts, options));
  return {};
}

Status Runtime::open_device_experts(uint64_t vram_bytes, Notices& notices) {
  DeviceExperts::Options options;
  options.vram_bytes = vram_bytes;
  options.rows_max = std::min(options_.n_sequences, kDeviceRowsMax);
  options.chunk_rows = plan_.chunk_rows;
  options.promote = options_.promote;
  options.placement = options_.placement;
  options.demote = options_.demote;
  options.starts_hits = !replay_;
  options.deadline_ns = options_.device_deadline_ns;
  const bool is_pinned = device_dense_ != nullptr && device_dense_->chunk_rows() != 0;
  const std::span<std::byte> scratch = is_pinned ? std::span<std::byte>() : scratch_memory();
  OFFSTAGE_TRY(
      device_experts_,
      DeviceExperts::create({*device_.device, device_.kernels, spec(), dense_->weights(), *layout_,
                             *tier_, slots_->memory(), scratch, timer_, clock_, notices},
                            options));
  device_experts_->fill(usage_);
  lookahead_->set_device(&*device_experts_);
  if (device_dense_ != nullptr) device_dense_->set_experts(&*device_experts_);
  return {};
}

VramState Runtime::vram_state() const {
  if (device_.device == nullptr)
    return options_.vram_bytes.value_or(0) == 0 ? VramState::kOff : VramState::kUnavailable;
  const bool is_lost =
      device_experts_ != nullptr ? device_experts_->is_lost() : device_dense_->is_lost();
  return is_lost ? VramState::kLost : VramState::kInUse;
}

}  // namespace offstage
