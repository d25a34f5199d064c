#include "io/gguf.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "io/gguf_parser.h"
#include "io/gguf_reader.h"

namespace offstage {
namespace {

bool is_signed(GgufValueType type) {
  return type == GgufValueType::kInt8 || type == GgufValueType::kInt16 ||
         type == GgufValueType::kInt32 || type == GgufValueType::kInt64;
}

Error wrong_value(const GgufModel& model, std::string_view key, const GgufValue& value,
                  std::string_view expected, const std::string& actual) {
  return {ErrorCode::kCorrupt, fmt::format("{}: key '{}' at byte {}: expected {}, actual {}",
                                           model.shards()[value.shard].path, printable(key),
                                           value.offset, expected, actual)};
}

Error wrong_type(const GgufModel& model, std::string_view key, const GgufValue& value,
                 std::string_view expected) {
  return wrong_value(model, key, value, expected, std::string(gguf_value_type_name(value.type)));
}

template <typename T>
Result<T> required(const GgufModel& model, std::string_view key, Result<std::optional<T>> found) {
  if (!found) return tl::unexpected(std::move(found).error());
  if (!*found)
    return make_error(ErrorCode::kNotFound, "{}: key '{}': expected in the metadata, actual absent",
                      model.path(), printable(key));
  return **found;
}

}  // namespace

std::string_view gguf_value_type_name(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8: return "uint8";
    case GgufValueType::kInt8: return "int8";
    case GgufValueType::kUint16: return "uint16";
    case GgufValueType::kInt16: return "int16";
    case GgufValueType::kUint32: return "uint32";
    case GgufValueType::kInt32: return "int32";
    case GgufValueType::kFloat32: return "float32";
    case GgufValueType::kBool: return "bool";
    case GgufValueType::kString: return "string";
    case GgufValueType::kArray: return "array";
    case GgufValueType::kUint64: return "uint64";
    case GgufValueType::kInt64: return "int64";
    case GgufValueType::kFloat64: return "float64";
  }
  return "unknown";
}

size_t GgufArray::size() const {
  return std::visit([](const auto& elements) { return elements.size(); }, values);
}

Result<GgufModel> GgufModel::parse(std::string_view name, std::span<const std::byte> bytes,
                                   uint64_t file_bytes) {
  GgufReader reader(name, bytes, file_bytes);
  return GgufParser::parse(reader);
}

const GgufTensor* GgufModel::find_tensor(std::string_view name) const {
  const auto place = std::lower_bound(
      tensors_by_name_.begin(), tensors_by_name_.end(), name,
      [&](uint32_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  if (place == tensors_by_name_.end() || tensors_[*place].name != name) return nullptr;
  return &tensors_[*place];
}

Result<const GgufTensor*> GgufModel::tensor(std::string_view name) const {
  const GgufTensor* found = find_tensor(name);
  if (found == nullptr)
    return make_error(ErrorCode::kNotFound,
                      "{}: tensor '{}': expected among the file's {} tensors, actual absent",
                      path(), printable(name), tensors_.size());
  return found;
}

const GgufValue* GgufModel::find(std::string_view key) const {
  const auto place = std::lower_bound(
      metadata_by_key_.begin(), metadata_by_key_.end(), key,
      [&](uint32_t i, std::string_view wanted) { return metadata_[i].first < wanted; });
  if (place == metadata_by_key_.end() || metadata_[*place].first != key) return nullptr;
  return &metadata_[*place].second;
}

Result<std::optional<uint64_t>> GgufModel::find_uint(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* number = std::get_if<uint64_t>(&value->value)) return *number;
  const auto* number = std::get_if<int64_t>(&value->value);
  if (number == nullptr || !is_signed(value->type))
    return tl::unexpected(wrong_type(*this, key, *value, "an integer"));
  if (*number < 0)
    return tl::unexpected(wrong_value(*this, key, *value, "0 or more", fmt::format("{}", *number)));
  return static_cast<uint64_t>(*number);
}

Result<std::optional<double>> GgufModel::find_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* number = std::get_if<double>(&value->value);
  if (number == nullptr) return tl::unexpected(wrong_type(*this, key, *value, "a float"));
  if (!std::isfinite(*number))
    return tl::unexpected(
        wrong_value(*this, key, *value, "a finite number", fmt::format("{}", *number)));
  return *number;
}

Result<std::optional<bool>> GgufModel::find_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* flag = std::get_if<bool>(&value->value);
  if (flag == nullptr) return tl::unexpected(wrong_type(*this, key, *value, "bool"));
  return *flag;
}

Result<std::optional<std::string_view>> GgufModel::find_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* text = std::get_if<std::string>(&value->value);
  if (text == nullptr) return tl::unexpected(wrong_type(*this, key, *value, "string"));
  return std::string_view(*text);
}

Result<const GgufArray*> GgufModel::find_array(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr) return tl::unexpected(wrong_type(*this, key, *value, "array"));
  return array;
}

Result<uint64_t> GgufModel::require_uint(std::string_view key) const {
  return required(*this, key, find_uint(key));
}

Result<double> GgufModel::require_float(std::string_view key) const {
  return required(*this, key, find_float(key));
}

Result<std::string_view> GgufModel::require_string(std::string_view key) const {
  return required(*this, key, find_string(key));
}

Result<const GgufArray*> GgufModel::require_array(std::string_view key) const {
  OFFSTAGE_TRY(const GgufArray* array, find_array(key));
  return required(
      *this, key,
      Result<std::optional<const GgufArray*>>(array ? std::optional(array) : std::nullopt));
}

uint64_t GgufModel::total_file_bytes() const {
  uint64_t total = 0;
  for (const GgufShard& shard : shards_) total += shard.file_bytes;
  return total;
}

}  // namespace offstage
