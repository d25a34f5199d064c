// Which blocks of keys and values a query sees, and which several queries see alike: heads that
// share a kv head, or one head's queries of consecutive positions. A block is converted once for
// all of them, and each query's numbers are those that it has alone. For cpu/attention_*.cc alone;
// everything has internal linkage (README, "Files").
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/inline.h"
#include "cpu/kernels.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

// The positions of one block that are attended, within the block.
struct Block {
  const std::byte* k;
  const std::byte* v;
  const std::byte* next_k;  // of the block that comes next, this walk's or the next one's
  uint32_t begin, end;
  bool first;
};

// Queries that see the same blocks: strides lead from one's to the next one's.
struct Queries {
  const float* q;
  float* out;
  const float* sinks;  // nullptr: none
  uint32_t q_stride, out_stride, sink_stride;

  Queries only(uint32_t i) const {
    return {.q = q + size_t{i} * q_stride,
            .out = out + size_t{i} * out_stride,
            .sinks = sinks == nullptr ? nullptr : sinks + size_t{i} * sink_stride,
            .q_stride = 0,
            .out_stride = 0,
            .sink_stride = 0};
  }
};

template <int kQueries>
struct State {
  alignas(64) float p[kQueries][kKvBlockPositions];
  float m[kQueries] = {}, l[kQueries] = {};
  float old_scale[kQueries], new_scale[kQueries];
};

OFFSTAGE_INLINE uint32_t first_block_of(const AttentionArgs& args, uint32_t row) {
  return first_of_row(args, row) / kKvBlockPositions;
}
OFFSTAGE_INLINE uint32_t last_block_of(const AttentionArgs& args, uint32_t row) {
  return (args.last + row) / kKvBlockPositions;
}

// Blocks [begin, end) of those that `row` sees. Isa::add_block() brings a block into the state and
// into `out`.
template <typename Isa, int kQueries>
void walk(const AttentionArgs& args, uint32_t row, uint32_t begin, uint32_t end,
          const Queries& queries, State<kQueries>* state) {
  const uint32_t first = first_of_row(args, row), last = args.last + row;
  const uint32_t first_block = first / kKvBlockPositions, last_block = last / kKvBlockPositions;
  const std::byte* const then_k =
      args.then_k != nullptr ? args.then_k : args.k_blocks[last_block] + args.k_offset;
  for (uint32_t b = begin; b < end; ++b) {
    const Block block = {
        .k = args.k_blocks[b] + args.k_offset,
        .v = args.v_blocks[b] + args.v_offset,
        .next_k = b < last_block ? args.k_blocks[b + 1] + args.k_offset : then_k,
        .begin = b == first_block ? first % kKvBlockPositions : 0,
        .end = b == last_block ? last % kKvBlockPositions + 1 : kKvBlockPositions,
        .first = b == first_block,
    };
    Isa::add_block(args, block, queries, state);
  }
}

// Heads `head` … of one row.
template <typename Isa, int kHeads>
void attend_heads(const AttentionArgs& args, uint32_t row, uint32_t head) {
  const Queries queries = {
      .q = args.q + size_t{row} * args.q_stride + size_t{head} * args.head_dim_k,
      .out = args.out + size_t{row} * args.out_stride + size_t{head} * args.head_dim_v,
      .sinks = args.sinks == nullptr ? nullptr : args.sinks + head,
      .q_stride = args.head_dim_k,
      .out_stride = args.head_dim_v,
      .sink_stride = 1,
  };
  State<kHeads> state;
  walk<Isa>(args, row, first_block_of(args, row), last_block_of(args, row) + 1, queries, &state);
  Isa::finish(args, queries, &state);
}

// One head of rows `row` …: each walks alone until all see whole blocks, and from where the first
// of them ends.
template <typename Isa, int kRows>
void attend_rows(const AttentionArgs& args, uint32_t row, uint32_t head) {
  const Queries queries = {
      .q = args.q + size_t{row} * args.q_stride + size_t{head} * args.head_dim_k,
      .out = args.out + size_t{row} * args.out_stride + size_t{head} * args.head_dim_v,
      .sinks = args.sinks == nullptr ? nullptr : args.sinks + head,
      .q_stride = args.q_stride,
      .out_stride = args.out_stride,
      .sink_stride = 0,
  };
  State<kRows> state;
  const auto alone = [&](uint32_t r, uint32_t begin, uint32_t end) {
    State<1> one;
    one.m[0] = state.m[r];
    one.l[0] = state.l[r];
    walk<Isa>(args, row + r, begin, end, queries.only(r), &one);
    state.m[r] = one.m[0];
    state.l[r] = one.l[0];
  };
  constexpr uint32_t kLast = kRows - 1;
  const bool begin_alike = first_of_row(args, row) == first_of_row(args, row + kLast);
  uint32_t begin = first_block_of(args, row + kLast) + (begin_alike ? 0 : 1);
  const uint32_t end = last_block_of(args, row);
  if (begin > end) begin = end;
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint32_t first = first_block_of(args, row + r);
    if (first < begin) alone(r, first, begin);
  }
  walk<Isa>(args, row, begin, end, queries, &state);
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint32_t first = first_block_of(args, row + r);
    alone(r, first > end ? first : end, last_block_of(args, row + r) + 1);
  }
  Isa::finish(args, queries, &state);
}

// As many together as Isa::kTogether: rows of a head where a kv head has fewer heads than that.
template <typename Isa>
void attend_all(const AttentionArgs& args) {
  uint32_t row = 0;
  const auto rows_by = [&]<int kRows>() {
    for (; row + kRows <= args.n_rows; row += kRows)
      for (uint32_t head = 0; head < args.n_heads; ++head) attend_rows<Isa, kRows>(args, row, head);
  };
  if (args.n_heads < Isa::kTogether) {
    if constexpr (Isa::kTogether >= 8) rows_by.template operator()<8>();
    if (args.n_heads < 4) rows_by.template operator()<4>();
    if (args.n_heads < 2) rows_by.template operator()<2>();
  }
  for (; row < args.n_rows; ++row) {
    uint32_t head = 0;
    const auto heads_by = [&]<int kHeads>() {
      for (; head + kHeads <= args.n_heads; head += kHeads)
        attend_heads<Isa, kHeads>(args, row, head);
    };
    if constexpr (Isa::kTogether >= 8) heads_by.template operator()<8>();
    heads_by.template operator()<4>();
    heads_by.template operator()<2>();
    heads_by.template operator()<1>();
  }
}

}  // namespace
}  // namespace offstage
