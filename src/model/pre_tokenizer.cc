#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "base/check.h"
#include "model/unicode.h"

namespace offstage {
namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// Bytes of the ill-formed run at the front of `text`.
size_t invalid_run_bytes(std::string_view text) {
  size_t at = 1;
  while (at < text.size() && utf8_character_bytes(text.substr(at)) == 0) ++at;
  return at;
}

}  // namespace

struct PreTokenizer::Stage {
  std::unique_ptr<pcre2_code, FreeCode> code;
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context;
};

// One match block per stage: a stage's pieces go to the next while its own search is under way.
struct PreTokenizer::Scratch {
  std::vector<std::unique_ptr<pcre2_match_data, FreeMatchData>> match_data;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::create(const PreTokenizerFamily& family, uint32_t match_limit) {
  PreTokenizer pre;
  for (const std::string_view pattern : family.stages) {
    OFFSTAGE_TRY_VOID(pre.add_stage(family.name, pattern, match_limit));
  }
  return pre;
}

Status PreTokenizer::add_stage(std::string_view family, std::string_view pattern,
                               uint32_t match_limit) {
  Stage stage;
  int code = 0;
  size_t offset = 0;
  stage.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr));
  if (stage.code == nullptr) {
    PCRE2_UCHAR reason[128] = {};
    pcre2_get_error_message(code, reason, sizeof reason);
    return make_error(ErrorCode::kUnsupported,
                      "pre-tokenizer '{}': the PCRE2 library can't compile stage {} at offset {}: "
                      "{}; a library built with Unicode support is needed",
                      family, stages_.size(), offset, reinterpret_cast<const char*>(reason));
  }
  stage.context.reset(pcre2_match_context_create(nullptr));
  CHECK(stage.context != nullptr);
  pcre2_set_match_limit(stage.context.get(), match_limit);
  if (pcre2_jit_compile(stage.code.get(), PCRE2_JIT_COMPLETE) != 0) is_compiled_ = false;
  stages_.push_back(std::move(stage));
  return {};
}

void PreTokenizer::split(std::string_view text, const Sink& sink) const {
  Scratch scratch;
  for (const Stage& stage : stages_) {
    scratch.match_data.emplace_back(
        pcre2_match_data_create_from_pattern(stage.code.get(), nullptr));
    CHECK(scratch.match_data.back() != nullptr);
  }
  while (!text.empty()) {
    if (const size_t valid = utf8_valid_prefix_bytes(text); valid > 0) {
      split_stage(0, text.substr(0, valid), scratch, sink);
      text.remove_prefix(valid);
    }
    if (text.empty()) break;
    const size_t invalid = invalid_run_bytes(text);
    sink(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

void PreTokenizer::split_stage(size_t stage, std::string_view segment, Scratch& scratch,
                               const Sink& sink) const {
  if (stage == stages_.size()) return sink(segment);
  pcre2_match_data* match_data = scratch.match_data[stage].get();
  const auto match = [&](size_t from, uint32_t options) {
    // The text was checked once, in split(); checking it again at each match would be quadratic.
    return pcre2_match(stages_[stage].code.get(), reinterpret_cast<PCRE2_SPTR>(segment.data()),
                       segment.size(), from, options | PCRE2_NO_UTF_CHECK, match_data,
                       stages_[stage].context.get());
  };
  size_t at = 0;
  while (at < segment.size()) {
    int found = match(at, 0);
    // Compiled code works on a stack of 32 KiB; the interpreter has the heap.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(at, PCRE2_NO_JIT);
    if (found < 0) break;  // no more matches, or a limit: the rest is one piece (see the header)
    const size_t begin = pcre2_get_ovector_pointer(match_data)[0];
    const size_t end = pcre2_get_ovector_pointer(match_data)[1];
    CHECK_GT(end, begin);  // no pattern matches the empty string
    if (begin > at) split_stage(stage + 1, segment.substr(at, begin - at), scratch, sink);
    split_stage(stage + 1, segment.substr(begin, end - begin), scratch, sink);
    at = end;
  }
  if (at < segment.size()) split_stage(stage + 1, segment.substr(at), scratch, sink);
}

}  // namespace offstage
