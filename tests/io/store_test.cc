// Packed stores as files: written whole or not there, gone on with after a stop, and every way in
// which one can be wrong found at open and named.
#include "io/store.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "base/check.h"
#include "io/store_writer.h"
#include "tests/io/gguf_files.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using testing::Bytes;
using ::testing::HasSubstr;
using testing::read_file;
using testing::write_file;

constexpr uint64_t kPieceBytes[] = {4096, 9'001, 100, 65'536, 30'000, 8'192};
constexpr uint32_t kPieces = 6;
constexpr uint64_t kHashes = 8;  // two dense ones beside them
const char* const kModel = "/somewhere/model.gguf";

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() {
    for (const char* drive : {"a", "b", "c"}) {
      folders_.push_back(folder_ / drive);
      std::filesystem::create_directory(folders_.back());
    }
    for (uint32_t i = 0; i < kPieces; ++i)
      pieces_.push_back(testing::random_bytes(kPieceBytes[i], i + 1));
    for (uint64_t i = 0; i < kHashes; ++i) hashes_.push_back(1000 + i);
  }

  static StoreLayout layout(uint32_t n_drives = 3, uint64_t model_bytes = 123,
                            uint32_t version = kStoreVersion) {
    std::vector<StorePiece> pieces;
    for (uint32_t i = 0; i < kPieces; ++i) pieces.push_back({{1, i}, kPieceBytes[i]});
    return lay_out_store({model_bytes, 1, 2, 3}, kHashes, std::move(pieces), n_drives, version);
  }
  std::vector<std::string> folders(uint32_t n_drives = 3) const {
    return {folders_.begin(), folders_.begin() + n_drives};
  }
  Result<StoreWriter> writer(const StoreLayout& layout) {
    return StoreWriter::open(layout, folders(layout.n_drives), kModel, notices_);
  }
  void write(StoreWriter& writer, uint32_t begin, uint32_t end) {
    for (uint32_t i = begin; i < end; ++i) ASSERT_TRUE(writer.write(i, pieces_[i], 500 + i));
  }
  void pack(const StoreLayout& layout) {
    auto packing = writer(layout);
    ASSERT_TRUE(packing) << packing.error().message;
    write(*packing, 0, kPieces);
    const Status finished = packing->finish(hashes_);
    ASSERT_TRUE(finished) << finished.error().message;
  }
  std::string path(uint32_t drive) const { return store_path(folders_[drive], kModel); }
  Result<Store> open() const { return open_store(layout(), folders_, kModel); }
  void expect_open_fails(ErrorCode code, const std::string& file, const std::string& text) const {
    const auto store = open();
    ASSERT_FALSE(store);
    EXPECT_EQ(store.error().code, code) << store.error().message;
    EXPECT_THAT(store.error().message, AllOf(HasSubstr(file), HasSubstr(text)));
  }
  // Every piece, put together from its stripes.
  void expect_right_bytes() const {
    const auto store = open();
    ASSERT_TRUE(store) << store.error().message;
    EXPECT_EQ(store->hashes, hashes_);
    for (uint32_t i = 0; i < kPieces; ++i) {
      const Extent& extent = store->layout.extents[i];
      Bytes found;
      for (uint32_t s = 0; s < stripe_count(extent); ++s) {
        const Extent part = stripe(extent, s);
        EXPECT_EQ(part.offset % kSectorBytes, 0u);
        const Bytes file = read_file(store->paths[part.file]);
        ASSERT_LE(part.offset + part.bytes, file.size());
        found.insert(found.end(), file.begin() + static_cast<ptrdiff_t>(part.offset),
                     file.begin() + static_cast<ptrdiff_t>(part.offset + part.bytes));
      }
      EXPECT_TRUE(found == pieces_[i]) << "piece " << i;
    }
  }
  size_t files_in(uint32_t drive) const {
    const std::filesystem::directory_iterator files(folders_[drive]);
    return static_cast<size_t>(std::distance(begin(files), end(files)));
  }
  std::string notices() const {
    std::string all;
    for (const Notice& notice : notices_.list()) all += notice.text + "\n";
    return all;
  }

  testing::TempFolder folder_;
  std::vector<std::string> folders_;
  std::vector<std::vector<std::byte>> pieces_;
  std::vector<PieceHash> hashes_;
  Notices notices_;
};

TEST_F(StoreTest, StripesAreEqualAndEveryByteIsThere) {
  pack(layout());
  expect_right_bytes();
  const StoreLayout stripes = layout();
  for (const Extent& extent : stripes.extents)
    EXPECT_LT(extent.stripe_bytes, extent.bytes / 3 + 1 + kSectorBytes);
  for (uint32_t d = 0; d < 3; ++d) {
    EXPECT_EQ(std::filesystem::file_size(path(d)), stripes.file_bytes);
    EXPECT_EQ(files_in(d), 1u);
  }
}

// Nine sectors over two drives are five and four: in the end both have read as much.
TEST_F(StoreTest, TheShortestStripeIsEachDrivesInTurn) {
  for (const auto& [n_drives, sectors] : {std::pair{2u, 9u}, {3u, 10u}, {4u, 13u}}) {
    constexpr uint32_t kTurns = 12;
    std::vector<StorePiece> pieces(kTurns, {{1, 0}, sectors * kSectorBytes});
    const StoreLayout turns = lay_out_store({}, kTurns, std::move(pieces), n_drives);
    std::vector<uint64_t> bytes(n_drives, 0);
    for (const Extent& extent : turns.extents)
      for (uint32_t s = 0; s < stripe_count(extent); ++s)
        bytes[stripe(extent, s).file] += stripe(extent, s).bytes;
    const uint64_t share = kTurns * sectors * kSectorBytes / n_drives;
    EXPECT_EQ(bytes, std::vector<uint64_t>(n_drives, share)) << n_drives;
  }
}

TEST_F(StoreTest, AnEarlierVersionIsRead) {
  const StoreLayout earlier = layout(3, 123, 1);
  pack(earlier);
  expect_right_bytes();
  EXPECT_EQ(open()->layout.version, 1u);
  EXPECT_EQ(open()->layout.extents, earlier.extents);
  EXPECT_NE(earlier.extents, layout().extents);
  EXPECT_FALSE(writer(layout())->is_done());  // another pack makes the new one
  const Bytes old = read_file(path(1));
  pack(layout());
  expect_right_bytes();
  write_file(path(1), old);
  expect_open_fails(ErrorCode::kCorrupt, path(1), "laid out differently");
}

TEST_F(StoreTest, ALaterVersionIsRefused) {
  pack(layout());
  Bytes file = read_file(path(0));
  file[8] = std::byte{kStoreVersion + 1};
  write_file(path(0), file);
  expect_open_fails(ErrorCode::kUnsupported, path(0), "expected version 1 to 2, actual 3");
}

TEST_F(StoreTest, TheOrderOfTheFoldersDoesNotMatter) {
  pack(layout());
  std::swap(folders_[0], folders_[2]);
  expect_right_bytes();
}

// What is on the drives after a kill: no writer's destructor does anything but let go.
TEST_F(StoreTest, AStoppedPackGoesOnFromItsLastCheckpoint) {
  {
    auto first = writer(layout());
    write(*first, 0, 3);
    ASSERT_TRUE(first->checkpoint());
    write(*first, 3, 4);
    EXPECT_FALSE(open());
  }
  auto second = writer(layout());
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_THAT(notices(), HasSubstr("3 of 6 pieces"));
  for (uint32_t i = 0; i < kPieces; ++i) EXPECT_EQ(second->has(i), i < 3);
  EXPECT_EQ(second->hash(2), 502u);
  write(*second, 3, kPieces);
  ASSERT_TRUE(second->finish(hashes_));
  expect_right_bytes();
  EXPECT_EQ(files_in(0), 1u);
}

TEST_F(StoreTest, AStoppedPackOfAnotherModelOrOverOtherDrivesIsBegunAnew) {
  {
    auto first = writer(layout());
    write(*first, 0, 3);
    ASSERT_TRUE(first->checkpoint());
  }
  auto other_model = writer(layout(3, 124));
  ASSERT_TRUE(other_model);
  EXPECT_FALSE(other_model->has(0));
  EXPECT_THAT(notices(), HasSubstr("begun anew"));
  other_model = tl::unexpected(Error{ErrorCode::kCancelled, ""});
  auto two_drives = writer(layout(2));
  ASSERT_TRUE(two_drives);
  EXPECT_FALSE(two_drives->has(0));
  EXPECT_EQ(files_in(1), 1u);  // the first one's half is gone
}

// Also what a kill between two renames leaves.
TEST_F(StoreTest, OneLostFileIsMadeAgainAndTheOthersAreLeftAlone) {
  pack(layout());
  const Bytes lost = read_file(path(1));
  const auto untouched = std::filesystem::last_write_time(path(0));
  std::filesystem::remove(path(1));
  pack(layout());
  EXPECT_TRUE(read_file(path(1)) == lost);
  EXPECT_EQ(std::filesystem::last_write_time(path(0)), untouched);
  expect_right_bytes();
  EXPECT_TRUE(writer(layout())->is_done());
}

TEST_F(StoreTest, ALostFileOfOtherHashesIsRefused) {
  pack(layout());
  std::filesystem::remove(path(1));
  auto again = writer(layout());
  write(*again, 0, kPieces);
  hashes_[4] = 1;
  const Status status = again->finish(hashes_);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kHashMismatch);
  EXPECT_THAT(status.error().message, HasSubstr(path(0)));
}

TEST_F(StoreTest, TwoPacksAtOnceAreOneTooMany) {
  const auto first = writer(layout());
  const auto second = writer(layout());
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().message, HasSubstr("another pack is writing"));
}

TEST_F(StoreTest, TooLittleRoomIsSaidInNumbersBeforeAnythingIsWritten) {
  const auto huge = writer(lay_out_store({1, 2, 3, 4}, kHashes, {{{1, 0}, 1ull << 50}}, 3));
  ASSERT_FALSE(huge);
  EXPECT_THAT(huge.error().message,
              AllOf(HasSubstr(folders_[0]), HasSubstr("are needed"), HasSubstr("are free")));
  EXPECT_EQ(files_in(0), 0u);
}

TEST_F(StoreTest, FoldersAreCheckedAndNamed) {
  folders_[1] = folders_[0] + "/../a";
  auto twice = writer(layout());
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().code, ErrorCode::kInvalidArgument);
  folders_[1] = folder_ / "nowhere";
  auto nowhere = writer(layout());
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(nowhere.error().message, HasSubstr("nowhere"));
}

TEST_F(StoreTest, FoldersOfOneDriveAreAnnounced) {
  pack(layout());
  EXPECT_THAT(notices(), HasSubstr("lie on one drive"));
}

TEST_F(StoreTest, MissingTruncatedAndSwappedFilesAreNamed) {
  pack(layout());
  const Bytes whole = read_file(path(1));
  for (const size_t bytes :
       {size_t{0}, size_t{50}, size_t{88}, size_t{120}, whole.size() / 2, whole.size() - 1}) {
    write_file(path(1), std::span(whole).first(bytes));
    expect_open_fails(ErrorCode::kTruncated, path(1), "");
  }
  Bytes longer = whole;
  longer.resize(whole.size() + 4096);
  write_file(path(1), longer);
  expect_open_fails(ErrorCode::kTruncated, path(1), std::to_string(whole.size()));
  write_file(path(1), read_file(path(0)));
  expect_open_fails(ErrorCode::kCorrupt, path(1), "drive 0 of 3, but so is " + path(0));
  std::filesystem::remove(path(1));
  expect_open_fails(ErrorCode::kNotFound, path(1), "offstage pack");
  std::filesystem::create_directory(path(1));
  expect_open_fails(ErrorCode::kCorrupt, path(1), "not a regular file");
}

TEST_F(StoreTest, EveryFlippedByteOfTheHeadIsFound) {
  pack(layout());
  const Bytes whole = read_file(path(2));
  for (size_t at = 0; at < sizeof(StoreHead) + 8 * kHashes + 8; ++at) {
    Bytes damaged = whole;
    damaged[at] ^= std::byte{0x10};
    write_file(path(2), damaged);
    const auto store = open();
    ASSERT_FALSE(store) << "byte " << at;
    EXPECT_THAT(store.error().message, HasSubstr(path(2)));
  }
}

TEST_F(StoreTest, FilesOfAnotherModelOrAnotherPackAreNamed) {
  pack(layout(3, 124));
  expect_open_fails(ErrorCode::kCorrupt, path(0), "expected a model of 123 bytes, actual 124");
  for (uint32_t d = 0; d < 3; ++d) std::filesystem::remove(path(d));
  pack(layout());
  const Bytes first = read_file(path(2));
  for (uint32_t d = 0; d < 3; ++d) std::filesystem::remove(path(d));
  hashes_[0] = 1;
  pack(layout());
  write_file(path(2), first);
  expect_open_fails(ErrorCode::kCorrupt, path(2), "another pack than " + path(1));
}

TEST_F(StoreTest, AnotherNumberOfDrivesIsNamed) {
  pack(layout());
  const auto store = open_store(layout(2), folders(2), kModel);
  ASSERT_FALSE(store);
  EXPECT_THAT(store.error().message, AllOf(HasSubstr("3 drives"), HasSubstr("2 are given")));
}

}  // namespace
}  // namespace offstage
