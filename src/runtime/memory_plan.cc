#include "runtime/memory_plan.h"

#include <algorithm>

#include "base/checked_math.h"
#include "base/units.h"
#include "runtime/kv_cache.h"
#include "runtime/rotary.h"
#include "runtime/scratch.h"
#include "runtime/token_record.h"
#include "runtime/weights.h"

namespace offstage {
namespace {

// Stacks, rings, the hash index, the response's text, the allocator's slack after the plan, and the
// end of the slots' last huge page.
constexpr uint64_t kReserveBytes = 24ull << 20;

// What `run` uses before its plan, of a small vocabulary, and of each token beyond it: its text,
// its place in the table of merges and in their hashes. Fitted to what runs of four files used by
// then, of 4 k to 201 k tokens, and a little more than any of them did.
constexpr uint64_t kProgramBytes = 11ull << 20;
constexpr uint64_t kVocabularyEntryBytes = 195;
// The kernel charges a cgroup for page tables and socket buffers as well.
constexpr uint64_t kCgroupMarginBytes = 16ull << 20;
// What a process uses before the plan differs from start to start (0.2 MiB were seen): the floor
// that one start names must be enough for the next. Left unspent where the budget allows.
constexpr uint64_t kFloorMarginBytes = 1ull << 20;
constexpr uint32_t kChunkRowsMin = 16;
// A chunk that nobody asked for may use this share of the budget as scratch, and beyond the least
// chunk this share of what is left when everything has its least: the rest is for experts.
constexpr uint64_t kScratchShare = 16;
constexpr uint64_t kSpareShare = 8;
// As much more where a wider chunk saves more reading than the experts it displaces.
constexpr uint64_t kSlowDriveFactor = 2;
constexpr uint32_t kChunkRowsStep = 64;

uint64_t choose_budget(const PlanInputs& inputs, Notices& notices) {
  uint64_t budget =
      inputs.options.ram_bytes.value_or((inputs.available + inputs.resident_now) / 10 * 9);
  if (inputs.cgroup_limit) {
    const uint64_t limit =
        *inputs.cgroup_limit - std::min(*inputs.cgroup_limit, kCgroupMarginBytes);
    if (budget > limit) {
      if (inputs.options.ram_bytes)
        notices.add("ram", fmt::format("--ram {} is more than this cgroup's limit {}; {} is used",
                                       format_bytes(budget), format_bytes(*inputs.cgroup_limit),
                                       format_bytes(limit)));
      budget = limit;
    }
  }
  return budget;
}

struct ChunkRows {
  uint32_t asked = 0, least = 0;
};

// Every chunk reads nearly all experts, so a chunk should compute for as long as that takes: rows
// beyond it save nothing, and their scratch costs slots.
uint32_t balanced_rows(const PlanInputs& inputs) {
  if (inputs.drive_bytes_per_s <= 0 || inputs.row_ns <= 0) return 0;
  const double read_ns =
      static_cast<double>(inputs.layout.total_expert_bytes()) / inputs.drive_bytes_per_s * 1e9;
  const double rows = std::min(read_ns / inputs.row_ns, 1e6);
  return static_cast<uint32_t>(round_up(static_cast<uint64_t>(rows) + 1, kChunkRowsStep));
}

ChunkRows chunk_limits(const PlanInputs& inputs) {
  const RuntimeOptions& options = inputs.options;
  if (options.chunk_rows_fixed) {
    const uint32_t asked = std::clamp(options.chunk_rows, 1u, options.context);
    return {asked, asked};
  }
  const uint32_t most = std::max(1u, std::min(options.chunk_rows_max, options.context));
  const uint32_t asked = std::clamp(std::max(options.chunk_rows, balanced_rows(inputs)), 1u, most);
  return {asked, std::min(asked, kChunkRowsMin)};
}

// The widest chunk that leaves the experts room, an eighth less at a time from what was asked for.
uint32_t choose_chunk_rows(const ModelSpec& spec, ChunkRows rows, uint64_t scratch_bytes_max) {
  while (rows.asked > rows.least && Scratch::bytes_needed(spec, rows.asked) > scratch_bytes_max)
    rows.asked = std::max(rows.least, rows.asked - std::max(1u, rows.asked / 8));
  return rows.asked;
}

}  // namespace

uint64_t expected_process_bytes(const ModelSpec& spec, uint32_t context) {
  return kProgramBytes + spec.n_vocab * kVocabularyEntryBytes + context * sizeof(TokenRecord);
}

Result<MemoryPlan> plan_memory(const PlanInputs& inputs, Notices& notices) {
  const RuntimeOptions& options = inputs.options;
  if (options.context == 0 || options.chunk_rows == 0 || options.n_sequences == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "context, chunk and sequences must be at least 1 (found {}, {}, {})",
                      options.context, options.chunk_rows, options.n_sequences);
  MemoryPlan plan;
  plan.budget_bytes = choose_budget(inputs, notices);
  plan.process_bytes = inputs.resident_now + kReserveBytes;
  plan.dense_bytes = DenseStore::bytes_needed(inputs.spec, inputs.tensors);
  plan.kv_pages = KvCache::pages_for(options.context, options.n_sequences);
  plan.kv_bytes =
      plan.kv_pages * KvCache::shape_of(inputs.spec, options.k_type, options.v_type).page_bytes();
  plan.rotary_bytes = RotaryTable::bytes_needed(inputs.spec.rotary, options.context);
  const ChunkRows rows = chunk_limits(inputs);
  const uint64_t slot_floor = slot_floor_bytes(inputs.layout);
  const uint64_t scratch_floor = Scratch::bytes_needed(inputs.spec, rows.least);
  const uint64_t least = plan.planned_bytes() + scratch_floor + slot_floor;
  plan.floor_bytes = least + kFloorMarginBytes;
  if (plan.budget_bytes < least)
    return make_error(
        ErrorCode::kBudget,
        "a budget of {} is below the floor of {} ({} bytes): process {}, dense weights {}, KV {} "
        "for {} positions, scratch {}, expert slots {}. Raise --ram, or lower -c",
        format_bytes(plan.budget_bytes), format_bytes(plan.floor_bytes), plan.floor_bytes,
        format_bytes(plan.process_bytes), format_bytes(plan.dense_bytes),
        format_bytes(plan.kv_bytes), options.context, format_bytes(scratch_floor),
        format_bytes(slot_floor));
  plan.process_bytes += std::min(kFloorMarginBytes, plan.budget_bytes - least);
  const uint64_t spare = plan.budget_bytes - plan.planned_bytes() - scratch_floor - slot_floor;
  const uint64_t factor = rows.asked > options.chunk_rows ? kSlowDriveFactor : 1;
  plan.chunk_rows = choose_chunk_rows(inputs.spec, rows,
                                      std::min(factor * plan.budget_bytes / kScratchShare,
                                               scratch_floor + factor * spare / kSpareShare));
  plan.scratch_bytes = Scratch::bytes_needed(inputs.spec, plan.chunk_rows);
  OFFSTAGE_TRY(plan.slots, plan_slots(inputs.layout, inputs.spec.router.n_used,
                                      plan.budget_bytes - plan.planned_bytes()));
  plan.slot_bytes = plan.slots.bytes();
  return plan;
}

namespace {

std::string describe_slots(const MemoryPlan& plan, const ExpertLayout& layout) {
  if (layout.n_layers() == 0) return "experts         none  a dense model: everything is resident";
  const uint64_t n_experts = uint64_t{layout.n_layers()} * layout.n_experts();
  const auto [least, most] =
      std::minmax_element(plan.slots.kept_per_layer.begin(), plan.slots.kept_per_layer.end());
  const std::string kept =
      *least == *most ? fmt::format("{}", *least) : fmt::format("{}-{}", *least, *most);
  return fmt::format("experts  {:>11}  {} slots for {} experts ({:.0f} %), {} of {} kept per layer",
                     format_bytes(plan.slot_bytes), plan.slots.n_slots(), n_experts,
                     100.0 * plan.slots.n_slots() / static_cast<double>(n_experts), kept,
                     layout.n_experts());
}

}  // namespace

std::vector<std::string> describe(const MemoryPlan& plan, const ExpertLayout& layout) {
  return {
      fmt::format("budget   {:>11}  floor {}", format_bytes(plan.budget_bytes),
                  format_bytes(plan.floor_bytes)),
      fmt::format("process  {:>11}", format_bytes(plan.process_bytes)),
      fmt::format("dense    {:>11}", format_bytes(plan.dense_bytes)),
      fmt::format("kv       {:>11}", format_bytes(plan.kv_bytes + plan.rotary_bytes)),
      fmt::format("scratch  {:>11}  chunks of {} tokens", format_bytes(plan.scratch_bytes),
                  plan.chunk_rows),
      describe_slots(plan, layout),
  };
}

}  // namespace offstage
