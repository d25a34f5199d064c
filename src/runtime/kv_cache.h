// Keys and values of all sequences, in pages of 64 positions.
//
// A page holds one 64-position block of every layer and kv head:
//   [layer][K, then V][kv_head][64][kv_row_bytes]
// so a kernel finds block b of a head at page[b] + offset(layer, head). All pages are taken at
// start; a sequence gets them as it grows and gives them back when it ends. Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/arena.h"
#include "base/result.h"
#include "base/types.h"
#include "cpu/kernels.h"
#include "model/spec.h"

namespace offstage {

// kUnsupported for a q8_0 cache of heads that aren't whole blocks of 32.
Status check_kv_types(const ModelSpec& spec, KvType k_type, KvType v_type);

class KvCache {
 public:
  struct Shape {
    uint32_t n_layers = 0, n_kv_heads = 0;
    uint64_t k_row_bytes = 0, v_row_bytes = 0;  // v: 0 where it is the K row's beginning (MLA)
    uint64_t page_bytes() const {
      return uint64_t{n_layers} * n_kv_heads * kKvBlockPositions * (k_row_bytes + v_row_bytes);
    }
  };
  static Shape shape_of(const ModelSpec& spec, KvType k_type, KvType v_type);
  // Pages for `context` positions over `n_sequences` (each may leave its last page part empty).
  static uint32_t pages_for(uint32_t context, uint32_t n_sequences);

  static Result<KvCache> create(const Shape& shape, uint32_t n_pages, uint32_t n_sequences,
                                Notices& notices);

  // Makes room for positions [0, n_positions) of a sequence; kBudget, and nothing taken, when there
  // are too few pages.
  Status reserve(SequenceId sequence, uint32_t n_positions);
  void release(SequenceId sequence);

  const std::byte* const* blocks(SequenceId sequence) const {
    return tables_[sequence.value].data();
  }
  // In a page: of a layer's keys and values, which lie together, and where a head's begin.
  uint64_t layer_bytes() const;
  uint64_t k_offset(uint32_t layer, uint32_t head) const;
  uint64_t v_offset(uint32_t layer, uint32_t head) const;
  // Where position's row of a head goes.
  std::byte* k_row(SequenceId sequence, uint32_t position, uint32_t layer, uint32_t head);
  std::byte* v_row(SequenceId sequence, uint32_t position, uint32_t layer, uint32_t head);

  std::span<std::byte> memory() const { return {arena_.data(), arena_.size_bytes()}; }
  uint64_t page_bytes() const { return shape_.page_bytes(); }
  // Of all pages, which memory() begins with.
  uint64_t pages_bytes() const { return n_pages_ * shape_.page_bytes(); }
  uint32_t free_pages() const { return static_cast<uint32_t>(free_.size()); }

 private:
  KvCache(const Shape& shape, HostArena arena) : shape_(shape), arena_(std::move(arena)) {}
  Shape shape_;
  HostArena arena_;
  uint32_t n_pages_ = 0;
  std::vector<std::byte*> free_;
  std::vector<std::vector<std::byte*>> tables_;  // by sequence
};

}  // namespace offstage
