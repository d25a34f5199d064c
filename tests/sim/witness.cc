#include "tests/sim/witness.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/extent.h"

namespace offstage::sim {
namespace {

constexpr int kPoison = 0xEE;
// A read that takes longer was kept waiting: 100 times slower than the fastest drive is.
constexpr int64_t kHealthyNs = 2'000'000;
constexpr uint32_t kIdleReapsMax = 20'000;
// What the scheduler may wait before it asks again: io/read_scheduler.h.
constexpr int64_t kBackoffNs = 64'000'000;

int64_t stall_of(int64_t latency_ns) { return latency_ns > kHealthyNs ? latency_ns : 0; }

}  // namespace

Witness::Witness(std::unique_ptr<IoEngine> inner, std::vector<std::span<const std::byte>> files,
                 const ManualClock& clock, bool poison)
    : inner_(std::move(inner)), files_(std::move(files)), clock_(clock), poison_(poison) {}

void Witness::watch(const SlotPool& pool, const ExpertLayout& layout) {
  pool_ = &pool;
  layout_ = &layout;
  writers_.assign(pool.size(), 0);
  answers_.assign(size_t{layout.n_layers()} * layout.n_experts() * kExpertMatrices, {});
}

size_t Witness::piece_of(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const {
  const size_t at = size_t{layer.value} * layout_->n_experts() + expert.value;
  return at * kExpertMatrices + static_cast<size_t>(matrix);
}

PieceAnswers& Witness::answers(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) {
  return answers_[piece_of(layer, expert, matrix)];
}

void Witness::accuse(std::string what) {
  if (violation_.empty()) violation_ = std::move(what);
}

// The slot and matrix that a read is for, by its buffer; none if that's no slot's memory.
std::optional<Witness::Target> Witness::target_of(const ReadRequest& request) const {
  for (uint32_t i = 0; i < pool_->size(); ++i) {
    const Slot& slot = (*pool_)[SlotIndex(i)];
    const uint64_t slot_bytes = layout_->class_bytes(slot.slot_class);
    if (request.buffer < slot.memory || request.buffer >= slot.memory + slot_bytes) continue;
    if (request.buffer + request.bytes > slot.memory + slot_bytes) return std::nullopt;
    const auto at = static_cast<uint64_t>(request.buffer - slot.memory);
    Target target{SlotIndex(i)};
    for (uint32_t m = 1; m < kExpertMatrices; ++m) {
      const auto matrix = static_cast<ExpertMatrix>(m);
      if (at >= layout_->span_in_slot(slot.layer, matrix)) target.matrix = matrix;
    }
    return target;
  }
  return std::nullopt;
}

void Witness::accept(const ReadRequest& request) {
  if (request.tag >= flights_.size()) flights_.resize(request.tag + 1);
  Flight& flight = flights_[request.tag];
  if (flight.open) return accuse(fmt::format("I2: tag {} is given twice", request.tag));
  const auto target = target_of(request);
  if (!target) return accuse("I10: a read goes to memory that isn't a slot's");
  const Slot& slot = (*pool_)[target->slot];
  if (slot.state != SlotState::kReading || slot.pins != 0)
    accuse(fmt::format("I5: slot {} is given to a drive though it isn't being read",
                       target->slot.value));
  flight = {request, clock_.now_ns(), target->slot,
            piece_of(slot.layer, slot.expert, target->matrix), true};
  ++writers_[target->slot.value];
  ++outstanding_;
}

size_t Witness::submit(std::span<const ReadRequest> requests) {
  if (poison_)
    for (const ReadRequest& request : requests) std::memset(request.buffer, kPoison, request.bytes);
  const size_t taken = inner_->submit(requests);
  for (const ReadRequest& request : requests.first(taken)) accept(request);
  return taken;
}

void Witness::see(const ReadCompletion& completion) {
  if (completion.tag >= flights_.size() || !flights_[completion.tag].open)
    return accuse(fmt::format("I2: tag {} comes back without having been given", completion.tag));
  Flight& flight = flights_[completion.tag];
  flight.open = false;
  --writers_[flight.slot.value];
  --outstanding_;
  stalled_ns_ += stall_of(clock_.now_ns() - flight.submitted_ns);
  PieceAnswers& piece = answers_[flight.piece];
  if (completion.result < 0) {
    stalled_ns_ += kBackoffNs;
    if (completion.result == -EAGAIN || completion.result == -EINTR) return;
    ++piece.errors;
    ++n_errors_;
    piece.last_errno = -completion.result;
    return;
  }
  const ReadRequest& request = flight.request;
  const auto bytes = static_cast<size_t>(completion.result);
  if (bytes < kSectorBytes) ++piece.no_progress;
  if (bytes < request.bytes) stalled_ns_ += kBackoffNs;
  const std::byte* truth = files_[request.file].data() + request.offset;
  if (std::memcmp(request.buffer, truth, bytes) == 0) return;
  ++piece.wrong;
  ++n_wrong_;
}

size_t Witness::reap(std::span<ReadCompletion> out, int64_t timeout_ns) {
  const size_t count = inner_->reap(out, timeout_ns);
  for (const ReadCompletion& completion : out.first(count)) see(completion);
  if (count != 0 || clock_.now_ns() != idle_since_ns_) {
    idle_reaps_ = 0;
    idle_since_ns_ = clock_.now_ns();
  } else if (++idle_reaps_ > kIdleReapsMax) {
    idle_reaps_ = 0;  // destructors reap too
    throw Hang("I3: the owner asks for completions again and again while time stands still");
  }
  return count;
}

int64_t Witness::stalled_ns() const {
  int64_t total = stalled_ns_;
  for (const Flight& flight : flights_)
    if (flight.open) total += stall_of(clock_.now_ns() - flight.submitted_ns);
  return total;
}

}  // namespace offstage::sim
