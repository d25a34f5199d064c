// GGUF v2/v3 headers: metadata, tensor directory and extents; single files and shards.
//
// In: a path (for shards, any one of `name-00001-of-00003.gguf`). Out: a GgufModel that owns its
// strings; no weight is read. Strict: whatever a header can claim wrongly is an error naming file,
// key or tensor, absolute offset, expected and actual (RELIABILITY: bad inputs), and parsing takes
// memory of at most 4 x header + 16 MiB. Not thread-safe while opening; immutable after.
//
// Stricter than the specification where a lax reader would hand out wrong weights: tensor data must
// follow the directory in its order without overlaps or holes (every known writer does so), padding
// in front of it must be zero, and nothing but padding may follow the last tensor. A tensor count
// that is one off, or an offset with a flipped bit, can't pass.
//
// Source of the format: the GGUF specification (ggml docs/gguf.md), versions 2 and 3,
// little-endian.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/tensor_type.h"

namespace offstage {

enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};
std::string_view gguf_value_type_name(GgufValueType type);

// What a header may claim at most. Real ones stay below a third of each (the largest vocabularies
// have 262 k tokens and 515 k merges: 16 MiB of header), and memory stays bounded whatever a file
// says.
inline constexpr uint64_t kGgufHeaderBytesMax = 64ull << 20;
inline constexpr uint64_t kGgufKeysMax = 1 << 16;
inline constexpr uint64_t kGgufTensorsMax = 1 << 16;  // per shard
inline constexpr uint64_t kGgufKeyBytesMax = (1 << 16) - 1;
inline constexpr uint64_t kGgufNameBytesMax = 64;  // of a tensor
inline constexpr uint64_t kGgufStringBytesMax = 16ull << 20;
inline constexpr uint64_t kGgufArrayElementsMax = 1 << 22;
// 8-bit elements widen to 8 bytes each, so all of a file's arrays of them share this lower limit.
inline constexpr uint64_t kGgufByteElementsMax = 1 << 21;
inline constexpr uint64_t kGgufAlignmentMax = 2ull << 20;

// Every integer widens to int64/uint64, every float to double; arrays of them likewise.
struct GgufArray {
  GgufValueType element_type = GgufValueType::kUint8;
  std::variant<std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>,
               std::vector<std::string>, std::vector<bool>>
      values;
  size_t size() const;
};

struct GgufValue {
  GgufValueType type = GgufValueType::kUint8;
  uint64_t offset = 0;  // absolute, of the value in its file: for messages
  uint32_t shard = 0;   // index into GgufModel::shards(): which file that is
  std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray> value;
};

struct GgufTensor {
  std::string name;
  TensorType type = TensorType::kF32;
  uint32_t n_dims = 0;
  std::array<uint64_t, 4> dims = {1, 1, 1, 1};  // dims[0] = K, the contiguous one
  uint32_t shard = 0;                           // index into GgufModel::shards()
  uint64_t offset = 0;                          // absolute, in the shard's file
  uint64_t bytes = 0;
  uint64_t info_offset = 0;  // absolute, of its directory entry: for messages

  uint64_t elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
};

struct GgufShard {
  std::string path;
  uint64_t file_bytes = 0;
  uint64_t header_bytes = 0;  // where tensor data starts
  uint32_t version = 0;
  uint32_t alignment = 32;
  uint64_t tensors = 0;
};

class GgufModel {
 public:
  // Opens `path` and, if it is one shard of several, all the others beside it. Shards missing,
  // repeated, out of order or of different models are errors.
  static Result<GgufModel> open(const std::string& path);

  // One header from memory (fuzzing, tests). `file_bytes` is what the file is said to be long;
  // `bytes` may be its beginning only.
  static Result<GgufModel> parse(std::string_view name, std::span<const std::byte> bytes,
                                 uint64_t file_bytes);

  std::span<const GgufShard> shards() const { return shards_; }
  std::span<const GgufTensor> tensors() const { return tensors_; }  // file order, shard by shard
  const GgufTensor* find_tensor(std::string_view name) const;       // nullptr if absent
  Result<const GgufTensor*> tensor(std::string_view name) const;    // kNotFound if absent

  const GgufValue* find(std::string_view key) const;  // nullptr if absent
  // File order. Shards after the first add only the keys that no shard before them has.
  std::span<const std::pair<std::string, GgufValue>> metadata() const { return metadata_; }

  // Typed access. Absent key: nullopt (find_*) or kNotFound (require_*). Wrong type or out of
  // range (a negative count, a NaN): kCorrupt naming file, key, offset, expected and actual. A uint
  // may be stored as any integer type, a float as float32 or float64.
  Result<std::optional<uint64_t>> find_uint(std::string_view key) const;
  Result<std::optional<double>> find_float(std::string_view key) const;
  Result<std::optional<bool>> find_bool(std::string_view key) const;
  Result<std::optional<std::string_view>> find_string(std::string_view key) const;
  Result<const GgufArray*> find_array(std::string_view key) const;  // nullptr if absent
  Result<uint64_t> require_uint(std::string_view key) const;
  Result<double> require_float(std::string_view key) const;
  Result<std::string_view> require_string(std::string_view key) const;
  Result<const GgufArray*> require_array(std::string_view key) const;

  const std::string& path() const { return shards_.front().path; }
  uint64_t total_file_bytes() const;

 private:
  std::vector<GgufShard> shards_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  // Places in tensors_ and metadata_ in order of name: 4 bytes an entry, where a map of names would
  // break the memory bound (a tensor's entry may be as short as 33 bytes).
  std::vector<uint32_t> tensors_by_name_;
  std::vector<uint32_t> metadata_by_key_;
  friend class GgufParser;
};

}  // namespace offstage
