#include "cache/route_npz.h"

#include <gtest/gtest.h>
#include <zip.h>

#include <map>

#include "cache/npy.h"
#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::TempFile;
using Members = std::map<std::string, std::string>;

// As NumPy writes it: the header padded to 64 bytes.
std::string npy(const std::string& descr, const std::string& shape, const std::string& data) {
  std::string text =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  text.append(64 - (10 + text.size() + 1) % 64, ' ');
  text += '\n';
  const auto n = static_cast<uint16_t>(text.size());
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(n & 255) +
         static_cast<char>(n >> 8) + text + data;
}

template <typename T>
std::string raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

// 3 tokens, 1 layer, 2 calls.
Members good() {
  const uint16_t half = f16_of_float(0.5f), quarter = f16_of_float(0.25f);
  return {{"experts.npy", npy("|u1", "3, 1, 2", raw<uint8_t>({1, 5, 0, 2, 5, 1}))},
          {"probs.npy",
           npy("<f2", "3, 1, 2", raw<uint16_t>({half, quarter, half, quarter, half, quarter}))},
          {"token.npy", npy("<i4", "3,", raw<int32_t>({7, 8, 9}))},
          {"seq_offsets.npy", npy("<i8", "3,", raw<int64_t>({0, 2, 3}))},
          {"else.npy", "left alone"}};
}

TempFile archive(const Members& members) {
  TempFile file({});
  unlink(file.path().c_str());
  zip_t* zip = zip_open(file.path().c_str(), ZIP_CREATE, nullptr);
  for (const auto& [name, bytes] : members)
    zip_file_add(zip, name.c_str(), zip_source_buffer(zip, bytes.data(), bytes.size(), 0), 0);
  EXPECT_EQ(zip_close(zip), 0);
  return file;
}

std::string error_of(const Members& members, std::optional<uint32_t> n_experts = {}) {
  const TempFile file = archive(members);
  const auto log = read_routes(file.path(), n_experts);
  return log ? "none" : log.error().message;
}

TEST(RouteNpz, ReadsWhatItShould) {
  const TempFile file = archive(good());
  const auto log = read_routes(file.path());
  ASSERT_TRUE(log) << log.error().message;
  EXPECT_EQ(log->shape, (RouteShape{1, 6, 2, true, true}));
  EXPECT_EQ(log->experts, (std::vector<uint16_t>{1, 5, 0, 2, 5, 1}));
  EXPECT_EQ(log->tokens, (std::vector<int32_t>{7, 8, 9}));
  EXPECT_EQ(log->starts, (std::vector<uint64_t>{0, 2}));
  EXPECT_EQ(log->weight(1, 0, 1), 0.25f);
  EXPECT_EQ(read_routes(file.path(), 64)->shape.n_experts, 64u);
}

TEST(RouteNpz, ExpertsAloneAreEnough) {
  const TempFile file = archive({{"experts.npy", npy("<u2", "2, 1, 1", raw<uint16_t>({300, 2}))}});
  const auto log = read_routes(file.path());
  ASSERT_TRUE(log) << log.error().message;
  EXPECT_EQ(log->shape, (RouteShape{1, 301, 1}));
  EXPECT_EQ(log->starts, (std::vector<uint64_t>{0}));
}

TEST(RouteNpz, ImportedTracesAreRecognised) {
  const TempFile file = archive(good()), ours({});
  const auto log = read_routes(file.path(), 8);
  ASSERT_TRUE(log);
  ASSERT_TRUE(write_route_log(ours.path(), *log));
  const auto again = read_routes(ours.path());
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->experts, log->experts);
  EXPECT_EQ(again->probs, log->probs);
  EXPECT_FALSE(read_routes(ours.path(), 9));  // it says 8
}

TEST(RouteNpz, ErrorsNameTheMember) {
  const auto with = [](const char* member, const std::string& bytes) {
    Members members = good();
    members[member] = bytes;
    return members;
  };
  const std::string two = raw<uint8_t>({1, 5});
  const struct {
    Members members;
    const char* expected;
  } cases[] = {
      {{{"probs.npy", "x"}}, "'experts.npy'"},
      {with("experts.npy", "short"), "at least 10 bytes"},
      {with("experts.npy", npy("|u1", "3, 2", two)), "[tokens, layers, experts called]"},
      {with("experts.npy", npy("<f4", "1, 1, 2", two)), "<f4"},
      {with("experts.npy", npy("|u1", "1, 1, 3", two)), "doesn't make 2 bytes"},
      {with("experts.npy", npy("|u1", "4294967296, 4294967296, 2", two)), "layers"},
      {with("experts.npy", npy("|u1", "9223372036854775808, 2, 1", two)), "doesn't make"},
      {with("experts.npy", npy("|u1", "1, 0, 2", "")), "layers"},
      {with("probs.npy", npy("<f2", "3, 1, 1", two)), "expected <f2 [3, 1, 2]"},
      {with("probs.npy", npy("<f4", "3, 1, 2", two)), "'probs.npy'"},
      {with("token.npy", npy("<i4", "2,", two)), "expected <i4 [3]"},
      {with("seq_offsets.npy", npy("<i8", "2,", raw<int64_t>({0, 2}))), "ascend from 0 to 3"},
      {with("seq_offsets.npy", npy("<i8", "2,", raw<int64_t>({1, 3}))), "ascend"},
      {with("seq_offsets.npy", npy("<i8", "3,", raw<int64_t>({0, 0, 3}))), "ascend"},
      {with("seq_offsets.npy", npy("<i8", "1,", raw<int64_t>({0}))), "sequences + 1"},
  };
  for (const auto& c : cases) {
    const std::string error = error_of(c.members);
    EXPECT_NE(error.find(c.expected), std::string::npos) << c.expected << " in " << error;
  }
  EXPECT_NE(error_of(good(), 5).find("expert 5 isn't there"), std::string::npos);
  EXPECT_NE(error_of(good(), 1).find("experts a layer"), std::string::npos);
}

// A small archive that unpacks to a lot.
TEST(RouteNpz, UnpacksToABoundedSize) {
  const Members bomb = {{"experts.npy", std::string(20u << 20, '\0')}};
  EXPECT_NE(error_of(bomb).find("at most"), std::string::npos) << error_of(bomb);
}

TEST(RouteNpz, DamagedArchivesAreErrors) {
  const TempFile file = archive(good());
  std::string bytes;
  const int fd = open(file.path().c_str(), O_RDONLY);
  char chunk[4096];
  for (ssize_t n; (n = read(fd, chunk, sizeof(chunk))) > 0;)
    bytes.append(chunk, static_cast<size_t>(n));
  close(fd);
  const auto read = [](const std::string& changed) {
    const TempFile damaged({});
    testing::rewrite(damaged.path(), std::as_bytes(std::span(changed)));
    return read_routes(damaged.path());
  };
  const auto whole = read(bytes);
  ASSERT_TRUE(whole) << whole.error().message;
  for (size_t n = 0; n < bytes.size(); n += 7) EXPECT_FALSE(read(bytes.substr(0, n))) << n;
  // A flipped bit may lie in a member that is left alone; otherwise it is seen.
  for (size_t at = 0; at < bytes.size(); at += 3) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 0x10);
    const auto log = read(changed);
    EXPECT_TRUE(!log || log->experts == whole->experts) << at;
  }
}

TEST(Npy, StrictHeaders) {
  const auto parse = [](const std::string& text) {
    return parse_npy_header(std::as_bytes(std::span(text.data(), text.size())), "a.npy");
  };
  const auto header = parse(npy("<f2", "12, 3", ""));
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->describe(), "<f2 [12, 3]");
  EXPECT_EQ(header->data_offset % 64, 0u);
  EXPECT_TRUE(parse(npy("|u1", "", ""))->shape.empty());
  const auto with_text = [](const std::string& text, char version = 1) {
    return std::string("\x93NUMPY", 6) + version + std::string(1, '\0') +
           static_cast<char>(text.size()) + std::string(version == 1 ? 1 : 3, '\0') + text;
  };
  EXPECT_TRUE(parse(with_text("{'descr':'|u1','fortran_order':False,'shape':(1,)}", 2)));
  for (const char* bad :
       {"", "{}", "{'descr': '|u1', 'fortran_order': False}", "{'descr': '|u1'",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (1,)}",
        "{'descr': '|u1', 'descr': '|u1', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), 'more': 1}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,2,3,4,5,6,7,8,9)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '\n', 'fortran_order': False, 'shape': (1,)}"})
    EXPECT_FALSE(parse(with_text(bad))) << bad;
  EXPECT_FALSE(parse(with_text("{'descr':'|u1','fortran_order':False,'shape':(1,)}", 4)));
}

}  // namespace
}  // namespace offstage
