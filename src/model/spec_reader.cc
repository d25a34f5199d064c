#include "model/spec_reader.h"

#include <cfloat>

namespace offstage {
namespace {

Result<uint32_t> in_range(const SpecReader& reader, std::string_view suffix, uint64_t value,
                          uint64_t least, uint64_t most) {
  if (value < least || value > most)
    return reader.bad_value(suffix, fmt::format("{} to {}", least, most), fmt::to_string(value));
  return static_cast<uint32_t>(value);
}

}  // namespace

uint64_t SpecReader::offset(std::string_view suffix) const {
  const GgufValue* value = gguf_.find(key(suffix));
  return value == nullptr ? 0 : value->offset;
}

Result<uint32_t> SpecReader::width(std::string_view suffix, uint64_t max) const {
  OFFSTAGE_TRY(const uint64_t value, gguf_.require_uint(key(suffix)));
  return in_range(*this, suffix, value, 1, max);
}

Result<uint32_t> SpecReader::width_or(std::string_view suffix, uint32_t fallback,
                                      uint64_t max) const {
  OFFSTAGE_TRY(const auto value, gguf_.find_uint(key(suffix)));
  if (!value) return fallback;
  return in_range(*this, suffix, *value, 1, max);
}

Result<uint32_t> SpecReader::count(std::string_view suffix, uint64_t max) const {
  OFFSTAGE_TRY(const auto value, gguf_.find_uint(key(suffix)));
  return in_range(*this, suffix, value.value_or(0), 0, max);
}

Result<float> SpecReader::positive_or(std::string_view suffix, double fallback) const {
  OFFSTAGE_TRY(const auto value, gguf_.find_float(key(suffix)));
  if (!value) return static_cast<float>(fallback);
  if (!(*value >= FLT_MIN && *value <= FLT_MAX))
    return bad_value(suffix, "a finite float > 0", fmt::to_string(*value));
  return static_cast<float>(*value);
}

Result<bool> SpecReader::flag_or(std::string_view suffix, bool fallback) const {
  OFFSTAGE_TRY(const auto value, gguf_.find_bool(key(suffix)));
  return value.value_or(fallback);
}

tl::unexpected<Error> SpecReader::bad_value(std::string_view suffix, std::string_view expected,
                                            std::string_view found) const {
  return make_error(ErrorCode::kCorrupt, "{}: key '{}' at offset {}: expected {}, found {}",
                    gguf_.path(), key(suffix), offset(suffix), expected, found);
}

}  // namespace offstage
