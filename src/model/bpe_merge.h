// The merge loop of both tokenizer families: of all neighbouring pairs that may merge, the one of
// lowest rank (leftmost among equals) becomes one symbol, until none may.
//
// O(n log n) by a heap of candidate pairs over a linked list of symbols; below kFewSymbols, where
// nearly all words are, a linear search of a small array is several times faster. Both orders are
// the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace offstage {

// A stretch of the text under way to be a token.
struct MergeSymbol {
  uint32_t begin;
  uint32_t bytes;  // 0 once it was merged into its left neighbour
  TokenId id;      // kNoToken for a character that no token stands for
};

// What two neighbours merge into. Lower ranks go first.
struct MergeResult {
  static constexpr uint32_t kNever = UINT32_MAX;
  uint32_t rank = kNever;
  TokenId id = kNoToken;
};

// Working memory, kept from word to word.
struct MergeScratch {
  struct Candidate {
    MergeResult result;
    uint32_t left;                     // index of the left symbol
    uint32_t left_bytes, right_bytes;  // when it was found: if either has changed, it is outdated
  };
  std::vector<MergeSymbol> symbols;
  std::vector<MergeResult> pairs;
  std::vector<Candidate> heap;
  std::vector<uint32_t> previous, next;
};

namespace merge_internal {

inline constexpr size_t kFewSymbols = 32;
inline constexpr uint32_t kNone = UINT32_MAX;

template <typename Find>
void merge_few(MergeScratch& scratch, const Find& find) {
  std::vector<MergeSymbol>& symbols = scratch.symbols;
  std::vector<MergeResult>& pairs = scratch.pairs;  // pairs[i] is symbols[i] with symbols[i + 1]
  pairs.clear();
  for (size_t i = 1; i < symbols.size(); ++i) pairs.push_back(find(symbols[i - 1], symbols[i]));
  while (!pairs.empty()) {
    const auto best = std::min_element(
        pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
    if (best->rank == MergeResult::kNever) break;
    const size_t i = static_cast<size_t>(best - pairs.begin());
    symbols[i].bytes += symbols[i + 1].bytes;
    symbols[i].id = best->id;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(i) + 1);
    pairs.erase(best);
    if (i > 0) pairs[i - 1] = find(symbols[i - 1], symbols[i]);
    if (i + 1 < symbols.size()) pairs[i] = find(symbols[i], symbols[i + 1]);
  }
}

template <typename Find>
class HeapMerger {
 public:
  HeapMerger(MergeScratch& scratch, const Find& find)
      : symbols_(scratch.symbols),
        heap_(scratch.heap),
        previous_(scratch.previous),
        next_(scratch.next),
        find_(find) {}

  void run() {
    link();
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), is_later);
      const Candidate candidate = heap_.back();
      heap_.pop_back();
      if (is_current(candidate)) merge(candidate);
    }
    std::erase_if(symbols_, [](const MergeSymbol& symbol) { return symbol.bytes == 0; });
  }

 private:
  using Candidate = MergeScratch::Candidate;

  static bool is_later(const Candidate& a, const Candidate& b) {
    return a.result.rank != b.result.rank ? a.result.rank > b.result.rank : a.left > b.left;
  }

  void link() {
    const auto count = static_cast<uint32_t>(symbols_.size());
    heap_.clear();
    previous_.resize(count);
    next_.resize(count);
    for (uint32_t i = 0; i < count; ++i) {
      previous_[i] = i == 0 ? kNone : i - 1;
      next_[i] = i + 1 == count ? kNone : i + 1;
    }
    for (uint32_t i = 0; i + 1 < count; ++i) consider(i, i + 1);
  }

  void consider(uint32_t left, uint32_t right) {
    if (left == kNone || right == kNone) return;
    const MergeResult result = find_(symbols_[left], symbols_[right]);
    if (result.rank == MergeResult::kNever) return;
    heap_.push_back({result, left, symbols_[left].bytes, symbols_[right].bytes});
    std::push_heap(heap_.begin(), heap_.end(), is_later);
  }

  // A symbol only ever grows or vanishes, so equal lengths mean the same two stretches of text.
  bool is_current(const Candidate& candidate) const {
    if (symbols_[candidate.left].bytes != candidate.left_bytes) return false;
    const uint32_t right = next_[candidate.left];
    return right != kNone && symbols_[right].bytes == candidate.right_bytes;
  }

  void merge(const Candidate& candidate) {
    const uint32_t left = candidate.left;
    const uint32_t right = next_[left];
    symbols_[left].bytes += symbols_[right].bytes;
    symbols_[left].id = candidate.result.id;
    symbols_[right].bytes = 0;
    next_[left] = next_[right];
    if (next_[left] != kNone) previous_[next_[left]] = left;
    consider(previous_[left], left);
    consider(left, next_[left]);
  }

  std::vector<MergeSymbol>& symbols_;
  std::vector<Candidate>& heap_;
  std::vector<uint32_t>& previous_;
  std::vector<uint32_t>& next_;
  const Find& find_;
};

}  // namespace merge_internal

// Merges scratch.symbols in place. `find(left, right)` gives the MergeResult of two neighbours; it
// must depend on their texts alone.
template <typename Find>
void merge_symbols(MergeScratch& scratch, const Find& find,
                   size_t few_symbols = merge_internal::kFewSymbols) {
  if (scratch.symbols.size() <= few_symbols) {
    merge_internal::merge_few(scratch, find);
  } else {
    merge_internal::HeapMerger<Find>(scratch, find).run();
  }
}

}  // namespace offstage
