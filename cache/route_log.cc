#include "cache/route_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/checked_math.h"
#include "cpu/float16.h"
#include "io/file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's order is the machine's");

constexpr std::array<char, 8> kMagic = {'O', 'F', 'F', 'S', 'R', 'O', 'U', 'T'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kFlagProbs = 1, kFlagTokens = 2;
constexpr uint64_t kHashBytes = 8;
constexpr size_t kChunkBytes = 1 << 20;

// The first 40 bytes, in the file's order and without gaps.
struct FileHead {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t flags = 0;
  uint32_t n_layers = 0, n_experts = 0, n_used = 0;
  uint32_t record_bytes = 0;
  uint64_t n_tokens = 0;
};
static_assert(sizeof(FileHead) == 40);

struct RecordHead {
  int32_t token = -1;
  uint8_t prefill = 0;
  uint8_t starts_sequence = 0;
  uint16_t zero = 0;
};
static_assert(sizeof(RecordHead) == 8);

uint32_t record_bytes(const RouteShape& shape) {
  return static_cast<uint32_t>(sizeof(RecordHead)) +
         shape.calls_per_token() * (shape.has_probs ? 4 : 2);
}

FileHead head_of(const RouteShape& shape, uint64_t n_tokens) {
  FileHead head;
  head.flags = (shape.has_probs ? kFlagProbs : 0) | (shape.has_tokens ? kFlagTokens : 0);
  head.n_layers = shape.n_layers;
  head.n_experts = shape.n_experts;
  head.n_used = shape.n_used;
  head.record_bytes = record_bytes(shape);
  head.n_tokens = n_tokens;
  return head;
}

Status check_limit(const std::string& path, size_t offset, const char* what, uint32_t value,
                   uint32_t most) {
  if (value >= 1 && value <= most) return {};
  return make_error(ErrorCode::kCorrupt, "{}: at byte {}: expected 1 to {} {}, actual {}", path,
                    offset, most, what, value);
}

// What the header says, before anything is allocated for it.
Result<RouteShape> check_head(const std::string& path, const FileHead& head, uint64_t file_bytes) {
  if (head.magic != kMagic)
    return make_error(ErrorCode::kCorrupt, "{}: at byte 0: expected the magic 'OFFSROUT'", path);
  if (head.version != kVersion)
    return make_error(ErrorCode::kUnsupported, "{}: at byte 8: expected version {}, actual {}",
                      path, kVersion, head.version);
  if ((head.flags & ~(kFlagProbs | kFlagTokens)) != 0)
    return make_error(ErrorCode::kUnsupported, "{}: at byte 12: expected flags 0 to 3, actual {}",
                      path, head.flags);
  OFFSTAGE_TRY_VOID(check_limit(path, 16, "layers", head.n_layers, kRouteLayersMax));
  OFFSTAGE_TRY_VOID(check_limit(path, 20, "experts", head.n_experts, kRouteExpertsMax));
  OFFSTAGE_TRY_VOID(check_limit(path, 24, "experts called", head.n_used,
                                std::min(head.n_experts, kRouteUsedMax)));
  const RouteShape shape = {head.n_layers, head.n_experts, head.n_used,
                            (head.flags & kFlagProbs) != 0, (head.flags & kFlagTokens) != 0};
  if (head.record_bytes != record_bytes(shape))
    return make_error(ErrorCode::kCorrupt,
                      "{}: at byte 28: expected records of {} bytes, actual {}", path,
                      record_bytes(shape), head.record_bytes);
  const auto records = checked_mul(head.n_tokens, head.record_bytes);
  const auto bytes = records ? checked_add(*records, sizeof(FileHead) + kHashBytes) : std::nullopt;
  if (!bytes || *bytes != file_bytes)
    return make_error(ErrorCode::kTruncated,
                      "{}: at byte 32: {} tokens of {} bytes don't make a file of {} bytes", path,
                      head.n_tokens, head.record_bytes, file_bytes);
  return shape;
}

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }
  void add(std::span<const std::byte> bytes) {
    XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
  }
  uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

void append_record(const std::byte* record, RouteLog& log) {
  RecordHead head;
  std::memcpy(&head, record, sizeof(head));
  if (head.starts_sequence != 0 || log.tokens.empty()) log.starts.push_back(log.tokens.size());
  log.tokens.push_back(head.token);
  log.prefill.push_back(head.prefill);
  const size_t n = log.shape.calls_per_token();
  const size_t at = log.experts.size();
  log.experts.resize(at + n);
  std::memcpy(log.experts.data() + at, record + sizeof(head), 2 * n);
  if (!log.shape.has_probs) return;
  log.probs.resize(at + n);
  std::memcpy(log.probs.data() + at, record + sizeof(head) + 2 * n, 2 * n);
}

Status check_record_head(const std::string& path, uint64_t offset, const std::byte* record) {
  RecordHead head;
  std::memcpy(&head, record, sizeof(head));
  if (head.prefill <= 1 && head.starts_sequence <= 1 && head.zero == 0) return {};
  return make_error(ErrorCode::kCorrupt,
                    "{}: at byte {}: expected a phase and a start of 0 or 1 and then 0, actual {}, "
                    "{}, {}",
                    path, offset + 4, head.prefill, head.starts_sequence, head.zero);
}

Status read_records(int fd, const std::string& path, const FileHead& head, Hasher& hasher,
                    RouteLog& log) {
  const size_t calls = size_t{head.n_tokens} * log.shape.calls_per_token();
  log.tokens.reserve(head.n_tokens);
  log.prefill.reserve(head.n_tokens);
  log.experts.reserve(calls);
  if (log.shape.has_probs) log.probs.reserve(calls);
  const size_t per_chunk = std::max<size_t>(1, kChunkBytes / head.record_bytes);
  std::vector<std::byte> chunk(per_chunk * head.record_bytes);
  uint64_t offset = sizeof(FileHead);
  for (uint64_t done = 0; done < head.n_tokens;) {
    const size_t n = std::min<uint64_t>(per_chunk, head.n_tokens - done);
    const std::span<std::byte> bytes(chunk.data(), n * head.record_bytes);
    OFFSTAGE_TRY_VOID(read_exactly(fd, path, offset, bytes));
    hasher.add(bytes);
    for (size_t i = 0; i < n; ++i) {
      const std::byte* record = bytes.data() + i * head.record_bytes;
      OFFSTAGE_TRY_VOID(check_record_head(path, offset + i * head.record_bytes, record));
      append_record(record, log);
    }
    offset += bytes.size();
    done += n;
  }
  return {};
}

Error event_error(const RouteLog& log, const std::string& name, uint64_t token, uint32_t layer,
                  uint32_t j, std::string_view what) {
  return {ErrorCode::kCorrupt,
          fmt::format("{}: token {}, layer {}, call {}: {}", name, token, layer, j, what) +
              fmt::format(" ({} experts)", log.shape.n_experts)};
}

}  // namespace

float RouteLog::weight(uint64_t token, uint32_t layer, uint32_t j) const {
  if (probs.empty()) return 1.0f / static_cast<float>(shape.n_used);
  return float_of_f16(probs[(token * shape.n_layers + layer) * shape.n_used + j]);
}

Status check_route_log(const RouteLog& log, const std::string& name) {
  const RouteShape& shape = log.shape;
  std::vector<uint64_t> seen(shape.n_experts, 0);  // the event that called it last
  uint64_t event = 0;
  for (uint64_t t = 0; t < log.n_tokens(); ++t)
    for (uint32_t l = 0; l < shape.n_layers; ++l) {
      ++event;
      const auto calls = log.calls(t, l);
      for (uint32_t j = 0; j < shape.n_used; ++j) {
        if (calls[j] >= shape.n_experts)
          return tl::unexpected(
              event_error(log, name, t, l, j, fmt::format("expert {} isn't there", calls[j])));
        if (std::exchange(seen[calls[j]], event) == event)
          return tl::unexpected(
              event_error(log, name, t, l, j, fmt::format("expert {} is called twice", calls[j])));
        const float weight = log.weight(t, l, j);
        if (!std::isfinite(weight) || weight < 0)
          return tl::unexpected(
              event_error(log, name, t, l, j,
                          fmt::format("expected a weight of 0 or more, actual {}", weight)));
      }
    }
  return {};
}

bool is_route_log(std::span<const std::byte> head) {
  return head.size() >= kMagic.size() &&
         std::memcmp(head.data(), kMagic.data(), kMagic.size()) == 0;
}

Result<RouteLog> read_route_log(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return tl::unexpected(errno_error(path, "can't be opened"));
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0)
    return tl::unexpected(errno_error(path, "can't be examined"));
  if (!S_ISREG(status.st_mode))
    return make_error(ErrorCode::kCorrupt, "{}: expected a regular file", path);
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  FileHead head;
  const auto head_bytes = std::as_writable_bytes(std::span(&head, 1));
  OFFSTAGE_TRY_VOID(read_exactly(fd.get(), path, 0, head_bytes));
  RouteLog log;
  OFFSTAGE_TRY(log.shape, check_head(path, head, file_bytes));
  Hasher hasher;
  hasher.add(head_bytes);
  OFFSTAGE_TRY_VOID(read_records(fd.get(), path, head, hasher, log));
  uint64_t sum = 0;
  const uint64_t sum_offset = file_bytes - kHashBytes;
  OFFSTAGE_TRY_VOID(
      read_exactly(fd.get(), path, sum_offset, std::as_writable_bytes(std::span(&sum, 1))));
  if (sum != hasher.digest())
    return make_error(ErrorCode::kCorrupt,
                      "{}: damaged: at byte {}: expected hash {:016x}, actual {:016x}", path,
                      sum_offset, sum, hasher.digest());
  OFFSTAGE_TRY_VOID(check_route_log(log, path));
  return log;
}

// The file under its temporary name. The head is written last, when the number of tokens is known.
struct RouteLogWriter::File {
  std::string path, temporary;
  UniqueFd fd;
  bool kept = false;

  ~File() {
    if (!kept && fd.valid()) ::unlink(temporary.c_str());
  }
  Status write(uint64_t offset, std::span<const std::byte> bytes) {
    return write_exactly(fd.get(), temporary, offset, bytes);
  }
};

Result<std::unique_ptr<RouteLogWriter>> RouteLogWriter::create(const std::string& path,
                                                               const RouteShape& shape,
                                                               uint32_t rows_max) {
  auto file = std::make_unique<File>();
  file->path = path;
  file->temporary = temporary_name(path);
  ::unlink(file->temporary.c_str());  // left by a process of the same number that died
  file->fd = UniqueFd(::open(file->temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file->fd.valid()) return tl::unexpected(errno_error(file->temporary, "can't be created"));
  return std::unique_ptr<RouteLogWriter>(new RouteLogWriter(std::move(file), shape, rows_max));
}

RouteLogWriter::RouteLogWriter(std::unique_ptr<File> file, const RouteShape& shape,
                               uint32_t rows_max)
    : file_(std::move(file)),
      shape_(shape),
      record_bytes_(record_bytes(shape)),
      records_(size_t{rows_max} * record_bytes_) {
  CHECK_LE(shape.n_layers, kRouteLayersMax);
  CHECK_LE(shape.n_experts, kRouteExpertsMax);
  CHECK_LE(shape.n_used, kRouteUsedMax);
}

RouteLogWriter::~RouteLogWriter() = default;

void RouteLogWriter::begin_rows(std::span<const Row> rows) {
  CHECK_EQ(n_rows_, 0u);
  CHECK_LE(rows.size() * record_bytes_, records_.size());
  n_rows_ = static_cast<uint32_t>(rows.size());
  layers_seen_ = 0;
  for (uint32_t r = 0; r < n_rows_; ++r) {
    const RecordHead head = {rows[r].token, rows[r].prefill, rows[r].starts_sequence, 0};
    std::memcpy(records_.data() + size_t{r} * record_bytes_, &head, sizeof(head));
  }
}

void RouteLogWriter::add_layer(uint32_t layer, std::span<const uint16_t> experts,
                               std::span<const float> weights) {
  CHECK_EQ(experts.size(), size_t{n_rows_} * shape_.n_used);
  CHECK_EQ(layer, layers_seen_);
  ++layers_seen_;
  const uint32_t n = shape_.n_used;
  for (uint32_t r = 0; r < n_rows_; ++r) {
    std::byte* calls = records_.data() + size_t{r} * record_bytes_ + sizeof(RecordHead);
    std::memcpy(calls + size_t{layer} * n * 2, experts.data() + size_t{r} * n, size_t{n} * 2);
    if (!shape_.has_probs) continue;
    std::byte* probs = calls + size_t{shape_.calls_per_token()} * 2 + size_t{layer} * n * 2;
    for (uint32_t j = 0; j < n; ++j) {
      const uint16_t half = f16_of_float(weights[size_t{r} * n + j]);
      std::memcpy(probs + size_t{j} * 2, &half, sizeof(half));
    }
  }
}

Status RouteLogWriter::end_rows() {
  CHECK_EQ(layers_seen_, shape_.n_layers);
  const std::span<const std::byte> bytes(records_.data(), size_t{n_rows_} * record_bytes_);
  const Status status = file_->write(sizeof(FileHead) + n_tokens_ * record_bytes_, bytes);
  n_tokens_ += n_rows_;
  n_rows_ = 0;
  return status;
}

void RouteLogWriter::drop_rows() { n_rows_ = 0; }

// The hash covers the head, so the records are read back once: they are in the page cache.
Status RouteLogWriter::close() {
  const FileHead head = head_of(shape_, n_tokens_);
  const auto head_bytes = std::as_bytes(std::span(&head, 1));
  Hasher hasher;
  hasher.add(head_bytes);
  const uint64_t end = sizeof(head) + n_tokens_ * record_bytes_;
  std::vector<std::byte> chunk(std::min<uint64_t>(kChunkBytes, end - sizeof(head)));
  for (uint64_t offset = sizeof(head); offset < end; offset += chunk.size()) {
    const auto bytes = std::span(chunk).first(std::min<uint64_t>(chunk.size(), end - offset));
    OFFSTAGE_TRY_VOID(read_exactly(file_->fd.get(), file_->temporary, offset, bytes));
    hasher.add(bytes);
  }
  const uint64_t sum = hasher.digest();
  OFFSTAGE_TRY_VOID(file_->write(0, head_bytes));
  OFFSTAGE_TRY_VOID(file_->write(end, std::as_bytes(std::span(&sum, 1))));
  if (::fsync(file_->fd.get()) != 0)
    return tl::unexpected(errno_error(file_->temporary, "can't be synced"));
  if (::rename(file_->temporary.c_str(), file_->path.c_str()) != 0)
    return tl::unexpected(errno_error(file_->path, "can't be renamed to"));
  sync_folder_of(file_->path);
  file_->kept = true;
  return {};
}

Status write_route_log(const std::string& path, const RouteLog& log) {
  OFFSTAGE_TRY(const auto writer, RouteLogWriter::create(path, log.shape, 1));
  std::vector<float> weights(log.shape.n_used);
  size_t next_start = 0;
  for (uint64_t t = 0; t < log.n_tokens(); ++t) {
    const bool starts = next_start < log.starts.size() && log.starts[next_start] == t;
    if (starts) ++next_start;
    const RouteLogWriter::Row row = {log.tokens[t], log.prefill[t] != 0, starts};
    writer->begin_rows({&row, 1});
    for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
      for (uint32_t j = 0; j < log.shape.n_used; ++j) weights[j] = log.weight(t, l, j);
      writer->add_layer(l, log.calls(t, l), weights);
    }
    OFFSTAGE_TRY_VOID(writer->end_rows());
  }
  return writer->close();
}

}  // namespace offstage
