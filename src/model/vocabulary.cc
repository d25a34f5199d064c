#include "model/vocabulary.h"

namespace offstage {
namespace {

Result<std::optional<uint32_t>> token_id(const GgufModel& gguf, std::string_view key) {
  OFFSTAGE_TRY(const auto value, gguf.find_uint(key));
  if (!value) return std::optional<uint32_t>();
  // Some converters write −1 or 2³²−1 for "none"; both read as a missing key.
  if (*value >= UINT32_MAX) return std::optional<uint32_t>();
  return std::optional<uint32_t>(static_cast<uint32_t>(*value));
}

Result<std::vector<std::string>> strings(const GgufModel& gguf, std::string_view key) {
  OFFSTAGE_TRY(const GgufArray* array, gguf.find_array(key));
  if (array == nullptr) return std::vector<std::string>();
  if (const auto* values = std::get_if<std::vector<std::string>>(&array->values)) return *values;
  if (array->size() == 0) return std::vector<std::string>();
  return make_error(ErrorCode::kCorrupt, "{}: key '{}' at offset {}: expected strings, found {}",
                    gguf.path(), key, gguf.find(key)->offset,
                    gguf_value_type_name(array->element_type));
}

// Numbers of any width and sign as T.
template <typename T>
Result<std::vector<T>> numbers(const GgufModel& gguf, std::string_view key) {
  OFFSTAGE_TRY(const GgufArray* array, gguf.find_array(key));
  std::vector<T> out;
  if (array == nullptr) return out;
  const auto copy = [&](const auto& values) {
    out.reserve(values.size());
    for (const auto value : values) out.push_back(static_cast<T>(value));
  };
  if (const auto* unsigneds = std::get_if<std::vector<uint64_t>>(&array->values)) {
    copy(*unsigneds);
  } else if (const auto* integers = std::get_if<std::vector<int64_t>>(&array->values)) {
    copy(*integers);
  } else if (const auto* floats = std::get_if<std::vector<double>>(&array->values)) {
    copy(*floats);
  } else if (array->size() != 0) {
    return make_error(ErrorCode::kCorrupt, "{}: key '{}' at offset {}: expected numbers, found {}",
                      gguf.path(), key, gguf.find(key)->offset,
                      gguf_value_type_name(array->element_type));
  }
  return out;
}

}  // namespace

Result<VocabularyFacts> vocabulary_from_gguf(const GgufModel& gguf) {
  VocabularyFacts facts;
  facts.source = gguf.path();
  OFFSTAGE_TRY(facts.model, gguf.require_string("tokenizer.ggml.model"));
  OFFSTAGE_TRY(const auto pre, gguf.find_string("tokenizer.ggml.pre"));
  facts.pre = pre.value_or("");
  OFFSTAGE_TRY_VOID(gguf.require_array("tokenizer.ggml.tokens"));
  OFFSTAGE_TRY(facts.tokens, strings(gguf, "tokenizer.ggml.tokens"));
  OFFSTAGE_TRY(facts.scores, numbers<double>(gguf, "tokenizer.ggml.scores"));
  OFFSTAGE_TRY(facts.token_types, numbers<int32_t>(gguf, "tokenizer.ggml.token_type"));
  OFFSTAGE_TRY(facts.merges, strings(gguf, "tokenizer.ggml.merges"));
  OFFSTAGE_TRY(facts.bos, token_id(gguf, "tokenizer.ggml.bos_token_id"));
  OFFSTAGE_TRY(facts.eos, token_id(gguf, "tokenizer.ggml.eos_token_id"));
  OFFSTAGE_TRY(facts.eot, token_id(gguf, "tokenizer.ggml.eot_token_id"));
  OFFSTAGE_TRY(facts.eom, token_id(gguf, "tokenizer.ggml.eom_token_id"));
  OFFSTAGE_TRY(facts.unknown, token_id(gguf, "tokenizer.ggml.unknown_token_id"));
  OFFSTAGE_TRY(facts.padding, token_id(gguf, "tokenizer.ggml.padding_token_id"));
  OFFSTAGE_TRY(facts.add_bos, gguf.find_bool("tokenizer.ggml.add_bos_token"));
  OFFSTAGE_TRY(facts.add_eos, gguf.find_bool("tokenizer.ggml.add_eos_token"));
  OFFSTAGE_TRY(facts.add_space_prefix, gguf.find_bool("tokenizer.ggml.add_space_prefix"));
  return facts;
}

}  // namespace offstage
