// A family's metadata keys as numbers in range: private to src/model's spec files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/gguf.h"

namespace offstage {

// Widths beyond this are no model of today but a damaged file; it also keeps products in range.
inline constexpr uint64_t kWidthMax = 1u << 20;

class SpecReader {
 public:
  SpecReader(const GgufModel& gguf, std::string_view architecture)
      : gguf_(gguf), prefix_(std::string(architecture) + ".") {}

  const GgufModel& gguf() const { return gguf_; }
  std::string key(std::string_view suffix) const { return prefix_ + std::string(suffix); }
  bool states(std::string_view suffix) const { return gguf_.find(key(suffix)) != nullptr; }
  uint64_t offset(std::string_view suffix) const;  // of the key's value; 0 where it is absent

  // A count or width: required, in [1, max].
  Result<uint32_t> width(std::string_view suffix, uint64_t max = kWidthMax) const;
  Result<uint32_t> width_or(std::string_view suffix, uint32_t fallback,
                            uint64_t max = kWidthMax) const;
  // A count that may be 0, where absent too.
  Result<uint32_t> count(std::string_view suffix, uint64_t max) const;
  // A number that is positive and finite as the float it becomes.
  Result<float> positive_or(std::string_view suffix, double fallback) const;
  Result<bool> flag_or(std::string_view suffix, bool fallback) const;

  // "{file}: key '{key}' at offset {}: expected {}, found {}"
  tl::unexpected<Error> bad_value(std::string_view suffix, std::string_view expected,
                                  std::string_view found) const;

 private:
  const GgufModel& gguf_;
  std::string prefix_;
};

}  // namespace offstage
