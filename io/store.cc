#include "io/store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "io/file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

constexpr std::string_view kStoreSuffix = ".offstage-store";

uint64_t head_bytes(uint64_t n_hashes) {
  return round_up(sizeof(StoreHead) + 8 * n_hashes + 8, kSectorBytes);
}

Status check_head(const std::string& path, const StoreHead& head, uint64_t file_bytes) {
  const StoreHead expected;
  if (head.magic != expected.magic)
    return make_error(ErrorCode::kCorrupt, "{}: at offset 0: expected the magic 'OFFSTORE'", path);
  if (head.version < 1 || head.version > kStoreVersion)
    return make_error(ErrorCode::kUnsupported,
                      "{}: at offset 8: expected version 1 to {}, actual {}", path, kStoreVersion,
                      head.version);
  // Before anything is allocated for what the head says.
  if (head.n_hashes > file_bytes / 8 || head_bytes(head.n_hashes) > file_bytes)
    return make_error(ErrorCode::kTruncated,
                      "{}: at offset 56: a head of {} hashes, but the file has {} bytes", path,
                      head.n_hashes, file_bytes);
  return {};
}

Status check_belongs(const std::string& path, const StoreHead& head, const StoreLayout& layout) {
  const IndexIdentity& expected = layout.model;
  const IndexIdentity& actual = head.model;
  if (actual.file_bytes != expected.file_bytes)
    return make_error(ErrorCode::kCorrupt,
                      "{}: at offset 24: made of another model, or an earlier state of this one: "
                      "expected a model of {} bytes, actual {}; pack it again",
                      path, expected.file_bytes, actual.file_bytes);
  if (actual.headers_hash != expected.headers_hash || actual.layout_hash != expected.layout_hash ||
      head.n_hashes != layout.n_hashes)
    return make_error(ErrorCode::kCorrupt,
                      "{}: at offset 40: made of another model, or an earlier state of this one: "
                      "expected header hash {:016x}, actual {:016x}; pack it again",
                      path, expected.headers_hash, actual.headers_hash);
  if (head.n_drives != layout.n_drives)
    return make_error(ErrorCode::kCorrupt,
                      "{}: at offset 12: packed over {} drives, but {} are given with --drive",
                      path, head.n_drives, layout.n_drives);
  if (head.layout_hash != layout.hash || head.file_bytes != layout.file_bytes)
    return make_error(ErrorCode::kCorrupt,
                      "{}: at offset 72: laid out differently: expected {:016x} and {} bytes, "
                      "actual {:016x} and {} bytes; pack it again",
                      path, layout.hash, layout.file_bytes, head.layout_hash, head.file_bytes);
  return {};
}

}  // namespace

StoreLayout lay_out_store(const IndexIdentity& model, uint64_t n_hashes,
                          std::vector<StorePiece> pieces, uint32_t n_drives, uint32_t version) {
  CHECK_GT(n_drives, 0u);
  CHECK_LE(n_drives, kStripesMax);
  const bool takes_turns = version > 1;
  StoreLayout layout{model, n_hashes, n_drives, std::move(pieces), {}, 0, 0, version};
  std::vector<uint64_t> facts = {takes_turns ? n_drives + (uint64_t{version} << 32) : n_drives};
  uint64_t offset = head_bytes(n_hashes);
  for (const StorePiece& piece : layout.pieces) {
    const uint64_t stripe_bytes = round_up((piece.bytes + n_drives - 1) / n_drives, kSectorBytes);
    const auto turn = takes_turns ? static_cast<uint32_t>(layout.extents.size()) : 0;
    layout.extents.push_back({0, offset, piece.bytes, stripe_bytes, turn});
    offset += stripe_bytes;
    facts.push_back(piece.bytes);
  }
  layout.file_bytes = offset;
  layout.hash = hash_piece(std::as_bytes(std::span(facts)));
  return layout;
}

std::string store_path(const std::string& folder, const std::string& model_path) {
  const std::string name = std::filesystem::path(model_path).filename().string();
  return fmt::format("{}/{}{}", folder, name, kStoreSuffix);
}

StoreHead store_head(const StoreLayout& layout, std::span<const PieceHash> hashes, uint32_t drive) {
  CHECK_EQ(hashes.size(), layout.n_hashes);
  StoreHead head;
  head.version = layout.version;
  head.n_drives = layout.n_drives;
  head.drive = drive;
  head.model = layout.model;
  head.n_hashes = layout.n_hashes;
  head.file_bytes = layout.file_bytes;
  head.layout_hash = layout.hash;
  // The same in all files: of everything but the drive's number.
  std::vector<uint64_t> facts = {hash_piece(std::as_bytes(std::span(&head.model, 1))), layout.hash,
                                 hash_piece(std::as_bytes(hashes))};
  head.set = hash_piece(std::as_bytes(std::span(facts)));
  return head;
}

std::vector<std::byte> encode_store_head(const StoreHead& head, std::span<const PieceHash> hashes) {
  std::vector<std::byte> bytes(head_bytes(hashes.size()));
  const size_t sum_offset = sizeof(head) + hashes.size_bytes();
  std::memcpy(bytes.data(), &head, sizeof(head));
  std::memcpy(bytes.data() + sizeof(head), hashes.data(), hashes.size_bytes());
  const uint64_t sum = hash_piece(std::span(bytes).first(sum_offset));
  std::memcpy(bytes.data() + sum_offset, &sum, sizeof(sum));
  return bytes;
}

Result<StoreFile> read_store_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info = {};
  if (!fd.valid() || ::fstat(fd.get(), &info) != 0)
    return tl::unexpected(errno_error(path, "cannot open"));
  if (!S_ISREG(info.st_mode))
    return make_error(ErrorCode::kCorrupt, "{}: not a regular file", path);
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  StoreFile file;
  OFFSTAGE_TRY_VOID(
      read_exactly(fd.get(), path, 0, std::as_writable_bytes(std::span(&file.head, 1))));
  OFFSTAGE_TRY_VOID(check_head(path, file.head, file_bytes));
  const uint64_t sum_offset = sizeof(StoreHead) + 8 * file.head.n_hashes;
  std::vector<std::byte> bytes(sum_offset + 8);
  OFFSTAGE_TRY_VOID(read_exactly(fd.get(), path, 0, bytes));
  uint64_t sum;
  std::memcpy(&sum, bytes.data() + sum_offset, sizeof(sum));
  const uint64_t actual = hash_piece(std::span(bytes).first(sum_offset));
  if (sum != actual)
    return make_error(ErrorCode::kCorrupt,
                      "{}: damaged head: at offset {}: expected hash {:016x}, actual {:016x}", path,
                      sum_offset, sum, actual);
  if (file.head.n_drives == 0 || file.head.n_drives > kStripesMax ||
      file.head.drive >= file.head.n_drives)
    return make_error(ErrorCode::kCorrupt, "{}: at offset 12: drive {} of {} can't be", path,
                      file.head.drive, file.head.n_drives);
  if (file_bytes != file.head.file_bytes)
    return make_error(ErrorCode::kTruncated, "{}: expected {} bytes, actual {}; pack it again",
                      path, file.head.file_bytes, file_bytes);
  file.hashes.resize(file.head.n_hashes);
  std::memcpy(file.hashes.data(), bytes.data() + sizeof(StoreHead), 8 * file.hashes.size());
  return file;
}

Result<Store> open_store(StoreLayout layout, const std::vector<std::string>& folders,
                         const std::string& model_path) {
  Store store;
  store.paths.resize(layout.n_drives);
  uint64_t set = 0;
  std::string set_path;
  for (const std::string& folder : folders) {
    const std::string path = store_path(folder, model_path);
    auto file = read_store_file(path);
    if (!file && file.error().code == ErrorCode::kNotFound)
      return make_error(ErrorCode::kNotFound,
                        "{}: no store of the model is here; `offstage pack` makes one", path);
    if (!file) return tl::unexpected(std::move(file).error());
    if (set_path.empty() && file->head.version != layout.version)
      layout = lay_out_store(layout.model, layout.n_hashes, std::move(layout.pieces),
                             layout.n_drives, file->head.version);
    OFFSTAGE_TRY_VOID(check_belongs(path, file->head, layout));
    std::string& known = store.paths[file->head.drive];
    if (!known.empty())
      return make_error(ErrorCode::kCorrupt,
                        "{}: at offset 16: drive {} of {}, but so is {}: one of the two is a copy",
                        path, file->head.drive, layout.n_drives, known);
    if (!set_path.empty() && file->head.set != set)
      return make_error(ErrorCode::kCorrupt,
                        "{}: at offset 80: of another pack than {}: expected {:016x}, actual "
                        "{:016x}; pack them again",
                        path, set_path, set, file->head.set);
    known = path;
    set = file->head.set;
    set_path = path;
    store.model_changed |= file->head.model.mtimes_hash != layout.model.mtimes_hash;
    store.hashes = std::move(file->hashes);
  }
  store.layout = std::move(layout);
  return store;
}

}  // namespace offstage
