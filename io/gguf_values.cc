#include "io/gguf_values.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>

#include "base/check.h"

namespace offstage {
namespace {

std::optional<GgufValueType> value_type_of(uint32_t id) {
  if (id > static_cast<uint32_t>(GgufValueType::kFloat64)) return std::nullopt;
  return static_cast<GgufValueType>(id);
}

Result<GgufValueType> read_type(GgufReader& reader, std::string_view field) {
  const uint64_t offset = reader.position();
  OFFSTAGE_TRY(const uint32_t id, reader.number<uint32_t>(field));
  const std::optional<GgufValueType> type = value_type_of(id);
  if (!type)
    return reader.error(ErrorCode::kCorrupt, offset, "{}: expected 0 to 12, actual {}", field, id);
  return *type;
}

// Stored as Raw, kept as Wide.
template <typename Raw, typename Wide>
Status read_scalar(GgufReader& reader, GgufValue& value) {
  OFFSTAGE_TRY(const Raw raw, reader.number<Raw>("value"));
  value.value = static_cast<Wide>(raw);
  return {};
}

Status read_bool(GgufReader& reader, GgufValue& value) {
  OFFSTAGE_TRY(const uint8_t raw, reader.number<uint8_t>("value"));
  if (raw > 1)
    return reader.error(ErrorCode::kCorrupt, value.offset, "bool: expected 0 or 1, actual {}", raw);
  value.value = raw == 1;
  return {};
}

Status read_string(GgufReader& reader, GgufValue& value) {
  OFFSTAGE_TRY(value.value, reader.string("string", kGgufStringBytesMax));
  return {};
}

template <typename Raw, typename Wide>
Status read_numbers(GgufReader& reader, uint64_t count, GgufArray& array) {
  // No wrap: count ≤ kGgufArrayElementsMax.
  OFFSTAGE_TRY_VOID(reader.need("array elements", count * sizeof(Raw)));
  std::vector<Wide> wide;
  wide.reserve(count);
  std::array<Raw, 2048> chunk;
  while (wide.size() < count) {
    const size_t n = std::min<uint64_t>(chunk.size(), count - wide.size());
    const std::span<Raw> raw = std::span(chunk).first(n);
    OFFSTAGE_TRY_VOID(reader.copy("array elements", std::as_writable_bytes(raw)));
    wide.insert(wide.end(), raw.begin(), raw.end());
  }
  array.values = std::move(wide);
  return {};
}

Status read_bools(GgufReader& reader, uint64_t count, GgufArray& array) {
  OFFSTAGE_TRY_VOID(reader.need("array elements", count));
  std::vector<bool> bools;
  bools.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t offset = reader.position();
    OFFSTAGE_TRY(const uint8_t raw, reader.number<uint8_t>("array elements"));
    if (raw > 1)
      return reader.error(ErrorCode::kCorrupt, offset, "bool {} of {}: expected 0 or 1, actual {}",
                          i, count, raw);
    bools.push_back(raw == 1);
  }
  array.values = std::move(bools);
  return {};
}

// Twice over the bytes: first to see that `count` strings are there, then to keep them. A vector
// that grew as it read would hold three times its size while moving.
Status read_strings(GgufReader& reader, uint64_t count, GgufArray& array) {
  OFFSTAGE_TRY_VOID(reader.need("array elements", count * sizeof(uint64_t)));
  const uint64_t begin = reader.position();
  for (uint64_t i = 0; i < count; ++i)
    OFFSTAGE_TRY_VOID(reader.skip_string("string in array", kGgufStringBytesMax));
  reader.rewind(begin);
  std::vector<std::string> strings;
  strings.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    OFFSTAGE_TRY(std::string text, reader.string("string in array", kGgufStringBytesMax));
    strings.push_back(std::move(text));
  }
  array.values = std::move(strings);
  return {};
}

Status read_elements(GgufReader& reader, uint64_t count, GgufArray& array) {
  switch (array.element_type) {
    case GgufValueType::kUint8: return read_numbers<uint8_t, uint64_t>(reader, count, array);
    case GgufValueType::kInt8: return read_numbers<int8_t, int64_t>(reader, count, array);
    case GgufValueType::kUint16: return read_numbers<uint16_t, uint64_t>(reader, count, array);
    case GgufValueType::kInt16: return read_numbers<int16_t, int64_t>(reader, count, array);
    case GgufValueType::kUint32: return read_numbers<uint32_t, uint64_t>(reader, count, array);
    case GgufValueType::kInt32: return read_numbers<int32_t, int64_t>(reader, count, array);
    case GgufValueType::kUint64: return read_numbers<uint64_t, uint64_t>(reader, count, array);
    case GgufValueType::kInt64: return read_numbers<int64_t, int64_t>(reader, count, array);
    case GgufValueType::kFloat32: return read_numbers<float, double>(reader, count, array);
    case GgufValueType::kFloat64: return read_numbers<double, double>(reader, count, array);
    case GgufValueType::kBool: return read_bools(reader, count, array);
    case GgufValueType::kString: return read_strings(reader, count, array);
    case GgufValueType::kArray: break;
  }
  CHECK(false);  // read_array() has refused arrays of arrays
}

Status read_array(GgufReader& reader, uint64_t& byte_elements_left, GgufValue& value) {
  const uint64_t type_offset = reader.position();
  OFFSTAGE_TRY(const GgufValueType element_type, read_type(reader, "array element type"));
  if (element_type == GgufValueType::kArray)
    return reader.error(ErrorCode::kUnsupported, type_offset,
                        "array element type: expected a scalar or a string, actual array "
                        "(arrays of arrays aren't supported)");
  const uint64_t count_offset = reader.position();
  OFFSTAGE_TRY(const uint64_t count, reader.number<uint64_t>("array count"));
  if (count > kGgufArrayElementsMax)
    return reader.error(ErrorCode::kCorrupt, count_offset,
                        "array count: expected at most {}, actual {}", kGgufArrayElementsMax,
                        count);
  const bool is_byte =
      element_type == GgufValueType::kUint8 || element_type == GgufValueType::kInt8;
  if (is_byte && count > byte_elements_left)
    return reader.error(ErrorCode::kCorrupt, count_offset,
                        "array count: expected at most {} 8-bit elements in a file, actual {} "
                        "when {} were left",
                        kGgufByteElementsMax, count, byte_elements_left);
  if (is_byte) byte_elements_left -= count;
  GgufArray array;
  array.element_type = element_type;
  OFFSTAGE_TRY_VOID(read_elements(reader, count, array));
  value.value = std::move(array);
  return {};
}

Status read_payload(GgufReader& reader, uint64_t& byte_elements_left, GgufValue& value) {
  switch (value.type) {
    case GgufValueType::kUint8: return read_scalar<uint8_t, uint64_t>(reader, value);
    case GgufValueType::kInt8: return read_scalar<int8_t, int64_t>(reader, value);
    case GgufValueType::kUint16: return read_scalar<uint16_t, uint64_t>(reader, value);
    case GgufValueType::kInt16: return read_scalar<int16_t, int64_t>(reader, value);
    case GgufValueType::kUint32: return read_scalar<uint32_t, uint64_t>(reader, value);
    case GgufValueType::kInt32: return read_scalar<int32_t, int64_t>(reader, value);
    case GgufValueType::kUint64: return read_scalar<uint64_t, uint64_t>(reader, value);
    case GgufValueType::kInt64: return read_scalar<int64_t, int64_t>(reader, value);
    case GgufValueType::kFloat32: return read_scalar<float, double>(reader, value);
    case GgufValueType::kFloat64: return read_scalar<double, double>(reader, value);
    case GgufValueType::kBool: return read_bool(reader, value);
    case GgufValueType::kString: return read_string(reader, value);
    case GgufValueType::kArray: return read_array(reader, byte_elements_left, value);
  }
  return {};
}

}  // namespace

Result<GgufValue> read_gguf_value(GgufReader& reader, uint64_t& byte_elements_left) {
  GgufValue value;
  OFFSTAGE_TRY(value.type, read_type(reader, "value type"));
  value.offset = reader.position();
  OFFSTAGE_TRY_VOID(read_payload(reader, byte_elements_left, value));
  return value;
}

}  // namespace offstage
