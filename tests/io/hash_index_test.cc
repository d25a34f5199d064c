#include "io/hash_index.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/io/gguf_builder.h"

namespace offstage {
namespace {

using testing::Bytes;

constexpr HashVerdict kConfirmed = HashVerdict::kConfirmed;
constexpr HashVerdict kProvisional = HashVerdict::kProvisional;
constexpr HashVerdict kConflict = HashVerdict::kConflict;
constexpr HashVerdict kMismatch = HashVerdict::kMismatch;

TEST(HashPiece, IsXxh3WithSeed0) {
  // The published value of XXH3-64 for no bytes.
  EXPECT_EQ(hash_piece({}), 0x2d06800538d394c2u);
  Bytes bytes(1000, std::byte{1});
  const PieceHash hash = hash_piece(bytes);
  bytes[999] ^= std::byte{1};
  EXPECT_NE(hash_piece(bytes), hash);
}

TEST(HashVerdicts, EveryPath) {
  struct Path {
    const char* name;
    std::vector<PieceHash> reads;
    std::vector<HashVerdict> verdicts;
  };
  const Path paths[] = {
      {"TwoAgree", {7, 7, 7}, {kProvisional, kConfirmed, kConfirmed}},
      {"ThirdBacksFirst",
       {7, 8, 7, 7, 8},
       {kProvisional, kConflict, kConfirmed, kConfirmed, kMismatch}},
      {"ThirdBacksSecond",
       {7, 8, 8, 8, 7},
       {kProvisional, kConflict, kConfirmed, kConfirmed, kMismatch}},
      {"ThirdBacksNone",
       {7, 8, 9, 9, 8},
       {kProvisional, kConflict, kMismatch, kMismatch, kConfirmed}},
      {"ConfirmedThenWrong",
       {7, 7, 8, 8, 7},
       {kProvisional, kConfirmed, kMismatch, kMismatch, kConfirmed}},
      {"ZeroIsAHash", {0, 0, 1}, {kProvisional, kConfirmed, kMismatch}},
      {"ZeroInConflict", {0, 1, 0}, {kProvisional, kConflict, kConfirmed}},
  };
  for (const Path& path : paths) {
    SCOPED_TRACE(path.name);
    HashIndex index = HashIndex::in_memory({1, 3});
    std::vector<HashVerdict> verdicts;
    for (const PieceHash hash : path.reads) verdicts.push_back(index.judge({1, 2}, hash));
    EXPECT_EQ(verdicts, path.verdicts);
    // No other piece learned anything.
    EXPECT_EQ(index.judge({0, 0}, 1), kProvisional);
    EXPECT_EQ(index.judge({1, 1}, 1), kProvisional);
  }
}

TEST(HashVerdicts, AreCounted) {
  HashIndex index = HashIndex::in_memory({1, 2, 0, 1});
  EXPECT_EQ(index.counts().pieces, 4u);
  index.judge({0, 0}, 1);
  EXPECT_EQ(index.counts().provisional, 1u);
  index.judge({0, 0}, 2);
  EXPECT_EQ(index.counts().provisional, 0u);
  EXPECT_EQ(index.counts().conflicts, 1u);
  index.judge({0, 0}, 3);
  EXPECT_EQ(index.counts().mismatches, 1u);
  EXPECT_EQ(index.counts().confirmed, 0u);
  index.judge({0, 0}, 2);
  EXPECT_EQ(index.counts().confirmed, 1u);
  index.judge({1, 0}, 5);
  index.confirm({1, 0}, 6);  // what was verified beats what was read
  index.confirm({1, 1}, 6);
  EXPECT_FALSE(index.complete());
  index.confirm({3, 0}, 6);
  index.confirm({3, 0}, 7);
  EXPECT_TRUE(index.complete());
  EXPECT_EQ(index.counts().confirmed, 4u);
  EXPECT_EQ(index.counts().provisional, 0u);
  EXPECT_EQ(index.judge({1, 0}, 5), kMismatch);
  EXPECT_EQ(index.judge({3, 0}, 7), kConfirmed);
}

TEST(HashVerdictsDeathTest, PieceThatIsntThereIsABug) {
  HashIndex index = HashIndex::in_memory({1, 2});
  EXPECT_DEATH(index.judge({1, 2}, 0), "CHECK");
  EXPECT_DEATH(index.judge({2, 0}, 0), "CHECK");
  EXPECT_DEATH(index.judge({0, 1}, 0), "CHECK");
}

}  // namespace
}  // namespace offstage
