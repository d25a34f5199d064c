// Cuts text into the words that byte-pair merging works within.
//
// In: any bytes. Out: consecutive non-empty pieces that together are the text, in order. Text that
// isn't well-formed UTF-8 is no error: each maximal run of ill-formed bytes is a piece of its own,
// and the text before and after it is cut as if it ended and began there. (Replacing such bytes by
// U+FFFD, as others do, would lose what was in the prompt.)
//
// Cost: every pattern is linear on every text (pre_tokenizer_patterns.cc says how). Should PCRE2
// still run into its match limit, the rest of that run of text is handed over as one piece, so that
// the call stays linear; merging within a long piece is O(n log n). Ids then differ from those of
// an unlimited search, but decode to the same text. No known text gets there.
//
// Immutable after create(): any thread may split. The matcher's working memory belongs to the call.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/pre_tokenizer_patterns.h"

namespace offstage {

class PreTokenizer {
 public:
  using Sink = std::function<void(std::string_view piece)>;

  // Steps of backtracking allowed per match when the compiled matcher is not available or its
  // 32 KiB stack doesn't do. A linear pattern takes a few per character.
  static constexpr uint32_t kMatchLimit = 64u << 20;

  // Errors: kUnsupported if the PCRE2 library at hand can't compile the patterns (no Unicode).
  static Result<PreTokenizer> create(const PreTokenizerFamily& family,
                                     uint32_t match_limit = kMatchLimit);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  void split(std::string_view text, const Sink& sink) const;

  // False where PCRE2 has no just-in-time compiler: same pieces, about a tenth of the speed.
  bool is_compiled() const { return is_compiled_; }

 private:
  struct Stage;
  struct Scratch;
  PreTokenizer();
  Status add_stage(std::string_view family, std::string_view pattern, uint32_t match_limit);
  void split_stage(size_t stage, std::string_view segment, Scratch& scratch,
                   const Sink& sink) const;

  std::vector<Stage> stages_;
  bool is_compiled_ = true;
};

}  // namespace offstage
