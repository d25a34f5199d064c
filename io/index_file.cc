#include "io/index_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

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

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

Error errno_error(const std::string& path, std::string_view what) {
  const int err = errno;
  return {error_code_of_errno(err), fmt::format("{}: {}: {}", path, what, std::strerror(err))};
}

Status read_exactly(const File& file, const std::string& path, uint64_t offset,
                    std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::pread(file.fd(), out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return tl::unexpected(errno_error(path, "can't be read"));
    if (got == 0)
      return make_error(ErrorCode::kTruncated, "{}: at byte {}: expected {} more bytes, actual 0",
                        path, offset, out.size());
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

Status write_exactly(const File& file, const std::string& path, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(file.fd(), bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return tl::unexpected(errno_error(path, "can't be written"));
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return {};
}

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

// The rename is durable once the folder is; where a file system refuses, the rename still stands.
void sync_folder(const std::filesystem::path& folder) {
  const File file(::open(folder.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  if (file.fd() >= 0) ::fsync(file.fd());
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
    const File file(::open(shard.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.fd() < 0) return tl::unexpected(errno_error(shard.path, "can't be opened"));
    struct stat status = {};
    if (::fstat(file.fd(), &status) != 0)
      return tl::unexpected(errno_error(shard.path, "can't be examined"));
    if (static_cast<uint64_t>(status.st_size) != shard.file_bytes)
      return make_error(ErrorCode::kCorrupt,
                        "{}: changed since it was opened: expected {} bytes, actual {}", shard.path,
                        shard.file_bytes, status.st_size);
    std::vector<std::byte> chunk(std::min<uint64_t>(shard.header_bytes, 1 << 20));
    uint64_t header_hash = 0;
    for (uint64_t offset = 0; offset < shard.header_bytes; offset += chunk.size()) {
      const uint64_t n = std::min<uint64_t>(chunk.size(), shard.header_bytes - offset);
      OFFSTAGE_TRY_VOID(read_exactly(file, shard.path, offset, std::span(chunk).first(n)));
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
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.fd() < 0) return tl::unexpected(errno_error(path, "can't be opened"));
  struct stat status = {};
  if (::fstat(file.fd(), &status) != 0)
    return tl::unexpected(errno_error(path, "can't be examined"));
  if (!S_ISREG(status.st_mode))
    return make_error(ErrorCode::kCorrupt, "{}: expected a regular file", path);
  FileHead head;
  OFFSTAGE_TRY_VOID(read_exactly(file, path, 0, std::as_writable_bytes(std::span(&head, 1))));
  OFFSTAGE_TRY_VOID(
      check_head(path, head, identity, pieces, static_cast<uint64_t>(status.st_size)));
  std::vector<std::byte> bytes(index_bytes(pieces));
  OFFSTAGE_TRY_VOID(read_exactly(file, path, 0, bytes));
  return decode(path, bytes);
}

Status write_index(const std::string& path, const IndexContents& contents) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code failed;
  if (!folder.empty()) std::filesystem::create_directories(folder, failed);
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  ::unlink(temporary.c_str());  // left by a process of the same number that died
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return tl::unexpected(errno_error(temporary, "can't be created"));
  const File file(fd);
  Status status = write_exactly(file, temporary, encode(contents));
  if (status && ::fsync(fd) != 0)
    status = tl::unexpected(errno_error(temporary, "can't be synced"));
  if (status && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = tl::unexpected(errno_error(path, "can't be renamed to"));
  if (!status) ::unlink(temporary.c_str());
  if (status) sync_folder(folder.empty() ? "." : folder);
  return status;
}

}  // namespace offstage
