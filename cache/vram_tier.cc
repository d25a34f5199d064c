#include "cache/vram_tier.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr int64_t kPatienceNs = 1'000'000'000;  // with work under way at the end
constexpr double kNewestCopyCounts = 0.125;     // in the mean of copies' speeds
// Copies may save up for one token's share, so that a quiet time isn't followed by a burst.
constexpr double kTokensOfCredit = 1.0;

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

VramTier::VramTier(VramParts parts, VramPlan plan)
    : parts_(std::move(parts)),
      plan_(std::move(plan)),
      copy_bytes_per_ns_(static_cast<double>(plan_.copy_bytes_per_s) * 1e-9) {}

// Memory that work may still use stays with the device, which gives it back in its own end.
VramTier::~VramTier() {
  if (memory_ != nullptr && (lost_ || is_idle())) parts_.device.release(memory_);
}

bool VramTier::is_idle() {
  for (const DeviceStream stream : {DeviceStream::kToDevice, DeviceStream::kCompute}) {
    const Result<DeviceMark> mark = parts_.device.mark(stream);
    if (!mark || !parts_.device.wait(*mark, kPatienceNs)) return false;
  }
  return true;
}

Result<std::unique_ptr<VramTier>> VramTier::create(VramParts parts, VramPlan plan) {
  std::unique_ptr<VramTier> tier(new VramTier(std::move(parts), std::move(plan)));
  OFFSTAGE_TRY_VOID(tier->take_memory());
  return tier;
}

// Equal numbers of slots per layer, for the reason in the RAM tier's page. A refusal of what the
// budget allows costs an eighth of the slots at a time.
Status VramTier::take_memory() {
  const auto n_layers = static_cast<uint32_t>(plan_.slot_bytes.size());
  const uint64_t tables = aligned(uint64_t{n_layers} * plan_.n_experts * sizeof(std::byte*));
  uint64_t row = 0;  // one slot in each layer
  for (uint64_t& bytes : plan_.slot_bytes) row += bytes = aligned(bytes);
  if (n_layers == 0 || plan_.budget_bytes < tables + row)
    return make_error(ErrorCode::kBudget, "VRAM: {} bytes, and one expert per layer takes {}",
                      plan_.budget_bytes, tables + row);
  const uint64_t wanted = std::min<uint64_t>(plan_.n_experts, (plan_.budget_bytes - tables) / row);
  uint64_t slots = wanted;
  Result<std::byte*> memory = parts_.device.allocate(tables + row * slots);
  while (!memory && memory.error().code == ErrorCode::kOutOfMemory && slots > 1) {
    slots -= std::max<uint64_t>(1, slots / 8);
    memory = parts_.device.allocate(tables + row * slots);
  }
  if (!memory) return tl::unexpected(std::move(memory).error());
  if (slots != wanted)
    parts_.notices.add("vram", fmt::format("VRAM: {} experts per layer instead of {}, the device "
                                           "refused the memory for more",
                                           slots, wanted));
  memory_ = *memory;
  slots_per_layer_ = static_cast<uint32_t>(slots);
  std::byte* next = memory_ + tables;
  for (const uint64_t bytes : plan_.slot_bytes)
    for (uint32_t i = 0; i < slots_per_layer_; ++i, next += bytes)
      slots_.emplace_back().memory = next;
  for (uint32_t layer = 0; layer < n_layers; ++layer)
    for (uint32_t expert = 0; expert < plan_.n_experts; ++expert)
      OFFSTAGE_TRY_VOID(set_entry(LayerIndex(layer), ExpertId(expert), nullptr));
  return {};
}

const std::byte* const* VramTier::table(LayerIndex layer) const {
  return reinterpret_cast<const std::byte* const*>(memory_) + size_t{layer.value} * plan_.n_experts;
}

std::span<VramTier::Slot> VramTier::slots_of(LayerIndex layer) {
  return std::span(slots_).subspan(size_t{layer.value} * slots_per_layer_, slots_per_layer_);
}

VramTier::Slot* VramTier::slot_of(LayerIndex layer, ExpertId expert) {
  for (Slot& slot : slots_of(layer))
    if (slot.state != State::kEmpty && slot.expert == expert) return &slot;
  return nullptr;
}

bool VramTier::is_resident(LayerIndex layer, ExpertId expert) const {
  const Slot* slot = const_cast<VramTier*>(this)->slot_of(layer, expert);
  return slot != nullptr && slot->state == State::kResident;
}

int64_t VramTier::copy_ns(uint64_t bytes) const {
  return static_cast<int64_t>(static_cast<double>(bytes) / copy_bytes_per_ns_);
}

void VramTier::token_done(int64_t token_ns) {
  const double share = plan_.copy_share_max * static_cast<double>(token_ns);
  copy_credit_ns_ = std::min(copy_credit_ns_ + static_cast<int64_t>(share),
                             static_cast<int64_t>(share * kTokensOfCredit));
}

// An empty slot, else the resident that will be called least; ties to the lower expert. Null: all
// are being written.
VramTier::Slot* VramTier::place_for(LayerIndex layer, std::span<const double> calls_expected) {
  Slot* least = nullptr;
  for (Slot& slot : slots_of(layer)) {
    if (slot.state == State::kEmpty) return &slot;
    if (slot.state != State::kResident) continue;
    const auto merit = [&](const Slot& of) {
      return std::pair(calls_expected[of.expert.value], of.expert.value);
    };
    if (least == nullptr || merit(slot) < merit(*least)) least = &slot;
  }
  return least;
}

Status VramTier::set_entry(LayerIndex layer, ExpertId expert, const std::byte* slot) {
  gpu::SetSlotArgs args;
  args.entry = const_cast<const std::byte**>(table(layer)) + expert.value;
  args.slot = slot;
  DeviceWork work;
  work.name = "set_slot";
  work.ranges = {{reinterpret_cast<const std::byte*>(args.entry), sizeof(std::byte*)}};
  work.launch = [set = parts_.set_slot, args](gpu::StreamHandle stream) {
    return set(stream, args);
  };
  return parts_.device.launch(std::move(work));
}

// Clears the entry of who leaves; the copy begins when nothing that was launched can read the slot.
Status VramTier::start_copy(LayerIndex layer, Slot& slot, std::span<const std::byte> bytes) {
  Device& device = parts_.device;
  if (slot.state == State::kResident) {
    OFFSTAGE_TRY_VOID(set_entry(layer, slot.expert, nullptr));
    OFFSTAGE_TRY(const DeviceMark cleared, device.mark(DeviceStream::kCompute));
    OFFSTAGE_TRY_VOID(device.order(DeviceStream::kToDevice, cleared));
  }
  OFFSTAGE_TRY_VOID(device.copy(DeviceStream::kToDevice, slot.memory, bytes.data(), bytes.size()));
  OFFSTAGE_TRY(slot.arrived, device.mark(DeviceStream::kToDevice));
  return {};
}

Promotion VramTier::promote(LayerIndex layer, ExpertId expert, std::span<const std::byte> bytes,
                            std::span<const double> calls_expected, int64_t saved_ns) {
  CHECK_LE(bytes.size(), plan_.slot_bytes[layer.value]);
  CHECK_EQ(calls_expected.size(), size_t{plan_.n_experts});
  if (lost_) return Promotion::kLost;
  if (slot_of(layer, expert) != nullptr) return Promotion::kThere;
  Slot* slot = place_for(layer, calls_expected);
  if (slot == nullptr) {
    ++counters_.busy;
    return Promotion::kBusy;
  }
  const bool evicts = slot->state == State::kResident;
  const double gained =
      calls_expected[expert.value] - (evicts ? calls_expected[slot->expert.value] : 0.0);
  const int64_t cost_ns = copy_ns(bytes.size());
  if (gained * static_cast<double>(saved_ns) <= static_cast<double>(cost_ns)) {
    ++counters_.unpaid;
    return Promotion::kUnpaid;
  }
  // What exceeds the credit is a debt that later tokens pay: an expert may cost more than a token's
  // share.
  if (copy_credit_ns_ <= 0) {
    ++counters_.no_time;
    return Promotion::kNoTime;
  }
  if (const Status started = start_copy(layer, *slot, bytes); !started) {
    give_up(started.error());
    return Promotion::kLost;
  }
  copy_credit_ns_ -= cost_ns;
  counters_.evictions += evicts;
  ++counters_.promotions;
  counters_.promoted_bytes += bytes.size();
  slot->state = State::kCopying;
  slot->expert = expert;
  slot->bytes = bytes.size();
  slot->begun_ns = parts_.clock.now_ns();
  return Promotion::kStarted;
}

Status VramTier::take_arrivals() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.state != State::kCopying) continue;
    OFFSTAGE_TRY(const bool there, parts_.device.reached(slot.arrived));
    if (!there) continue;
    const LayerIndex layer(static_cast<uint32_t>(i / slots_per_layer_));
    OFFSTAGE_TRY_VOID(set_entry(layer, slot.expert, slot.memory));
    slot.state = State::kResident;
    arrived_.push_back({layer, slot.expert});
    // Looked at late, a copy seems slower than it was: never faster.
    const int64_t took_ns = std::max<int64_t>(1, parts_.clock.now_ns() - slot.begun_ns);
    const double speed = static_cast<double>(slot.bytes) / static_cast<double>(took_ns);
    copy_bytes_per_ns_ += (speed - copy_bytes_per_ns_) * kNewestCopyCounts;
  }
  return {};
}

std::span<const ExpertPlace> VramTier::poll() {
  arrived_.clear();
  if (lost_) return {};
  if (const Status status = take_arrivals(); !status) give_up(status.error());
  return arrived_;
}

void VramTier::give_up(const Error& error) {
  lost_ = true;
  arrived_.clear();
  for (Slot& slot : slots_) slot.state = State::kEmpty;
  parts_.notices.add(
      "vram",
      fmt::format("VRAM: no experts there any more, the CPU computes all: {}", error.message));
}

}  // namespace offstage
