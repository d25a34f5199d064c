#include "io/index_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "io/file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

constexpr std::array<char, 8> kMagic = {'O', 'F', 'F', 'S', 'T', 'I', 'D', 'X'};
constexpr uint32_t kVersion = 1;
constexpr uint8_t kStateMax = 2;
constexpr std::string_view kSuffix = ".offstage-index";

// The first 56 bytes, in the file's order and without gaps.
struct FileHead {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t tensors = 0;
  uint64_t pieces = 0;
  IndexIdentity identity;
};
static_assert(sizeof(FileHead) == 56);

uint64_t index_bytes(uint64_t pieces) { return sizeof(FileHead) + 9 * pieces + 8; }

std::vector<std::byte> encode(const IndexContents& contents) {
  FileHead head;
  head.tensors = contents.tensors;
  head.pieces = contents.hashes.size();
  head.identity = contents.identity;
  std::vector<std::byte> bytes;
  bytes.reserve(index_bytes(head.pieces));
  const auto append = [&](const void* data, size_t n) {
    const auto* begin = static_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), begin, begin + n);
  };
  append(&head, sizeof(head));
  append(contents.hashes.data(), 8 * contents.hashes.size());
  append(contents.states.data(), contents.states.size());
  const uint64_t sum = XXH3_64bits(bytes.data(), bytes.size());
  append(&sum, sizeof(sum));
  return bytes;
}

// What the head says, before anything is allocated for it.
Status check_head(const std::string& path, const FileHead& head, const IndexIdentity& identity,
                  uint64_t pieces, uint64_t file_bytes) {
  if (head.magic != kMagic)
    return make_error(ErrorCode::kCorrupt, "{}: at byte 0: expected the magic 'OFFSTIDX'", path);
  if (head.version != kVersion)
    return make_error(ErrorCode::kUnsupported, "{}: at byte 8: expected version {}, actual {}",
                      path, kVersion, head.version);
  if (head.identity != identity || head.pieces != pieces)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: it belongs to another model or an earlier state of this one ({})", path,
                      head.identity.file_bytes != identity.file_bytes       ? "size differs"
                      : head.identity.headers_hash != identity.headers_hash ? "header differs"
                      : head.identity.mtimes_hash != identity.mtimes_hash ? "time of change differs"
                                                                          : "layout differs");
  if (file_bytes != index_bytes(pieces))
    return make_error(ErrorCode::kTruncated, "{}: expected {} bytes for {} pieces, actual {}", path,
                      index_bytes(pieces), pieces, file_bytes);
  return {};
}

Result<IndexContents> decode(const std::string& path, std::span<const std::byte> bytes) {
  const size_t sum_offset = bytes.size() - 8;
  uint64_t sum;
  std::memcpy(&sum, bytes.data() + sum_offset, sizeof(sum));
  const uint64_t actual = XXH3_64bits(bytes.data(), sum_offset);
  if (sum != actual)
    return make_error(ErrorCode::kCorrupt,
                      "{}: damaged: at byte {}: expected hash {:016x}, actual {:016x}", path,
                      sum_offset, sum, actual);
  FileHead head;
  std::memcpy(&head, bytes.data(), sizeof(head));
  IndexContents contents;
  contents.identity = head.identity;
  contents.tensors = head.tensors;
  contents.hashes.resize(head.pieces);
  contents.states.resize(head.pieces);
  const std::byte* hashes = bytes.data() + sizeof(head);
  if (head.pieces != 0) {
    std::memcpy(contents.hashes.data(), hashes, 8 * head.pieces);
    std::memcpy(contents.states.data(), hashes + 8 * head.pieces, head.pieces);
  }
  for (size_t i = 0; i < contents.states.size(); ++i)
    if (contents.states[i] > kStateMax)
      return make_error(ErrorCode::kCorrupt,
                        "{}: at byte {}: expected a state of 0 to {}, actual {}", path,
                        sizeof(head) + 8 * head.pieces + i, kStateMax, contents.states[i]);
  return contents;
}

}  // namespace

std::optional<std::string> cache_folder() {
  // A relative $XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && xdg[0] == '/')
    return std::string(xdg) + "/offstage";
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/')
    return std::string(home) + "/.cache/offstage";
  return std::nullopt;
}

Result<IndexIdentity> identify(const GgufModel& model,
                               std::span<const uint32_t> pieces_per_tensor) {
  IndexIdentity identity;
  identity.layout_hash = XXH3_64bits(pieces_per_tensor.data(), pieces_per_tensor.size_bytes());
  // Hashes of hashes: no streaming state to allocate.
  for (const GgufShard& shard : model.shards()) {
    const UniqueFd file(::open(shard.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.valid()) return tl::unexpected(errno_error(shard.path, "can't be opened"));
    struct stat status = {};
    if (::fstat(file.get(), &status) != 0)
      return tl::unexpected(errno_error(shard.path, "can't be examined"));
    if (static_cast<uint64_t>(status.st_size) != shard.file_bytes)
      return make_error(ErrorCode::kCorrupt,
                        "{}: changed since it was opened: expected {} bytes, actual {}", shard.path,
                        shard.file_bytes, status.st_size);
    std::vector<std::byte> chunk(std::min<uint64_t>(shard.header_bytes, 1 << 20));
    uint64_t header_hash = 0;
    for (uint64_t offset = 0; offset < shard.header_bytes; offset += chunk.size()) {
      const uint64_t n = std::min<uint64_t>(chunk.size(), shard.header_bytes - offset);
      OFFSTAGE_TRY_VOID(read_exactly(file.get(), shard.path, offset, std::span(chunk).first(n)));
      header_hash = XXH3_64bits_withSeed(chunk.data(), n, header_hash);
    }
    const std::array<int64_t, 2> mtime = {status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
    identity.file_bytes += shard.file_bytes;
    identity.mtimes_hash = XXH3_64bits_withSeed(mtime.data(), sizeof(mtime), identity.mtimes_hash);
    identity.headers_hash =
        XXH3_64bits_withSeed(&header_hash, sizeof(header_hash), identity.headers_hash);
  }
  return identity;
}

std::vector<std::string> index_places(const std::string& model_path) {
  std::vector<std::string> places = {model_path + std::string(kSuffix)};
  const std::optional<std::string> folder = cache_folder();
  if (!folder) return places;
  // Two models of one name in different folders must not share an index.
  std::error_code failed;
  const std::filesystem::path absolute = std::filesystem::weakly_canonical(model_path, failed);
  const std::string identity = failed ? model_path : absolute.string();
  places.push_back(fmt::format("{}/{}-{:016x}{}", *folder,
                               std::filesystem::path(model_path).filename().string(),
                               XXH3_64bits(identity.data(), identity.size()), kSuffix));
  return places;
}

Result<IndexContents> read_index(const std::string& path, const IndexIdentity& identity,
                                 uint64_t pieces) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return tl::unexpected(errno_error(path, "can't be opened"));
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0)
    return tl::unexpected(errno_error(path, "can't be examined"));
  if (!S_ISREG(status.st_mode))
    return make_error(ErrorCode::kCorrupt, "{}: expected a regular file", path);
  FileHead head;
  OFFSTAGE_TRY_VOID(read_exactly(file.get(), path, 0, std::as_writable_bytes(std::span(&head, 1))));
  OFFSTAGE_TRY_VOID(
      check_head(path, head, identity, pieces, static_cast<uint64_t>(status.st_size)));
  std::vector<std::byte> bytes(index_bytes(pieces));
  OFFSTAGE_TRY_VOID(read_exactly(file.get(), path, 0, bytes));
  return decode(path, bytes);
}

Status write_index(const std::string& path, const IndexContents& contents) {
  return replace_file(path, encode(contents));
}

}  // namespace offstage
