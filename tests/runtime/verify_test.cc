// Reading a whole model against its index: what is missing is filled, what differs is named.
#include "runtime/verify.h"

#include <gmock/gmock.h>

#include "base/check.h"
#include "io/fault.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class VerifyTest : public ::testing::Test {
 protected:
  VerifyTest() {
    testing::write_file(
        path_, testing::read_file(std::string(OFFSTAGE_TEST_DATA) + "/models/olmoe-s1.gguf"));
    file_ = std::move(*ModelFile::open(path_));
    index_.emplace(HashIndex::in_memory(file_->pieces_per_tensor()));
  }
  Result<VerifyReport> verify(const char* faults = "", const std::atomic<bool>* cancel = nullptr) {
    IoEngineOptions io;
    io.paths = file_->paths();
    io.kind = IoEngineKind::kThreads;
    auto engine = open_io_engine(io, notices_);
    CHECK(engine.has_value());
    if (*faults != 0)
      *engine =
          std::make_unique<FaultEngine>(std::move(*engine), *parse_fault_plan(faults), clock_);
    progress_.clear();
    return verify_model(*file_, *index_, **engine, notices_, cancel,
                        [&](uint64_t done, uint64_t total) {
                          progress_.push_back({done, total});
                        });
  }
  VerifyReport verified(const char* faults = "") {
    const auto report = verify(faults);
    EXPECT_TRUE(report) << (report ? "" : report.error().message);
    return report.value_or(VerifyReport());
  }
  void flip(uint64_t offset) {
    auto bytes = testing::read_file(path_);
    bytes[offset] ^= std::byte{4};
    testing::write_file(path_, bytes);
  }

  testing::TempFolder folder_;
  std::string path_ = folder_ / "model.gguf";
  std::unique_ptr<ModelFile> file_;
  std::optional<HashIndex> index_;
  SteadyClock clock_;
  Notices notices_;
  std::vector<std::pair<uint64_t, uint64_t>> progress_;
};

TEST_F(VerifyTest, FillsTheIndexOnceAndAgreesFromThenOn) {
  const VerifyReport first = verified();
  EXPECT_TRUE(index_->complete());
  EXPECT_EQ(first.added, first.pieces);
  EXPECT_EQ(first.already_known, 0u);
  EXPECT_EQ(first.pieces, index_->counts().pieces);
  uint64_t bytes = 0;
  for (const GgufTensor& tensor : file_->gguf.tensors()) bytes += tensor.bytes;
  EXPECT_EQ(first.bytes, bytes);
  ASSERT_FALSE(progress_.empty());
  EXPECT_EQ(progress_.back(), std::pair(bytes, bytes));
  const VerifyReport second = verified();
  EXPECT_EQ(second.added, 0u);
  EXPECT_EQ(second.already_known, first.pieces);
  EXPECT_EQ(second.mismatch_count, 0u);
}

TEST_F(VerifyTest, AProvisionalPieceIsConfirmed) {
  const ExpertLayout layout = file_->expert_layout();
  const PieceId piece = layout.piece(LayerIndex(0), ExpertId(1), ExpertMatrix::kUp);
  const Extent extent = layout.extent(LayerIndex(0), ExpertId(1), ExpertMatrix::kUp);
  const auto bytes = testing::read_file(path_);
  index_->judge(piece, hash_piece(std::span(bytes).subspan(extent.offset, extent.bytes)));
  const VerifyReport report = verified();
  EXPECT_EQ(report.added, report.pieces);
  EXPECT_TRUE(index_->complete());
}

TEST_F(VerifyTest, AProvisionalHashThatWasWrongIsCorrected) {
  index_->judge({0, 0}, 0x1234);
  const VerifyReport report = verified();
  EXPECT_EQ(report.mismatch_count, 0u);
  EXPECT_TRUE(index_->complete());
  EXPECT_EQ(verified().mismatch_count, 0u);
}

TEST_F(VerifyTest, AFlippedBitIsFoundAndNamed) {
  verified();
  const ExpertLayout layout = file_->expert_layout();
  const Extent extent = layout.extent(LayerIndex(1), ExpertId(3), ExpertMatrix::kDown);
  flip(extent.offset + extent.bytes - 1);
  const VerifyReport report = verified();
  EXPECT_EQ(report.mismatch_count, 1u);
  EXPECT_EQ(report.pieces, index_->counts().pieces);
  ASSERT_THAT(report.mismatches, SizeIs(1));
  EXPECT_THAT(report.mismatches[0],
              AllOf(HasSubstr(path_), HasSubstr("blk.1.ffn_down_exps.weight"),
                    HasSubstr("expert 3"), HasSubstr(fmt::format("offset {}", extent.offset))));
}

TEST_F(VerifyTest, AllTheDamageIsCountedAndAHundredAreNamed) {
  verified();
  auto bytes = testing::read_file(path_);
  for (const GgufTensor& tensor : file_->gguf.tensors())
    for (uint64_t at = tensor.offset; at < tensor.offset + tensor.bytes; at += 64)
      bytes[at] ^= std::byte{1};
  testing::write_file(path_, bytes);
  const VerifyReport report = verified();
  EXPECT_EQ(report.mismatch_count, report.pieces);
  EXPECT_EQ(report.mismatches.size(), std::min<uint64_t>(report.pieces, 100));
}

TEST_F(VerifyTest, AReadThatWasWrongOnceIsNoMismatch) {
  verified();
  const VerifyReport report = verified("nth=2,corrupt=zeros;nth=9,corrupt=elsewhere");
  EXPECT_EQ(report.mismatch_count, 0u);
  EXPECT_EQ(report.already_known, report.pieces);
}

// Every read of the first tensor's data differs from the one before: reported, not read for ever.
TEST_F(VerifyTest, ADriveThatNeverAgreesWithItselfIsAMismatch) {
  verified();
  const VerifyReport report = verified("corrupt=flip");
  EXPECT_GT(report.mismatch_count, 0u);
  EXPECT_EQ(report.pieces, index_->counts().pieces);
}

TEST_F(VerifyTest, AReadThatFailsForGoodIsAnError) {
  const auto report = verify("from=20,errno=EIO");
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, ErrorCode::kIo);
  EXPECT_THAT(report.error().message, AllOf(HasSubstr(path_), HasSubstr("offset")));
}

TEST_F(VerifyTest, CancelEndsIt) {
  const std::atomic<bool> cancel = true;
  const auto report = verify("", &cancel);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, ErrorCode::kCancelled);
  EXPECT_THAT(index_->counts().mismatches, 0u);
}

}  // namespace
}  // namespace offstage
