#include "cache/route_npz.h"

#include <zip.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>

#include "base/checked_math.h"
#include "cache/npy.h"

namespace offstage {
namespace {

constexpr uint64_t kUnpackRatioMax = 64;
constexpr uint64_t kUnpackSpare = 16ull << 20;

struct ZipClose {
  void operator()(zip_t* archive) const { zip_discard(archive); }
  void operator()(zip_file_t* file) const { zip_fclose(file); }
};
using Zip = std::unique_ptr<zip_t, ZipClose>;

struct Array {
  NpyHeader header;
  std::vector<std::byte> bytes;
  std::string name;  // archive and member, for messages

  std::span<const std::byte> data() const { return std::span(bytes).subspan(header.data_offset); }
};

Result<uint64_t> file_bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return make_error(ErrorCode::kNotFound, "{}: can't be opened", path);
  return static_cast<uint64_t>(file.tellg());
}

Result<Zip> open_archive(const std::string& path) {
  int error = 0;
  Zip archive(zip_open(path.c_str(), ZIP_RDONLY | ZIP_CHECKCONS, &error));
  if (archive) return archive;
  zip_error_t text;
  zip_error_init_with_code(&text, error);
  const std::string why = zip_error_strerror(&text);
  zip_error_fini(&text);
  return make_error(error == ZIP_ER_NOENT ? ErrorCode::kNotFound : ErrorCode::kCorrupt,
                    "{}: not a .npz archive: {}", path, why);
}

// Nothing if the archive has no such member. libzip compares the member's CRC at its end.
Result<std::optional<Array>> read_member(zip_t* archive, const std::string& path,
                                         uint64_t file_bytes, const char* member) {
  Array array;
  const std::string member_name = fmt::format("{}.npy", member);
  array.name = fmt::format("{}: member '{}'", path, member_name);
  zip_stat_t stat;
  zip_stat_init(&stat);
  if (zip_stat(archive, member_name.c_str(), 0, &stat) != 0) return std::optional<Array>();
  const uint64_t most = file_bytes * kUnpackRatioMax + kUnpackSpare;
  if ((stat.valid & ZIP_STAT_SIZE) == 0 || stat.size > most)
    return make_error(ErrorCode::kUnsupported,
                      "{}: unpacks to {} bytes; at most {} are taken from an archive of {}",
                      array.name, stat.size, most, file_bytes);
  const std::unique_ptr<zip_file_t, ZipClose> file(zip_fopen_index(archive, stat.index, 0));
  if (!file)
    return make_error(ErrorCode::kCorrupt, "{}: can't be unpacked: {}", array.name,
                      zip_strerror(archive));
  array.bytes.resize(stat.size);
  uint64_t done = 0;
  while (done < stat.size) {
    const zip_int64_t got = zip_fread(file.get(), array.bytes.data() + done, stat.size - done);
    if (got <= 0)
      return make_error(ErrorCode::kCorrupt, "{}: at byte {}: expected {} bytes: {}", array.name,
                        done, stat.size, got == 0 ? "it ends" : zip_file_strerror(file.get()));
    done += static_cast<uint64_t>(got);
  }
  // The read that meets the end is the one that compares the CRC.
  std::byte more;
  if (zip_fread(file.get(), &more, 1) != 0)
    return make_error(ErrorCode::kCorrupt, "{}: at byte {}: {}", array.name, done,
                      zip_file_strerror(file.get()));
  OFFSTAGE_TRY(array.header, parse_npy_header(array.bytes, array.name));
  return std::optional<Array>(std::move(array));
}

Status check_bytes(const Array& array, uint64_t element_bytes) {
  std::optional<uint64_t> bytes = element_bytes;
  for (const uint64_t dim : array.header.shape) bytes = bytes ? checked_mul(*bytes, dim) : bytes;
  if (bytes && *bytes == array.data().size()) return {};
  return make_error(ErrorCode::kTruncated, "{}: at byte {}: {} doesn't make {} bytes", array.name,
                    array.header.data_offset, array.header.describe(), array.data().size());
}

Status check_kind(const Array& array, std::string_view descr, std::span<const uint64_t> shape) {
  if (array.header.descr == descr &&
      std::equal(shape.begin(), shape.end(), array.header.shape.begin(), array.header.shape.end()))
    return {};
  return make_error(ErrorCode::kCorrupt, "{}: expected {} [{}], actual {}", array.name, descr,
                    fmt::join(shape, ", "), array.header.describe());
}

Status take_experts(const Array& array, RouteLog& log) {
  const NpyHeader& header = array.header;
  const bool wide = header.descr == "<u2";
  if (header.shape.size() != 3 || (!wide && header.descr != "|u1"))
    return make_error(ErrorCode::kCorrupt,
                      "{}: expected |u1 or <u2 [tokens, layers, experts called], actual {}",
                      array.name, header.describe());
  if (header.shape[1] < 1 || header.shape[1] > kRouteLayersMax || header.shape[2] < 1 ||
      header.shape[2] > kRouteUsedMax)
    return make_error(ErrorCode::kCorrupt,
                      "{}: expected 1 to {} layers and 1 to {} experts called, actual {}",
                      array.name, kRouteLayersMax, kRouteUsedMax, header.describe());
  OFFSTAGE_TRY_VOID(check_bytes(array, wide ? 2 : 1));
  const auto data = array.data();
  log.shape.n_layers = static_cast<uint32_t>(header.shape[1]);
  log.shape.n_used = static_cast<uint32_t>(header.shape[2]);
  log.experts.resize(data.size() / (wide ? 2 : 1));
  if (wide)
    std::memcpy(log.experts.data(), data.data(), data.size());
  else
    std::transform(data.begin(), data.end(), log.experts.begin(),
                   [](std::byte id) { return std::to_integer<uint16_t>(id); });
  log.tokens.assign(header.shape[0], -1);
  log.prefill.assign(header.shape[0], 0);
  return {};
}

Status take_starts(const Array& array, RouteLog& log) {
  const NpyHeader& header = array.header;
  if (header.descr != "<i8" || header.shape.size() != 1 || header.shape[0] < 2)
    return make_error(ErrorCode::kCorrupt, "{}: expected <i8 [sequences + 1], actual {}",
                      array.name, header.describe());
  OFFSTAGE_TRY_VOID(check_bytes(array, 8));
  std::vector<int64_t> offsets(header.shape[0]);
  std::memcpy(offsets.data(), array.data().data(), array.data().size());
  for (size_t i = 0; i < offsets.size(); ++i) {
    const auto tokens = static_cast<int64_t>(log.n_tokens());
    const bool last = i + 1 == offsets.size();
    const bool fits = i == 0 ? offsets[i] == 0
                      : last ? offsets[i] == tokens && offsets[i] > offsets[i - 1]
                             : offsets[i] > offsets[i - 1] && offsets[i] < tokens;
    if (!fits)
      return make_error(ErrorCode::kCorrupt,
                        "{}: at byte {}: expected offsets that ascend from 0 to {}, actual {}",
                        array.name, header.data_offset + 8 * i, tokens, offsets[i]);
    if (!last) log.starts.push_back(static_cast<uint64_t>(offsets[i]));
  }
  return {};
}

Status set_experts_per_layer(std::optional<uint32_t> n_experts, const std::string& path,
                             RouteLog& log) {
  uint32_t highest = 0;
  for (const uint16_t id : log.experts) highest = std::max<uint32_t>(highest, id);
  log.shape.n_experts = n_experts.value_or(std::max(highest + 1, log.shape.n_used));
  if (log.shape.n_experts >= log.shape.n_used && log.shape.n_experts <= kRouteExpertsMax) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: expected {} to {} experts a layer, actual {}",
                    path, log.shape.n_used, kRouteExpertsMax, log.shape.n_experts);
}

}  // namespace

Result<RouteLog> read_route_npz(const std::string& path, std::optional<uint32_t> n_experts) {
  OFFSTAGE_TRY(const uint64_t file_bytes, file_bytes_of(path));
  OFFSTAGE_TRY(const Zip archive, open_archive(path));
  const auto read = [&](const char* member) {
    return read_member(archive.get(), path, file_bytes, member);
  };
  RouteLog log;
  OFFSTAGE_TRY(std::optional<Array> experts, read("experts"));
  if (!experts) return make_error(ErrorCode::kCorrupt, "{}: expected a member 'experts.npy'", path);
  OFFSTAGE_TRY_VOID(take_experts(*experts, log));
  const std::vector<uint64_t> shape = experts->header.shape;
  experts.reset();  // a copy of it is in the log
  OFFSTAGE_TRY(const std::optional<Array> probs, read("probs"));
  if (probs) {
    OFFSTAGE_TRY_VOID(check_kind(*probs, "<f2", shape));
    OFFSTAGE_TRY_VOID(check_bytes(*probs, 2));
    log.shape.has_probs = true;
    log.probs.resize(probs->data().size() / 2);
    std::memcpy(log.probs.data(), probs->data().data(), probs->data().size());
  }
  OFFSTAGE_TRY(const std::optional<Array> tokens, read("token"));
  if (tokens) {
    OFFSTAGE_TRY_VOID(check_kind(*tokens, "<i4", {{shape[0]}}));
    OFFSTAGE_TRY_VOID(check_bytes(*tokens, 4));
    log.shape.has_tokens = true;
    std::memcpy(log.tokens.data(), tokens->data().data(), tokens->data().size());
  }
  OFFSTAGE_TRY(const std::optional<Array> offsets, read("seq_offsets"));
  if (offsets)
    OFFSTAGE_TRY_VOID(take_starts(*offsets, log));
  else if (log.n_tokens() != 0)
    log.starts = {0};
  OFFSTAGE_TRY_VOID(set_experts_per_layer(n_experts, path, log));
  OFFSTAGE_TRY_VOID(check_route_log(log, path));
  return log;
}

Result<RouteLog> read_routes(const std::string& path, std::optional<uint32_t> n_experts) {
  std::array<std::byte, 8> head{};
  std::ifstream file(path, std::ios::binary);
  if (!file) return make_error(ErrorCode::kNotFound, "{}: can't be opened", path);
  file.read(reinterpret_cast<char*>(head.data()), head.size());
  if (!is_route_log(head)) return read_route_npz(path, n_experts);
  OFFSTAGE_TRY(RouteLog log, read_route_log(path));
  if (n_experts && *n_experts != log.shape.n_experts)
    return make_error(ErrorCode::kInvalidArgument, "{}: its layers have {} experts, not {}", path,
                      log.shape.n_experts, *n_experts);
  return log;
}

}  // namespace offstage
