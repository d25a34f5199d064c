// The model's file changes while it is open: overwritten, cut, replaced (RELIABILITY: data faults).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "cache/ram_tier.h"
#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::RigOptions;
using testing::TierRig;

constexpr ExpertId kExpert{4};
constexpr LayerIndex kLayer{1};

void overwrite(const std::string& path, const Extent& extent, std::span<const std::byte> bytes) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(extent.offset)),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(fsync(fd), 0);
  close(fd);
}

TEST(RamTierFileTest, OverwrittenBytesAreAnErrorUntilTheyAreBack) {
  TierRig rig({});
  const Extent extent = rig.layout().extent(kLayer, kExpert, ExpertMatrix::kDown);
  const auto truth = rig.truth(kLayer, kExpert, ExpertMatrix::kDown);
  overwrite(rig.path(), extent, std::vector<std::byte>(extent.bytes, std::byte{7}));
  const auto event = rig.decode(1, {2, 4});
  ASSERT_FALSE(event.status);
  EXPECT_EQ(event.status.error().code, ErrorCode::kHashMismatch);
  EXPECT_THAT(event.status.error().message,
              AllOf(HasSubstr(rig.path()), HasSubstr("'blk.1.ffn_down_exps.weight' expert 4"),
                    HasSubstr(fmt::format("offset {}", extent.offset)), HasSubstr("read twice")));
  EXPECT_EQ(event.wrong_bytes, 0u);
  rig.settle();
  rig.expect_decode(1, {2, 3});  // who doesn't need them isn't touched
  overwrite(rig.path(), extent, truth);
  rig.expect_decode(1, {4});
  rig.expect_baseline();
}

TEST(RamTierFileTest, ACutFileIsNamedWithBothLengths) {
  TierRig rig({});
  const uint64_t whole = std::filesystem::file_size(rig.path());
  const Extent last = rig.layout().extent(LayerIndex(2), ExpertId(7), ExpertMatrix::kDown);
  std::filesystem::resize_file(rig.path(), last.offset);
  const auto event = rig.decode(2, {7});
  ASSERT_FALSE(event.status);
  EXPECT_EQ(event.status.error().code, ErrorCode::kTruncated);
  EXPECT_THAT(event.status.error().message,
              AllOf(HasSubstr(rig.path()), HasSubstr(fmt::format("{} bytes long", whole))));
  EXPECT_EQ(event.wrong_bytes, 0u);
  rig.settle();
  rig.expect_decode(0, {1, 2});
  rig.expect_baseline();
}

// A new file under the old name (as a download does) is not the file that is open: its bytes are
// never seen, the run goes on with those it began with.
TEST(RamTierFileTest, AReplacedFileIsReadOnAsItWas) {
  TierRig rig({});
  rig.expect_decode(0, {1, 2});
  const std::string other = rig.path() + ".new";
  {
    const testing::TempFile bytes =
        testing::TempFile::random(std::filesystem::file_size(rig.path()), 99);
    std::filesystem::copy_file(bytes.path(), other);
  }
  std::filesystem::rename(other, rig.path());
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {5, 6, 7});
  EXPECT_EQ(rig.tier().counters().rereads, 0u);
  rig.expect_baseline();
}

}  // namespace
}  // namespace offstage
