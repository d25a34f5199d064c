#include "cache/vram_tier.h"

#include <algorithm>
#include <numeric>
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
      copy_ns_per_byte_(1e9 / static_cast<double>(plan_.copy_bytes_per_s)) {}

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
  in_table_.assign(slot_of_.size(), 0);
  const uint64_t tables = aligned(uint64_t{n_layers} * plan_.n_experts * sizeof(std::byte*));
  uint64_t row = 0, largest = 0;  // one slot in each layer
  for (const auto& bytes_of : plan_.matrix_bytes) {
    uint64_t bytes = 0;
    std::array<uint64_t, kExpertMatrices>& offsets = offsets_.emplace_back();
    for (size_t m = 0; m < kExpertMatrices; ++m) {
      offsets[m] = bytes;
      bytes += aligned(bytes_of[m]);
    }
    row += slot_bytes_.emplace_back(bytes);
    largest = std::max(largest, bytes);
  }
  const uint64_t fixed = tables + plan_.visitors * largest;
  if (row == 0 || plan_.budget_bytes < fixed + row)
    return make_error(ErrorCode::kBudget,
                      "VRAM: {} bytes for experts, and one expert per layer takes {}",
                      plan_.budget_bytes, fixed + row);
  const uint64_t wanted = std::min<uint64_t>(plan_.n_experts, (plan_.budget_bytes - fixed) / row);
  uint64_t slots = wanted;
  Result<std::byte*> memory = parts_.device.allocate(fixed + row * slots);
  while (!memory && memory.error().code == ErrorCode::kOutOfMemory && slots > 1) {
    slots -= std::max<uint64_t>(1, slots / 8);
    memory = parts_.device.allocate(fixed + row * slots);
  }
  if (!memory) return tl::unexpected(std::move(memory).error());
  if (slots != wanted)
    parts_.notices.add("vram", fmt::format("VRAM: {} experts per layer instead of {}, the device "
                                           "refused the memory for more",
                                           slots, wanted));
  memory_ = *memory;
  memory_bytes_ = fixed + row * slots;
  slots_per_layer_ = static_cast<uint32_t>(slots);
  lay_out_slots(memory_ + tables, largest);
  for (uint32_t layer = 0; layer < n_layers; ++layer)
    for (uint32_t expert = 0; expert < plan_.n_experts; ++expert)
      OFFSTAGE_TRY_VOID(set_entry(LayerIndex(layer), ExpertId(expert), nullptr));
  return {};
}

void VramTier::lay_out_slots(std::byte* next, uint64_t visitor_bytes) {
  for (const uint64_t bytes : slot_bytes_) {
    first_slot_.push_back(static_cast<uint32_t>(slots_.size()));
    for (uint32_t i = 0; bytes != 0 && i < slots_per_layer_; ++i, next += bytes)
      slots_.emplace_back().memory = next;
  }
  first_slot_.push_back(static_cast<uint32_t>(slots_.size()));
  for (uint32_t i = 0; i < plan_.visitors; ++i, next += visitor_bytes)
    slots_.emplace_back().memory = next;
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

uint32_t VramTier::resident_count(LayerIndex layer) const {
  const uint32_t first = first_slot_[layer.value];
  const auto slots = std::span(slots_).subspan(first, first_slot_[layer.value + 1] - first);
  return static_cast<uint32_t>(std::count_if(
      slots.begin(), slots.end(), [](const Slot& slot) { return slot.state == State::kResident; }));
}

std::span<const std::byte> VramTier::slot_memory(LayerIndex layer, ExpertId expert) const {
  const int32_t slot = slot_of_[place(layer, expert)];
  CHECK_GE(slot, 0);
  return {slots_[static_cast<uint32_t>(slot)].memory, slot_bytes_[layer.value]};
}

void VramTier::add_memory_of(LayerIndex layer,
                             std::vector<std::span<const std::byte>>& ranges) const {
  const size_t first = ranges.size();
  const uint64_t bytes = slot_bytes_[layer.value];
  const auto add = [&](const Slot& slot) {
    if (slot.state == State::kEmpty || slot.layer != layer || !is_in_table(layer, slot.expert))
      return;
    if (ranges.size() != first && ranges.back().data() + ranges.back().size() == slot.memory)
      ranges.back() = {ranges.back().data(), ranges.back().size() + bytes};
    else
      ranges.emplace_back(slot.memory, bytes);
  };
  for (uint32_t i = first_slot_[layer.value]; i < first_slot_[layer.value + 1]; ++i) add(slots_[i]);
  for (uint32_t i = first_slot_.back(); i < slots_.size(); ++i) add(slots_[i]);
}

uint64_t VramTier::expert_bytes(LayerIndex layer) const {
  const auto& bytes = plan_.matrix_bytes[layer.value];
  return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
}

int64_t VramTier::copy_ns(uint64_t bytes) const {
  return static_cast<int64_t>(static_cast<double>(bytes) * copy_ns_per_byte_);
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
  OFFSTAGE_TRY_VOID(parts_.device.launch(std::move(work)));
  in_table_[place(layer, expert)] = slot != nullptr ? 1 : 0;
  return {};
}

// Clears the entry of who leaves, and brings it away if somebody has a place for it. What is copied
// to the device from now on begins when nothing can read the slot any more.
Status VramTier::make_way(Slot& slot) {
  Device& device = parts_.device;
  if (slot.used) return device.order(DeviceStream::kToDevice, *slot.used);
  OFFSTAGE_TRY_VOID(set_entry(slot.layer, slot.expert, nullptr));
  OFFSTAGE_TRY(DeviceMark free, device.mark(DeviceStream::kCompute));
  std::optional<ExpertSpace> space;
  if (slot.state == State::kResident && parts_.keep) space = parts_.keep(slot.layer, slot.expert);
  if (space) {
    OFFSTAGE_TRY_VOID(device.order(DeviceStream::kToHost, free));
    for (size_t m = 0; m < kExpertMatrices; ++m)
      OFFSTAGE_TRY_VOID(device.copy(DeviceStream::kToHost, (*space)[m].data(),
                                    slot.memory + offsets_[slot.layer.value][m],
                                    (*space)[m].size()));
    OFFSTAGE_TRY(free, device.mark(DeviceStream::kToHost));
    slot.kept = {slot.layer, slot.expert};
    ++counters_.demotions;
    counters_.demoted_bytes += expert_bytes(slot.layer);
  }
  return device.order(DeviceStream::kToDevice, free);
}

Status VramTier::start_copy(Slot& slot, LayerIndex layer, const ExpertBytes& matrices) {
  Device& device = parts_.device;
  for (size_t m = 0; m < kExpertMatrices; ++m)
    CHECK_EQ(matrices[m].size(), plan_.matrix_bytes[layer.value][m]);
  slot.kept.reset();
  if (slot.state != State::kEmpty) OFFSTAGE_TRY_VOID(make_way(slot));
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
  const bool evicts = slot->state == State::kResident;
  const double gained =
      calls_expected[expert.value] - (evicts ? calls_expected[slot->expert.value] : 0.0);
  const int64_t cost_ns = copy_ns(layer);
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
  begin_slot(*slot, layer, expert, State::kCopying);
  return Promotion::kStarted;
}

void VramTier::leave(Slot& slot) {
  if (slot.state == State::kResident) {
    --n_resident_;
    ++counters_.evictions;
  }
  if (slot.state != State::kEmpty) slot_of_[place(slot.layer, slot.expert)] = kAbsent;
  slot.state = State::kEmpty;
}

void VramTier::begin_slot(Slot& slot, LayerIndex layer, ExpertId expert, State state) {
  leave(slot);
  const int64_t now_ns = parts_.clock.now_ns();
  const auto index = static_cast<uint32_t>(&slot - slots_.data());
  slot_of_[place(layer, expert)] = static_cast<int32_t>(index);
  slot.bytes = expert_bytes(layer);
  slot.had_the_bus = copying_.empty() && n_visits_ <= (state == State::kVisiting ? 1u : 0u);
  slot.state = state;
  slot.used.reset();
  slot.layer = layer;
  slot.expert = expert;
  slot.begun_ns = slot.not_before_ns = now_ns;
  bus_free_ns_ = std::max(bus_free_ns_, now_ns) + copy_ns(slot.bytes);
  if (state == State::kVisiting) {
    ++counters_.visits;
    return;
  }
  ++counters_.promotions;
  counters_.promoted_bytes += slot.bytes;
  copying_.push_back(index);
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
    slot.state = State::kResident;
    ++n_resident_;
    arrived_.push_back({slot.layer, slot.expert});
    if (slot.kept) departed_.push_back(*slot.kept);
    if (slot.had_the_bus)
      learn_speed(slot.bytes, slot.not_before_ns - slot.begun_ns,
                  parts_.clock.now_ns() - slot.begun_ns);
  }
  copying_.erase(copying_.begin(), copying_.begin() + static_cast<ptrdiff_t>(n_arrived));
  if (copying_.empty()) {
    bus_free_ns_ = std::min(bus_free_ns_, parts_.clock.now_ns());
    return {};
  }
  const Slot& oldest = slots_[copying_.front()];
  if (parts_.clock.now_ns() - oldest.begun_ns <= plan_.copy_deadline_ns) return {};
  return make_error(ErrorCode::kDeadline,
                    "{}: the copy of an expert ({} bytes) isn't done after "
                    "{} ms",
                    parts_.device.facts().name, oldest.bytes, plan_.copy_deadline_ns / 1'000'000);
}

// It took longer than until the last look, and no longer than until now. What is believed moves
// only as far as that contradicts it: who looks rarely learns little, and nothing wrong.
void VramTier::learn_speed(uint64_t bytes, int64_t least_ns, int64_t most_ns) {
  const double least = static_cast<double>(least_ns) / static_cast<double>(bytes);
  const double most = static_cast<double>(most_ns) / static_cast<double>(bytes);
  const double seen = std::clamp(copy_ns_per_byte_, least, std::max(least, most));
  copy_ns_per_byte_ += (seen - copy_ns_per_byte_) * kNewestCopyCounts;
}

std::span<const ExpertPlace> VramTier::poll() {
  arrived_.clear();
  departed_.clear();
  if (lost_) return {};
  if (const Status status = take_arrivals(); !status) lose(status.error());
  return arrived_;
}

void VramTier::lose(const Error& error) {
  if (lost_) return;
  lost_ = true;
  n_resident_ = 0;
  arrived_.clear();
  departed_.clear();
  copying_.clear();
  timed_.reset();
  std::fill(slot_of_.begin(), slot_of_.end(), kAbsent);
  std::fill(in_table_.begin(), in_table_.end(), uint8_t{0});
  for (Slot& slot : slots_) slot.state = State::kEmpty;
  parts_.notices.add(
      "vram",
      fmt::format("VRAM: no experts there any more, the CPU computes all: {}", error.message));
}

}  // namespace offstage
