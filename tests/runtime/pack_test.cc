// From pack to token: a store gives the bits that the file in place gives, and nothing that is
// wrong with it, or with one of its drives, stays unsaid.
#include "runtime/pack.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "base/check.h"
#include "runtime/verify.h"
#include "runtime_fixture.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::read_file;
using testing::write_file;

// Two size classes in one file.
const char* const kModel = "micro-qwen3moe-q4_k_m.gguf";

class PackTest : public ::testing::Test {
 protected:
  PackTest() {
    for (const char* drive : {"a", "b", "c"}) {
      folders_.push_back(folder_ / drive);
      std::filesystem::create_directory(folders_.back());
    }
    write_file(path_, read_file(model_file(kModel)));
  }

  Result<PackReport> pack(uint32_t n_drives = 2, const std::atomic<bool>* cancel = nullptr) {
    const auto file = ModelFile::open(path_);
    CHECK(file.has_value());
    IoEngineOptions io;
    io.paths = (*file)->paths();
    io.kind = IoEngineKind::kThreads;
    const auto engine = open_io_engine(io, notices_);
    CHECK(engine.has_value());
    PackOptions options;
    options.folders = {folders_.begin(), folders_.begin() + n_drives};
    options.cancel = cancel;
    return pack_model(**file, **engine, options, notices_);
  }
  void must_pack(uint32_t n_drives = 2) {
    const auto report = pack(n_drives);
    ASSERT_TRUE(report) << report.error().message;
  }

  // `n_drives` 0: in place.
  RuntimeOptions options(uint32_t n_drives) const {
    RuntimeOptions options = test_options(path_);
    options.drives = {folders_.begin(), folders_.begin() + n_drives};
    options.drive_grouping = DriveGrouping::kFolder;
    options.process_bytes = 64ull << 20;
    options.warm_start = false;
    return options;
  }
  std::vector<float> logits(const RuntimeOptions& options) const {
    const auto model = open_model(options);
    return model == nullptr ? std::vector<float>() : score(*model->runtime, prompt());
  }
  static std::vector<TokenId> prompt() {
    std::vector<TokenId> tokens;
    for (int i = 0; i < 40; ++i) tokens.push_back(static_cast<TokenId>(3 + i * 7 % 250));
    return tokens;
  }
  // What opening it, or the first tokens, say.
  std::string failure(const RuntimeOptions& options) {
    auto runtime = Runtime::open(options, notices_, {});
    if (!runtime) return runtime.error().message;
    Session session(**runtime, SequenceId(0));
    const Status status = session.score(
        prompt(), [](size_t, std::span<const float>) {}, nullptr);
    return status ? "" : status.error().message;
  }
  std::string store(uint32_t drive) const { return store_path(folders_[drive], path_); }
  void flip(const std::string& path, uint64_t offset) {
    auto bytes = read_file(path);
    bytes[offset] ^= std::byte{4};
    write_file(path, bytes);
  }
  bool has_notice(const std::string& text) const {
    for (const Notice& notice : notices_.list())
      if (notice.text.find(text) != std::string::npos) return true;
    return false;
  }

  testing::TempFolder folder_;
  std::vector<std::string> folders_;
  std::string path_ = folder_ / "model.gguf";
  Notices notices_;
};

TEST_F(PackTest, AStoreGivesTheBitsOfTheFileInPlace) {
  const std::vector<float> in_place = logits(options(0));
  for (const uint32_t n_drives : {1u, 2u, 3u}) {
    SCOPED_TRACE(n_drives);
    must_pack(n_drives);
    EXPECT_TRUE(same_bits(logits(options(n_drives)), in_place));
  }
  const auto model = open_model(options(3));
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(same_bits(score(*model->runtime, prompt()), in_place));
  EXPECT_EQ(model->runtime->hash_counts().confirmed, model->runtime->hash_counts().pieces);
  // The file's own drive gave the dense weights, the store's the experts, in equal shares.
  const auto drives = model->runtime->reads().drive_counters();
  ASSERT_EQ(drives.size(), 4u);
  EXPECT_GT(drives[3].bytes, 0u);
  EXPECT_GE(drives[1].bytes, drives[3].bytes);
  EXPECT_LE(drives[1].bytes, drives[3].bytes * 5 / 4);
}

TEST_F(PackTest, ASecondPackFindsNothingToDo) {
  must_pack();
  const auto again = pack();
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->was_there);
}

TEST_F(PackTest, ACancelledPackGoesOn) {
  const std::atomic<bool> cancel = true;
  const auto cancelled = pack(2, &cancel);
  ASSERT_FALSE(cancelled);
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  EXPECT_THAT(failure(options(2)), AllOf(HasSubstr(store(0)), HasSubstr("no store")));
  must_pack();
  EXPECT_EQ(failure(options(2)), "");
}

TEST_F(PackTest, AWrongWeightIsNotPacked) {
  must_pack(1);  // a complete index
  const auto file = ModelFile::open(path_);
  const Extent extent =
      (*file)->expert_layout().extent(LayerIndex(1), ExpertId(2), ExpertMatrix::kUp);
  const auto before = std::filesystem::last_write_time(path_);
  flip(path_, extent.offset + 5);
  std::filesystem::last_write_time(path_, before);  // rot, not an edit
  const auto report = pack(2);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, ErrorCode::kHashMismatch);
  EXPECT_THAT(report.error().message, AllOf(HasSubstr(path_), HasSubstr("expert 2")));
  EXPECT_FALSE(std::filesystem::exists(store(1)));
}

TEST_F(PackTest, AFlippedBitOfTheStoreNeverReachesAKernel) {
  must_pack();
  const auto file = ModelFile::open(path_, {folders_[0], folders_[1]});
  ASSERT_TRUE(file);
  const Extent extent =
      (*file)->expert_layout().extent(LayerIndex(0), ExpertId(1), ExpertMatrix::kGate);
  flip(store(1), extent.offset + 5);
  EXPECT_THAT(failure(options(2)),
              AllOf(HasSubstr(store(1)), HasSubstr("expert 1"), HasSubstr("don't match"),
                    HasSubstr(fmt::format("offset {}", extent.offset))));
  // And inspect --verify finds that one, and no other.
  IoEngineOptions io;
  io.paths = (*file)->paths();
  const auto engine = open_io_engine(io, notices_);
  auto index = (*file)->open_index(notices_);
  ASSERT_TRUE(index);
  const auto report = verify_model(**file, *index, **engine, notices_, nullptr, {});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->pieces, index->counts().pieces);
  EXPECT_EQ(report->mismatch_count, 1u);
  EXPECT_THAT(report->mismatches.front(), HasSubstr(store(1)));
}

TEST_F(PackTest, AStoreOfAnEarlierStateOfTheModelIsStale) {
  must_pack();
  // Other weights under the same header: an expert's, then a dense tensor's.
  const auto original = read_file(path_);
  const auto file = ModelFile::open(path_);
  const Extent expert =
      (*file)->expert_layout().extent(LayerIndex(0), ExpertId(3), ExpertMatrix::kDown);
  flip(path_, expert.offset);
  // Nothing that is read differs: the experts come from the store, which says so.
  EXPECT_EQ(failure(options(2)), "");
  EXPECT_TRUE(has_notice("time of change"));
  const GgufTensor* dense = (*file)->tensors.output_norm;
  write_file(path_, original);
  flip(path_, dense->offset);
  EXPECT_THAT(failure(options(2)), AllOf(HasSubstr(path_), HasSubstr(dense->name)));
  // An index of what the file is now contradicts the store.
  std::filesystem::remove(path_ + ".offstage-index");
  std::swap(folders_[0], folders_[2]);
  must_pack(1);
  std::swap(folders_[0], folders_[2]);
  EXPECT_THAT(failure(options(2)), AllOf(HasSubstr("stale"), HasSubstr(dense->name)));
}

TEST_F(PackTest, ADriveThatFailsOrStallsEndsTheRequestAndNamesItself) {
  must_pack();
  RuntimeOptions faulty = options(2);
  faulty.io_fault = "file=2,errno=ENODEV";
  EXPECT_THAT(failure(faulty), AllOf(HasSubstr(store(1)), HasSubstr("No such device")));
  faulty.io_fault = "file=2,never";
  faulty.read_deadline_ns = 800'000'000;
  EXPECT_THAT(failure(faulty), AllOf(HasSubstr(store(1)), HasSubstr("did not arrive within")));
  // What passes, passes unseen.
  faulty.read_deadline_ns = 30'000'000'000;
  faulty.io_fault = "file=2,every=5,errno=EIO,once; file=1,every=7,delay=2ms";
  EXPECT_EQ(failure(faulty), "");
}

TEST_F(PackTest, DenseModelsAndMissingFoldersAreRefused) {
  write_file(path_, read_file(model_file("qwen3-s1.gguf")));
  const auto dense = pack();
  ASSERT_FALSE(dense);
  EXPECT_EQ(dense.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(failure(options(2)), HasSubstr("no experts to pack"));
}

}  // namespace
}  // namespace offstage
