// The file of cache/usage.h.
#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <array>
#include <cmath>
#include <cstring>

#include "cache/usage.h"
#include "io/file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

constexpr std::array<char, 8> kMagic = {'O', 'F', 'F', 'S', 'U', 'S', 'A', 'G'};
constexpr uint32_t kVersion = 1;
constexpr std::string_view kIndexSuffix = "-index", kUsageSuffix = "-usage";

// The first 64 bytes, in the file's order and without gaps.
struct FileHead {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t n_layers = 0, n_experts = 0;
  uint32_t zero = 0;
  IndexIdentity identity;
  double tokens = 0;
};
static_assert(sizeof(FileHead) == 64);

Status check_head(const std::string& path, const FileHead& head, const IndexIdentity& identity,
                  uint32_t n_layers, uint32_t n_experts) {
  if (head.magic != kMagic)
    return make_error(ErrorCode::kCorrupt, "{}: at byte 0: expected the magic 'OFFSUSAG'", path);
  if (head.version != kVersion)
    return make_error(ErrorCode::kUnsupported, "{}: at byte 8: expected version {}, actual {}",
                      path, kVersion, head.version);
  if (head.identity != identity || head.n_layers != n_layers || head.n_experts != n_experts)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: it belongs to another model or an earlier state of this one", path);
  if (!std::isfinite(head.tokens) || head.tokens < 0)
    return make_error(ErrorCode::kCorrupt, "{}: at byte 56: expected a count of tokens, actual {}",
                      path, head.tokens);
  return {};
}

}  // namespace

std::vector<std::string> usage_places(const std::string& model_path) {
  std::vector<std::string> places = index_places(model_path);
  for (std::string& place : places)
    place.replace(place.size() - kIndexSuffix.size(), kIndexSuffix.size(), kUsageSuffix);
  return places;
}

Result<ExpertUsage> read_usage(const std::string& path, const IndexIdentity& identity,
                               uint32_t n_layers, uint32_t n_experts) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return tl::unexpected(errno_error(path, "can't be opened"));
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0)
    return tl::unexpected(errno_error(path, "can't be examined"));
  const size_t calls = size_t{n_layers} * n_experts;
  const size_t expected = sizeof(FileHead) + 4 * calls + 8;
  if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != expected)
    return make_error(ErrorCode::kTruncated, "{}: expected a file of {} bytes, actual {}", path,
                      expected, status.st_size);
  std::vector<std::byte> bytes(expected);
  OFFSTAGE_TRY_VOID(read_exactly(fd.get(), path, 0, bytes));
  FileHead head;
  std::memcpy(&head, bytes.data(), sizeof(head));
  OFFSTAGE_TRY_VOID(check_head(path, head, identity, n_layers, n_experts));
  uint64_t sum = 0;
  std::memcpy(&sum, bytes.data() + expected - 8, 8);
  if (const uint64_t actual = XXH3_64bits(bytes.data(), expected - 8); sum != actual)
    return make_error(ErrorCode::kCorrupt,
                      "{}: damaged: at byte {}: expected hash {:016x}, actual {:016x}", path,
                      expected - 8, sum, actual);
  ExpertUsage usage = {n_layers, n_experts, head.tokens, std::vector<float>(calls)};
  std::memcpy(usage.calls.data(), bytes.data() + sizeof(head), 4 * calls);
  for (size_t i = 0; i < calls; ++i)
    if (!std::isfinite(usage.calls[i]) || usage.calls[i] < 0)
      return make_error(ErrorCode::kCorrupt, "{}: at byte {}: expected a count, actual {}", path,
                        sizeof(head) + 4 * i, usage.calls[i]);
  return usage;
}

Status write_usage(const std::string& path, const IndexIdentity& identity,
                   const ExpertUsage& usage) {
  FileHead head;
  head.n_layers = usage.n_layers;
  head.n_experts = usage.n_experts;
  head.identity = identity;
  head.tokens = usage.tokens;
  std::vector<std::byte> bytes(sizeof(head) + 4 * usage.calls.size() + 8);
  std::memcpy(bytes.data(), &head, sizeof(head));
  std::memcpy(bytes.data() + sizeof(head), usage.calls.data(), 4 * usage.calls.size());
  const uint64_t sum = XXH3_64bits(bytes.data(), bytes.size() - 8);
  std::memcpy(bytes.data() + bytes.size() - 8, &sum, 8);
  return replace_file(path, bytes);
}

}  // namespace offstage
