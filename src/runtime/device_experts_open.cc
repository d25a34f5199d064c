// Before the first forward: what of the budget is for what, memory, biases, and the experts that
// earlier runs called most.
#include <algorithm>
#include <numeric>
#include <utility>

#include "base/checked_math.h"
#include "runtime/device_experts.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr const char* kFormats = "Q8_0, Q4_0, MXFP4, Q4_K, Q5_K and Q6_K, gate and up alike";

uint64_t aligned(uint64_t bytes) { return round_up(bytes, kAlignment); }

}  // namespace

DeviceExperts::DeviceExperts(const Parts& parts, const Options& options)
    : parts_(parts),
      options_(options),
      value_(parts_.layout.n_layers(), parts_.layout.n_experts()),
      meter_(parts_.layout.n_layers()),
      calls_max_(options.rows_max * parts_.spec.router.n_used),
      hit_list_(parts_.layout.n_experts(), parts_.spec.router.n_used, options.rows_max),
      at_hand_(parts_.layout.n_experts(), 0),
      likely_hits_(parts_.layout.n_layers(), 0) {
  // Rows, and per group its jobs and places; at worst every call is a group.
  static_assert(sizeof(gpu::ExpertJob) <= kPartAlignment);
  hand_over_bytes_ =
      round_up(uint64_t{options.rows_max} * parts_.spec.hidden * sizeof(float), kPartAlignment) +
      uint64_t{calls_max_} * 2 * kPartAlignment;
  taken_.reserve(calls_max_);
  left_.reserve(parts_.layout.n_experts());
  here_.reserve(parts_.layout.n_experts());
  expected_.reserve(parts_.layout.n_experts());
}

// Memory that work may still use, and all the rest, the device gives back in its own end.
DeviceExperts::~DeviceExperts() = default;

Result<std::unique_ptr<DeviceExperts>> DeviceExperts::create(const Parts& parts,
                                                             const Options& options) {
  std::unique_ptr<DeviceExperts> experts(new DeviceExperts(parts, options));
  OFFSTAGE_TRY_VOID(experts->open());
  return experts;
}

Status DeviceExperts::open() {
  const bool are_wanted = options_.chunk_rows != 0;
  std::string no_chunks = why_no_chunks();
  if (!no_chunks.empty()) options_.chunk_rows = 0;
  Status opened = open_tier();
  if (!opened && opened.error().code == ErrorCode::kBudget && options_.chunk_rows != 0) {
    no_chunks = "what their chunks work in leaves no room for experts";
    options_.chunk_rows = 0;
    opened = open_tier();
  }
  OFFSTAGE_TRY_VOID(std::move(opened));
  OFFSTAGE_TRY_VOID(take_working_memory());
  OFFSTAGE_TRY_VOID(upload_biases());
  const Status pinned = parts_.ram_slots.empty() ? Status() : parts_.device.pin(parts_.ram_slots);
  if (!pinned)
    parts_.notices.add("vram", fmt::format("the slots in RAM can't be pinned, so copies to the "
                                           "device are slower: {}",
                                           pinned.error().message));
  if (!are_wanted) return {};
  return no_chunks.empty() ? open_chunks() : leave_chunks_to_cpu(no_chunks);
}

// Sizes, memory, tables; kBudget takes nothing.
Status DeviceExperts::open_tier() {
  OFFSTAGE_TRY(VramPlan plan, this->plan());
  VramParts parts = {parts_.device, parts_.clock, parts_.notices, parts_.kernels.set_slot};
  if (options_.demote)
    parts.keep = [this](LayerIndex layer, ExpertId expert) { return keep(layer, expert); };
  auto vram = VramTier::create(std::move(parts), std::move(plan));
  if (!vram && vram.error().code == ErrorCode::kBudget)
    return make_error(ErrorCode::kBudget, "{}; a forward works in {} bytes beside them",
                      vram.error().message, working_bytes());
  if (!vram) return tl::unexpected(std::move(vram).error());
  vram_ = std::move(*vram);
  return {};
}

bool DeviceExperts::has_kernels(LayerIndex layer) const {
  const LayerWeights& weights = weights_of(layer);
  return weights.gate_type == weights.up_type && gpu::has_matvec(weights.gate_type) &&
         gpu::has_matvec(weights.down_type);
}

// What a forward works in, and the biases: as take_working_memory() and upload_biases() take them.
uint64_t DeviceExperts::working_bytes() const {
  const ModelSpec& spec = parts_.spec;
  const uint64_t widest = parts_.kernels.activation_row_bytes(TensorType::kQ8_0, spec.hidden);
  const uint64_t widest_hidden =
      parts_.kernels.activation_row_bytes(TensorType::kQ8_0, spec.expert_ffn);
  uint64_t bytes = aligned(hand_over_bytes_ + hit_list_.device_bytes()) +
                   aligned(options_.rows_max * widest) + aligned(calls_max_ * widest_hidden) +
                   aligned(uint64_t{calls_max_} * spec.expert_ffn * sizeof(float)) +
                   aligned(uint64_t{calls_max_} * spec.hidden * sizeof(float));
  for (uint32_t l = 0; l < parts_.layout.n_layers(); ++l) {
    const LayerWeights& weights = weights_of(LayerIndex(l));
    const uint64_t n_experts = parts_.layout.n_experts();
    for (const float* bias : {weights.gate_bias, weights.up_bias})
      if (bias != nullptr) bytes += aligned(n_experts * spec.expert_ffn * sizeof(float));
    if (weights.down_bias != nullptr) bytes += aligned(n_experts * spec.hidden * sizeof(float));
  }
  return bytes;
}

Result<VramPlan> DeviceExperts::plan() {
  VramPlan plan;
  plan.n_experts = parts_.layout.n_experts();
  plan.copy_deadline_ns = options_.deadline_ns;
  plan.visitors = options_.placement == Placement::kCpu ? 0 : kVisitors;
  if (options_.promote == Promote::kAlways) plan.copy_share_max = 1e6;
  uint32_t without = 0;
  for (uint32_t l = 0; l < parts_.layout.n_layers(); ++l) {
    std::array<uint64_t, kExpertMatrices>& bytes = plan.matrix_bytes.emplace_back();
    if (!has_kernels(LayerIndex(l))) {
      ++without;
      continue;
    }
    for (uint32_t m = 0; m < kExpertMatrices; ++m)
      bytes[m] =
          parts_.layout.extent(LayerIndex(l), ExpertId(0), static_cast<ExpertMatrix>(m)).bytes;
  }
  if (without == parts_.layout.n_layers())
    return make_error(ErrorCode::kUnsupported,
                      "the GPU has kernels for experts in {}; this model's are in others",
                      kFormats);
  if (without != 0)
    parts_.notices.add("vram", fmt::format("{} of {} layers keep no experts in VRAM: the GPU has "
                                           "kernels for experts in {}",
                                           without, parts_.layout.n_layers(), kFormats));
  const uint64_t working = working_bytes() + chunk_bytes();
  plan.budget_bytes = options_.vram_bytes - std::min(options_.vram_bytes, working);
  return plan;
}

Status DeviceExperts::take_working_memory() {
  Device& device = parts_.device;
  const ModelSpec& spec = parts_.spec;
  const auto& row_bytes = parts_.kernels.activation_row_bytes;
  const uint64_t out_bytes = aligned(uint64_t{calls_max_} * spec.hidden * sizeof(float));
  OFFSTAGE_TRY(handed_, device.allocate_pinned(hand_over_bytes_));
  OFFSTAGE_TRY(results_, device.allocate_pinned(out_bytes + hit_list_.pinned_bytes()));
  OFFSTAGE_TRY(input_, device.allocate(hand_over_bytes_ + hit_list_.device_bytes()));
  hit_list_.set_memory(input_ + hand_over_bytes_, results_ + out_bytes);
  OFFSTAGE_TRY(forms_, device.allocate(
                           aligned(options_.rows_max * row_bytes(TensorType::kQ8_0, spec.hidden))));
  OFFSTAGE_TRY(
      hidden_forms_,
      device.allocate(aligned(calls_max_ * row_bytes(TensorType::kQ8_0, spec.expert_ffn))));
  OFFSTAGE_TRY(std::byte* const hidden,
               device.allocate(aligned(uint64_t{calls_max_} * spec.expert_ffn * sizeof(float))));
  hidden_ = reinterpret_cast<float*>(hidden);
  OFFSTAGE_TRY(std::byte* const out, device.allocate(out_bytes));
  out_ = reinterpret_cast<float*>(out);
  return {};
}

Result<const float*> DeviceExperts::upload(const float* values, uint64_t n) {
  if (values == nullptr) return nullptr;
  OFFSTAGE_TRY(std::byte* const memory, parts_.device.allocate(aligned(n * sizeof(float))));
  OFFSTAGE_TRY_VOID(parts_.device.copy(DeviceStream::kToDevice, memory,
                                       reinterpret_cast<const std::byte*>(values),
                                       n * sizeof(float)));
  return reinterpret_cast<const float*>(memory);
}

Status DeviceExperts::upload_biases() {
  const uint64_t n_experts = parts_.layout.n_experts();
  for (uint32_t l = 0; l < parts_.layout.n_layers(); ++l) {
    const LayerWeights& weights = weights_of(LayerIndex(l));
    DeviceBiases& biases = biases_.emplace_back();
    OFFSTAGE_TRY(biases.gate, upload(weights.gate_bias, n_experts * parts_.spec.expert_ffn));
    OFFSTAGE_TRY(biases.up, upload(weights.up_bias, n_experts * parts_.spec.expert_ffn));
    OFFSTAGE_TRY(biases.down, upload(weights.down_bias, n_experts * parts_.spec.hidden));
  }
  OFFSTAGE_TRY(const DeviceMark there, parts_.device.mark(DeviceStream::kToDevice));
  return parts_.device.wait(there, options_.deadline_ns);
}

uint32_t DeviceExperts::layers_with_slots() const {
  uint32_t n = 0;
  for (uint32_t l = 0; l < parts_.layout.n_layers(); ++l) n += vram_->has_slots(LayerIndex(l));
  return n;
}

void DeviceExperts::fill(const ExpertUsage& usage) {
  if (usage.tokens <= 0 || options_.promote == Promote::kOff) return;
  value_.seed(usage);
  const uint32_t n_experts = parts_.layout.n_experts();
  for (uint32_t l = 0; l < parts_.layout.n_layers(); ++l) {
    const LayerIndex layer(l);
    if (!vram_->has_slots(layer)) continue;
    const std::span<const double> expected = value_.calls_expected(layer);
    std::vector<uint32_t> order(n_experts);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return expected[a] > expected[b]; });
    uint32_t filled = 0;
    for (const uint32_t e : order) {
      if (filled == vram_->slots_per_layer() || expected[e] <= 0) break;
      vram_->token_done(kPaysAlways);
      const auto brings = [&] { return bring(layer, ExpertId(e), expected, kPaysAlways); };
      if (brings() || (drain() && brings())) ++filled;
    }
  }
  if (!drain()) return;
  vram_->token_done(0);
}

}  // namespace offstage
