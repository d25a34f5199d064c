#include "cache/vram_tier.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr int64_t kPatienceNs = 1'000'000'000;  // with work under way at the end
constexpr double kNewestCopyCounts = 0.25;      // in what is believed of their speed
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
  if (memory_ != nullptr && !lost_ && is_idle()) parts_.device.release(memory_);
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
  const auto n_layers = static_cast<uint32_t>(plan_.matrix_bytes.size());
  slot_of_.assign(size_t{n_layers} * plan_.n_experts, kAbsent);
  const uint64_t tables = aligned(uint64_t{n_layers} * plan_.n_experts * sizeof(std::byte*));
  uint64_t row = 0;  // one slot in each layer
  for (const auto& bytes_of : plan_.matrix_bytes) {
    uint64_t bytes = 0;
    std::array<uint64_t, kExpertMatrices>& offsets = offsets_.emplace_back();
    for (size_t m = 0; m < kExpertMatrices; ++m) {
      offsets[m] = bytes;
      bytes += aligned(bytes_of[m]);
    }
    row += slot_bytes_.emplace_back(bytes);
  }
  if (row == 0 || plan_.budget_bytes < tables + row)
    return make_error(ErrorCode::kBudget,
                      "VRAM: {} bytes for experts, and one expert per layer takes {}",
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
  memory_bytes_ = tables + row * slots;
  slots_per_layer_ = static_cast<uint32_t>(slots);
  lay_out_slots(memory_ + tables);
  for (uint32_t layer = 0; layer < n_layers; ++layer)
    for (uint32_t expert = 0; expert < plan_.n_experts; ++expert)
      OFFSTAGE_TRY_VOID(set_entry(LayerIndex(layer), ExpertId(expert), nullptr));
  return {};
}

void VramTier::lay_out_slots(std::byte* next) {
  for (const uint64_t bytes : slot_bytes_) {
    first_slot_.push_back(static_cast<uint32_t>(slots_.size()));
    for (uint32_t i = 0; bytes != 0 && i < slots_per_layer_; ++i, next += bytes)
      slots_.emplace_back().memory = next;
  }
  first_slot_.push_back(static_cast<uint32_t>(slots_.size()));
}

const std::byte* const* VramTier::table(LayerIndex layer) const {
  return reinterpret_cast<const std::byte* const*>(memory_) + place(layer, ExpertId(0));
}

size_t VramTier::place(LayerIndex layer, ExpertId expert) const {
  return size_t{layer.value} * plan_.n_experts + expert.value;
}

std::span<VramTier::Slot> VramTier::slots_of(LayerIndex layer) {
  const uint32_t first = first_slot_[layer.value];
  return std::span(slots_).subspan(first, first_slot_[layer.value + 1] - first);
}

bool VramTier::is_resident(LayerIndex layer, ExpertId expert) const {
  const int32_t slot = slot_of_[place(layer, expert)];
  return slot != kAbsent && slots_[static_cast<uint32_t>(slot)].state == State::kResident;
}

std::span<const std::byte> VramTier::slot_memory(LayerIndex layer, ExpertId expert) const {
  const int32_t slot = slot_of_[place(layer, expert)];
  CHECK_GE(slot, 0);
  return {slots_[static_cast<uint32_t>(slot)].memory, slot_bytes_[layer.value]};
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
Status VramTier::start_copy(Slot& slot, LayerIndex layer, const ExpertBytes& matrices) {
  Device& device = parts_.device;
  if (slot.state == State::kResident) {
    OFFSTAGE_TRY_VOID(set_entry(layer, slot.expert, nullptr));
    OFFSTAGE_TRY(const DeviceMark cleared, device.mark(DeviceStream::kCompute));
    OFFSTAGE_TRY_VOID(device.order(DeviceStream::kToDevice, cleared));
  }
  for (size_t m = 0; m < kExpertMatrices; ++m)
    OFFSTAGE_TRY_VOID(device.copy(DeviceStream::kToDevice, slot.memory + offsets_[layer.value][m],
                                  matrices[m].data(), matrices[m].size()));
  OFFSTAGE_TRY(slot.arrived, device.mark(DeviceStream::kToDevice));
  return {};
}

Promotion VramTier::promote(LayerIndex layer, ExpertId expert, const ExpertBytes& matrices,
                            std::span<const double> calls_expected, int64_t saved_ns) {
  CHECK_EQ(calls_expected.size(), size_t{plan_.n_experts});
  if (lost_) return Promotion::kLost;
  if (!has_slots(layer)) return Promotion::kNoSlot;
  if (slot_of_[place(layer, expert)] != kAbsent) return Promotion::kThere;
  Slot* slot = place_for(layer, calls_expected);
  if (slot == nullptr) {
    ++counters_.busy;
    return Promotion::kBusy;
  }
  uint64_t bytes = 0;
  for (size_t m = 0; m < kExpertMatrices; ++m) {
    CHECK_EQ(matrices[m].size(), plan_.matrix_bytes[layer.value][m]);
    bytes += matrices[m].size();
  }
  const bool evicts = slot->state == State::kResident;
  const double gained =
      calls_expected[expert.value] - (evicts ? calls_expected[slot->expert.value] : 0.0);
  const int64_t cost_ns = copy_ns(bytes);
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
  if (const Status started = start_copy(*slot, layer, matrices); !started) {
    lose(started.error());
    return Promotion::kLost;
  }
  copy_credit_ns_ -= cost_ns;
  begin_slot(*slot, layer, expert, bytes);
  return Promotion::kStarted;
}

void VramTier::begin_slot(Slot& slot, LayerIndex layer, ExpertId expert, uint64_t bytes) {
  if (slot.state == State::kResident) {
    slot_of_[place(layer, slot.expert)] = kAbsent;
    --n_resident_;
    ++counters_.evictions;
  }
  ++counters_.promotions;
  counters_.promoted_bytes += bytes;
  const auto index = static_cast<uint32_t>(&slot - slots_.data());
  slot_of_[place(layer, expert)] = static_cast<int32_t>(index);
  slot.had_the_bus = copying_.empty();
  copying_.push_back(index);
  slot.state = State::kCopying;
  slot.layer = layer;
  slot.expert = expert;
  slot.bytes = bytes;
  slot.begun_ns = slot.not_before_ns = parts_.clock.now_ns();
}

Status VramTier::take_arrivals() {
  size_t n_arrived = 0;
  for (; n_arrived < copying_.size(); ++n_arrived) {
    Slot& slot = slots_[copying_[n_arrived]];
    OFFSTAGE_TRY(const bool there, parts_.device.reached(slot.arrived));
    if (!there) {  // nor those behind it on the stream
      slot.not_before_ns = parts_.clock.now_ns();
      break;
    }
    OFFSTAGE_TRY_VOID(set_entry(slot.layer, slot.expert, slot.memory));
    arrive(slot);
  }
  copying_.erase(copying_.begin(), copying_.begin() + static_cast<ptrdiff_t>(n_arrived));
  if (copying_.empty()) return {};
  const Slot& oldest = slots_[copying_.front()];
  if (parts_.clock.now_ns() - oldest.begun_ns <= plan_.copy_deadline_ns) return {};
  return make_error(ErrorCode::kDeadline,
                    "{}: the copy of an expert ({} bytes) isn't done after "
                    "{} ms",
                    parts_.device.facts().name, oldest.bytes, plan_.copy_deadline_ns / 1'000'000);
}

void VramTier::arrive(Slot& slot) {
  slot.state = State::kResident;
  ++n_resident_;
  arrived_.push_back({slot.layer, slot.expert});
  if (!slot.had_the_bus) return;
  // It took longer than until the last look, and no longer than until now. What is believed moves
  // only as far as that contradicts it: who looks rarely learns little, and nothing wrong.
  const auto bytes = static_cast<double>(slot.bytes);
  const auto since_begin = [&](int64_t ns) { return static_cast<double>(ns - slot.begun_ns); };
  const double slowest = bytes / std::max(1.0, since_begin(parts_.clock.now_ns()));
  const double fastest = bytes / std::max(1.0, since_begin(slot.not_before_ns));
  const double seen = std::clamp(copy_bytes_per_ns_, slowest, std::max(slowest, fastest));
  copy_bytes_per_ns_ += (seen - copy_bytes_per_ns_) * kNewestCopyCounts;
}

std::span<const ExpertPlace> VramTier::poll() {
  arrived_.clear();
  if (lost_) return {};
  if (const Status status = take_arrivals(); !status) lose(status.error());
  return arrived_;
}

void VramTier::lose(const Error& error) {
  if (lost_) return;
  lost_ = true;
  n_resident_ = 0;
  arrived_.clear();
  copying_.clear();
  std::fill(slot_of_.begin(), slot_of_.end(), kAbsent);
  for (Slot& slot : slots_) slot.state = State::kEmpty;
  parts_.notices.add(
      "vram",
      fmt::format("VRAM: no experts there any more, the CPU computes all: {}", error.message));
}

}  // namespace offstage
