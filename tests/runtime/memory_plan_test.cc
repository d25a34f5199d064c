// Where the bytes of --ram go: the sum never exceeds the budget, and a floor that is named works.
#include "runtime/memory_plan.h"

#include <gmock/gmock.h>

#include "base/check.h"
#include "runtime/kv_cache.h"
#include "runtime/rotary.h"
#include "runtime/runtime.h"
#include "runtime/scratch.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1ull << 20;

class MemoryPlanTest : public ::testing::Test {
 protected:
  MemoryPlanTest()
      : file_(std::move(
            *ModelFile::open(std::string(OFFSTAGE_TEST_DATA) + "/models/qwen3moe-s1.gguf"))),
        layout_(file_->expert_layout()) {
    options_.context = 1000;
    options_.chunk_rows = 512;
  }
  Result<MemoryPlan> plan(std::optional<uint64_t> ram,
                          std::optional<uint64_t> cgroup = std::nullopt) {
    options_.ram_bytes = ram;
    return plan_memory({file_->spec, file_->tensors, layout_, options_, 10 * kMiB, 1000 * kMiB,
                        cgroup, drive_bytes_per_s_, row_ns_},
                       notices_);
  }
  uint64_t floor() {
    const auto refused = plan(1);
    CHECK(!refused);
    const std::string& text = refused.error().message;
    const size_t at = text.find(" (", text.find("floor of"));
    return std::stoull(text.substr(at + 2));
  }

  std::unique_ptr<ModelFile> file_;
  ExpertLayout layout_;
  RuntimeOptions options_;
  double drive_bytes_per_s_ = 0, row_ns_ = 0;
  Notices notices_;
};

TEST_F(MemoryPlanTest, PartsAreWhatTheyWillTakeAndSumToLessThanTheBudget) {
  for (uint64_t budget = floor(); budget < floor() + 40 * kMiB; budget += 777'777) {
    const auto p = plan(budget);
    ASSERT_TRUE(p) << p.error().message;
    EXPECT_EQ(p->budget_bytes, budget);
    EXPECT_LE(p->planned_bytes(), budget);
    EXPECT_EQ(p->dense_bytes, DenseStore::bytes_needed(file_->spec, file_->tensors));
    EXPECT_EQ(p->kv_pages, 16u);
    EXPECT_EQ(p->kv_bytes,
              16 * KvCache::shape_of(file_->spec, KvType::kF16, KvType::kF16).page_bytes());
    EXPECT_EQ(p->rotary_bytes, RotaryTable::bytes_needed(file_->spec.rotary, 1000));
    EXPECT_EQ(p->scratch_bytes, Scratch::bytes_needed(file_->spec, p->chunk_rows));
    EXPECT_EQ(p->slot_bytes, p->slots.bytes());
    EXPECT_GT(p->process_bytes, 10 * kMiB);
  }
}

TEST_F(MemoryPlanTest, TheFloorThatIsNamedRunsAndALittleMoreOfTheProcessToo) {
  for (const uint32_t chunk : {1u, 16u, 64u, 512u, 1000u}) {
    for (const bool fixed : {false, true}) {
      options_.chunk_rows = chunk;
      options_.chunk_rows_fixed = fixed;
      const uint64_t named = floor();
      const auto p = plan(named);
      ASSERT_TRUE(p) << "chunk " << chunk << ": " << p.error().message;
      EXPECT_EQ(p->floor_bytes, named);
      EXPECT_EQ(p->slot_bytes, slot_floor_bytes(layout_));  // and is not spent
      EXPECT_EQ(p->chunk_rows, fixed ? chunk : std::min(chunk, 16u));
      // The next start of the same process may find 512 KiB more resident.
      const auto later = plan_memory({file_->spec, file_->tensors, layout_, options_,
                                      10 * kMiB + 512 * 1024, 1000 * kMiB, std::nullopt},
                                     notices_);
      EXPECT_TRUE(later);
      EXPECT_FALSE(plan(named - 2 * kMiB));
    }
  }
}

TEST_F(MemoryPlanTest, BelowTheFloorIsRefusedWithItsParts) {
  const auto refused = plan(20 * kMiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kBudget);
  EXPECT_THAT(refused.error().message,
              AllOf(HasSubstr("20.00 MiB"), HasSubstr("floor of"), HasSubstr("bytes)"),
                    HasSubstr("dense weights"), HasSubstr("1000 positions"),
                    HasSubstr("expert slots"), HasSubstr("--ram")));
}

TEST_F(MemoryPlanTest, AChunkNobodyAskedForShrinks) {
  const auto narrow = plan(floor());
  const auto wide = plan(4000 * kMiB);
  ASSERT_TRUE(narrow && wide);
  EXPECT_EQ(narrow->chunk_rows, 16u);
  EXPECT_EQ(wide->chunk_rows, 512u);
  EXPECT_THAT(wide->slots.kept_per_layer, Each(file_->spec.router.n_experts));
  options_.context = 100;
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 100u);  // never more rows than positions
}

// A chunk computes for about as long as its experts take to be read, if RAM allows.
TEST_F(MemoryPlanTest, ASlowDriveWidensTheChunk) {
  options_.context = 4096;
  const auto experts = static_cast<double>(layout_.total_expert_bytes());
  row_ns_ = 1e6;
  drive_bytes_per_s_ = experts / 0.8;  // 800 rows
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 832u);
  drive_bytes_per_s_ = experts / 100;
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 4096u);
  options_.chunk_rows_max = 1000;  // -b
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 1000u);
  options_.chunk_rows_max = 40;  // no longer prompt will come
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 40u);
  options_.chunk_rows_max = 4096;
  drive_bytes_per_s_ = experts / 0.01;
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 512u);
  drive_bytes_per_s_ = experts / 100;
  EXPECT_EQ(plan(floor())->chunk_rows, 16u);
  options_.chunk_rows_fixed = true;  // -ub
  EXPECT_EQ(plan(4000 * kMiB)->chunk_rows, 512u);
}

TEST_F(MemoryPlanTest, AChunkThatWasAskedForIsKeptOrRefused) {
  options_.chunk_rows = 700;
  const uint64_t floor_of_16 = [&] {
    options_.chunk_rows_fixed = false;
    return floor();
  }();
  options_.chunk_rows_fixed = true;
  EXPECT_FALSE(plan(floor_of_16));
  const auto p = plan(floor());
  ASSERT_TRUE(p);
  EXPECT_EQ(p->chunk_rows, 700u);
}

TEST_F(MemoryPlanTest, ACgroupsLimitBindsAndIsAnnouncedWhenAskedForMore) {
  const auto lowered = plan(800 * kMiB, 300 * kMiB);
  ASSERT_TRUE(lowered);
  EXPECT_EQ(lowered->budget_bytes, 284 * kMiB);  // what the kernel charges beside it is left
  ASSERT_EQ(notices_.list().size(), 1u);
  EXPECT_EQ(notices_.list()[0].subject, "ram");
  EXPECT_THAT(notices_.list()[0].text,
              AllOf(HasSubstr("800.00 MiB"), HasSubstr("300.00 MiB"), HasSubstr("284.00 MiB")));
  const auto smaller = plan(200 * kMiB, 300 * kMiB);
  EXPECT_EQ(smaller->budget_bytes, 200 * kMiB);
  EXPECT_FALSE(plan(800 * kMiB, 8 * kMiB));
  EXPECT_EQ(plan(std::nullopt, 300 * kMiB)->budget_bytes, 284 * kMiB);
}

TEST_F(MemoryPlanTest, WithoutRamMostOfWhatIsFreeIsUsed) {
  const auto p = plan(std::nullopt);
  ASSERT_TRUE(p);
  EXPECT_EQ(p->budget_bytes, 1010 * kMiB / 10 * 9);
}

TEST_F(MemoryPlanTest, NothingIsNoContext) {
  options_.context = 0;
  const auto refused = plan(1000 * kMiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  options_.context = UINT32_MAX;  // refused by its size, not by an overflow
  EXPECT_EQ(plan(1000 * kMiB).error().code, ErrorCode::kBudget);
}

TEST_F(MemoryPlanTest, DescribesItselfInLines) {
  const auto p = plan(4000 * kMiB);
  const std::vector<std::string> lines = describe(*p, layout_);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_THAT(lines[0], AllOf(HasSubstr("3.91 GiB"), HasSubstr("floor")));
  EXPECT_THAT(lines[5], HasSubstr("(100 %)"));
}

// All resident: the floor is the plan, and what is left of the budget stays unspent.
TEST(DenseMemoryPlanTest, HasNoSlotsAndSaysSo) {
  const auto file = ModelFile::open(std::string(OFFSTAGE_TEST_DATA) + "/models/qwen3-s1.gguf");
  ASSERT_TRUE(file) << file.error().message;
  const ExpertLayout layout = (*file)->expert_layout();
  EXPECT_EQ(layout.n_layers(), 0u);
  EXPECT_EQ(layout.total_expert_bytes(), 0u);
  EXPECT_EQ((*file)->active_params(), (*file)->total_params());
  RuntimeOptions options;
  options.context = 128;
  options.ram_bytes = 1000 * kMiB;
  Notices notices;
  const auto plan = plan_memory(
      {(*file)->spec, (*file)->tensors, layout, options, 10 * kMiB, 2000 * kMiB, std::nullopt},
      notices);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->slot_bytes, 0u);
  EXPECT_GT(plan->dense_bytes, 0u);
  EXPECT_LE(plan->floor_bytes, plan->planned_bytes() + kMiB);
  EXPECT_THAT(describe(*plan, layout).back(), HasSubstr("dense model"));
}

}  // namespace
}  // namespace offstage
