#include "io/whole_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "io/file.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

size_t files_in(const std::string& folder) {
  const std::filesystem::directory_iterator files(folder);
  return static_cast<size_t>(std::distance(begin(files), end(files)));
}

TEST(WholeFile, IsReplacedInAFolderThatIsMade) {
  const TempFolder folder;
  const std::string path = folder / "new/kept";
  for (const std::string_view text : {"first, the longer one", "second"}) {
    const Status status = replace_file(path, text);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(text_of(path), text);
  }
  EXPECT_EQ(files_in(folder / "new"), 1u);  // nothing temporary
}

TEST(WholeFile, WhatADeadProcessLeftIsNoObstacle) {
  const TempFolder folder;
  const std::string path = folder / "kept";
  std::ofstream(temporary_name(path)) << "half of";
  EXPECT_TRUE(replace_file(path, "all of it"));
  EXPECT_EQ(text_of(path), "all of it");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

// The name is taken by what no file can replace.
TEST(WholeFile, AFailureLeavesWhatWasThere) {
  const TempFolder folder;
  const std::string path = folder / "kept";
  std::filesystem::create_directories(path + "/inside");
  const Status status = replace_file(path, "text");
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr(path + ": can't be renamed to: "));
  EXPECT_TRUE(std::filesystem::is_directory(path + "/inside"));
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(WholeFile, SaysWhereItEnds) {
  const TempFolder folder;
  const std::string path = folder / "short";
  ASSERT_TRUE(replace_file(path, "0123456789"));
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<std::byte, 4> out = {};
  EXPECT_TRUE(read_exactly(fd.get(), path, 6, out));
  EXPECT_EQ(out[0], std::byte{'6'});
  const Status status = read_exactly(fd.get(), path, 8, out);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kTruncated);
  EXPECT_EQ(status.error().message, path + ": at byte 10: expected 2 more bytes, actual 0");
}

TEST(WholeFile, NamesWhatCannotBeWritten) {
  const TempFolder folder;
  const std::string path = folder / "closed";
  ASSERT_TRUE(replace_file(path, "text"));
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const Status status = write_exactly(fd.get(), path, 4, std::as_bytes(std::span("more", 4)));
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr(path + ": 4 bytes at byte 4 can't be written: "));
}

}  // namespace
}  // namespace offstage
