// One bad GGUF file of the named list: how it is made, and what its error must say.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>

#include "io/gguf.h"
#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage::testing {

struct Bad {
  Bytes bytes;
  std::string subject;  // with which the message goes on after the file's name
  uint64_t offset;
};

struct BadFile {
  const char* name;
  ErrorCode code;
  std::function<Bad()> make;
  const char* detail;
};

inline void PrintTo(const BadFile& file, std::ostream* out) { *out << file.name; }

inline Bytes tiny() { return tiny_model().build(); }

// The tiny model with one number changed at `offset(builder)`.
template <typename T>
Bad patch(std::string subject, const std::function<uint64_t(const GgufBuilder&)>& offset, T value) {
  GgufBuilder builder = tiny_model();
  Bytes bytes = builder.build();
  patch_number(bytes, offset(builder), value);
  return {bytes, std::move(subject), offset(builder)};
}

inline int64_t cpu_ns() {
  timespec now;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

inline void expect_named_error(const BadFile& file) {
  const Bad bad = file.make();
  const TempFolder folder;
  const std::string path = folder / "bad.gguf";
  write_file(path, bad.bytes);
  const int64_t begin = cpu_ns();
  const Result<GgufModel> opened = GgufModel::open(path);
  EXPECT_LT(cpu_ns() - begin, 100'000'000);
  ASSERT_FALSE(opened);
  const Error& error = opened.error();
  EXPECT_EQ(error_code_name(error.code), error_code_name(file.code)) << error.message;
  const std::string where = fmt::format("{}: {} at byte {}: ", path, bad.subject, bad.offset);
  EXPECT_EQ(error.message.substr(0, where.size()), where) << error.message;
  EXPECT_THAT(error.message, ::testing::HasSubstr("expected"));
  EXPECT_THAT(error.message, ::testing::HasSubstr(file.detail));
  const Result<GgufModel> parsed = GgufModel::parse(path, bad.bytes, bad.bytes.size());
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().message, error.message) << "in memory and from a file alike";
}

}  // namespace offstage::testing
