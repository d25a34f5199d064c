// Attention of one query row: sixteen lanes over d for q · k, positions in lanes for the softmax, d
// in lanes for the values. K and V of a block are converted once for up to eight heads.
#include <immintrin.h>

#include <cstddef>

#include "cpu/avx512.h"
#include "cpu/lanes_avx512.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

OFFSTAGE_INLINE __mmask16 lanes_from(uint32_t at, uint32_t n) {
  return static_cast<__mmask16>(n - at >= 16 ? 0xffff : (1u << (n - at)) - 1);
}

// A row that is read within the next block of 64, into L2.
OFFSTAGE_INLINE void fetch(const std::byte* row, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char*>(row + at), _MM_HINT_T1);
}

// Elements base + offset … + 15 of a stored row; base is a multiple of 32, offset 0 or 16. (Apart,
// so that the compiler sees two halves share a scale.)
template <KvType kType>
OFFSTAGE_INLINE __m512 load_kv(const std::byte* row, uint32_t base, uint32_t offset,
                               __mmask16 lanes) {
  const uint32_t at = base + offset;
  if constexpr (kType == KvType::kF32) return _mm512_maskz_loadu_ps(lanes, row + size_t{at} * 4);
  if constexpr (kType == KvType::kF16)
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, row + size_t{at} * 2));
  const std::byte* block = row + size_t{base} / 32 * 34;
  uint16_t d;
  __builtin_memcpy(&d, block, 2);
  const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2 + offset));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)),
                       _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(d))));
}

// The positions of one block that are attended, within the block.
struct Block {
  const std::byte* k;
  const std::byte* v;
  const std::byte* next_k;  // of the block that comes next, this group's or the next one's
  uint32_t begin, end;
  bool first;
};

template <int kHeads>
struct State {
  alignas(64) float p[kHeads][kKvBlockPositions];
  float m[kHeads], l[kHeads];
  float old_scale[kHeads], new_scale[kHeads];
};

// Sixteen lanes of q · k for kRows rows and kHeads heads, sixteen accumulators in all: q is loaded
// once for all rows, and what is left of a row is folded before it leaves the registers.
template <KvType kType, int kHeads, int kRows>
OFFSTAGE_INLINE void dot_lanes(const float* q, uint32_t n, const std::byte* const* row,
                               __m512 (*lanes)[kRows]) {
  for (int h = 0; h < kHeads; ++h)
    for (int r = 0; r < kRows; ++r) lanes[h][r] = _mm512_setzero_ps();
  const auto add = [&](uint32_t d, uint32_t offset, __mmask16 mask) {
    __m512 k[kRows];
    for (int r = 0; r < kRows; ++r) k[r] = load_kv<kType>(row[r], d, offset, mask);
    for (uint32_t h = 0; h < kHeads; ++h) {
      const __m512 x = _mm512_maskz_loadu_ps(mask, q + size_t{h} * n + d + offset);
      for (int r = 0; r < kRows; ++r) lanes[h][r] = _mm512_fmadd_ps(x, k[r], lanes[h][r]);
    }
  };
  uint32_t d = 0;
  for (; d + 32 <= n; d += 32) {
    add(d, 0, 0xffff);
    add(d, 16, 0xffff);
  }
  for (uint32_t offset = 0; d + offset < n; offset += 16) add(d, offset, lanes_from(d + offset, n));
}

// p ← scale · dot(q, k) of sixteen positions. Those that aren't attended get another's score.
template <KvType kType, int kHeads>
void score16(const AttentionArgs& args, const float* q, const Block& block, uint32_t origin,
             bool fetch_values, float (*p)[kKvBlockPositions]) {
  constexpr int kRows = kHeads == 1 ? 1 : 16 / kHeads, kPasses = 16 / kRows;
  const uint32_t n = args.head_dim_k;
  const uint64_t stride = kv_row_bytes(kType, n);
  const uint64_t v_bytes = kv_row_bytes(args.v_type, args.head_dim_v);
  const uint64_t v_stride = v_stride_of(args);
  __m512 folded[kHeads][kPasses];
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const std::byte* row[kRows];
    for (uint32_t r = 0; r < kRows; ++r) {
      uint32_t i = origin + pass + kPasses * r;
      i = i < block.begin ? block.begin : i < block.end ? i : block.end - 1;
      row[r] = block.k + stride * i;
      if (fetch_values) fetch(block.v + v_stride * i, v_bytes);
    }
    __m512 lanes[kHeads][kRows];
    dot_lanes<kType, kHeads, kRows>(q, n, row, lanes);
    for (int h = 0; h < kHeads; ++h) {
      fold_all<0, kRows>(lanes[h]);
      folded[h][pass] = lanes[h][0];
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    fold_all<__builtin_ctz(kRows), kPasses>(folded[h]);
    _mm512_store_ps(p[h] + origin,
                    _mm512_mul_ps(_mm512_set1_ps(args.scale), in_order_avx512(folded[h][0])));
  }
}

// p ← scores of the attended positions; the others' are of no account.
template <KvType kType, int kHeads>
void score(const AttentionArgs& args, const float* q, const Block& block, State<kHeads>* state) {
  constexpr int kTogether = kHeads == 8 && kType != KvType::kQ8_0 ? 4 : kHeads;
  for (uint32_t origin = 0; origin < kKvBlockPositions; origin += 16) {
    if (origin >= block.end || origin + 16 <= block.begin) {
      for (int h = 0; h < kHeads; ++h) _mm512_store_ps(state->p[h] + origin, _mm512_setzero_ps());
      continue;
    }
    for (uint32_t h = 0; h < kHeads; h += kTogether)
      score16<kType, kTogether>(args, q + size_t{h} * args.head_dim_k, block, origin, h == 0,
                                state->p + h);
  }
}

// Scores → p of the block, and how it merges with what came before.
template <int kHeads>
void merge_softmax(const Block& block, State<kHeads>* state) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  const uint64_t attended = (block.end == 64 ? ~uint64_t{0} : (uint64_t{1} << block.end) - 1) &
                            ~uint64_t{0} << block.begin;
  for (int h = 0; h < kHeads; ++h) {
    __m512 max = lowest;
    for (int i = 0; i < 4; ++i)
      max = _mm512_max_ps(_mm512_mask_load_ps(lowest, static_cast<__mmask16>(attended >> (16 * i)),
                                              state->p[h] + 16 * i),
                          max);
    const float m = _mm512_reduce_max_ps(max);
    __m512 lanes = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      const auto mask = static_cast<__mmask16>(attended >> (16 * i));
      const __m512 s = _mm512_load_ps(state->p[h] + 16 * i);
      const __m512 p = _mm512_maskz_mov_ps(mask, exp_avx512(_mm512_sub_ps(s, _mm512_set1_ps(m))));
      _mm512_store_ps(state->p[h] + 16 * i, p);
      lanes = _mm512_add_ps(lanes, p);
    }
    const float l = sum_lanes_avx512(lanes);
    if (block.first) {
      state->m[h] = m;
      state->l[h] = l;
      continue;
    }
    const float top = m > state->m[h] ? m : state->m[h];
    state->old_scale[h] = exp_scalar(state->m[h] - top);
    state->new_scale[h] = exp_scalar(m - top);
    state->l[h] = __builtin_fmaf(l, state->new_scale[h], state->l[h] * state->old_scale[h]);
    state->m[h] = top;
  }
}

// Elements d … of the block's Σ p·v, kChunks vectors of sixteen, merged into out. Several chunks
// are whole and begin at a multiple of 32.
template <KvType kType, int kHeads, int kChunks>
OFFSTAGE_INLINE void add_values(const AttentionArgs& args, const Block& block, uint32_t d,
                                const State<kHeads>& state, float* out) {
  const uint32_t n = args.head_dim_v;
  const uint64_t stride = v_stride_of(args);
  __mmask16 lanes[kChunks];
  __m512 o[kHeads][kChunks];
  for (uint32_t c = 0; c < kChunks; ++c) {
    lanes[c] = kChunks > 1 ? 0xffff : lanes_from(d, n);
    for (int h = 0; h < kHeads; ++h) o[h][c] = _mm512_setzero_ps();
  }
  const uint64_t k_stride = kv_row_bytes(args.k_type, args.head_dim_k);
  for (uint32_t i = block.begin; i < block.end; ++i) {
    if (d == 0) fetch(block.next_k + k_stride * i, k_stride);
    const std::byte* row = block.v + stride * i;
    __m512 v[kChunks];
    for (uint32_t c = 0; c < kChunks; ++c)
      v[c] = kChunks > 1 ? load_kv<kType>(row, d + c / 2 * 32, c % 2 * 16, 0xffff)
                         : load_kv<kType>(row, d / 32 * 32, d % 32, lanes[c]);
    for (int h = 0; h < kHeads; ++h) {
      const __m512 p = _mm512_set1_ps(state.p[h][i]);
      for (int c = 0; c < kChunks; ++c) o[h][c] = _mm512_fmadd_ps(p, v[c], o[h][c]);
    }
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t c = 0; c < kChunks; ++c) {
      float* at = out + size_t{h} * n + d + 16 * c;
      if (!block.first) {
        const __m512 old =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes[c], at), _mm512_set1_ps(state.old_scale[h]));
        o[h][c] = _mm512_fmadd_ps(o[h][c], _mm512_set1_ps(state.new_scale[h]), old);
      }
      _mm512_mask_storeu_ps(at, lanes[c], o[h][c]);
    }
  }
}

template <KvType kType, int kHeads>
void accumulate(const AttentionArgs& args, const Block& block, const State<kHeads>& state,
                float* out) {
  constexpr int kChunks = kHeads == 8 ? 2 : 4;
  uint32_t d = 0;
  for (; d + 16 * kChunks <= args.head_dim_v; d += 16 * kChunks)
    add_values<kType, kHeads, kChunks>(args, block, d, state, out);
  for (; d < args.head_dim_v; d += 16) add_values<kType, kHeads, 1>(args, block, d, state, out);
}

template <int kHeads>
void attend(const AttentionArgs& args, uint32_t head) {
  const float* q = args.q + size_t{head} * args.head_dim_k;
  float* out = args.out + size_t{head} * args.head_dim_v;
  State<kHeads> state;
  const uint32_t first_block = args.first / kKvBlockPositions;
  const uint32_t last_block = args.last / kKvBlockPositions;
  const std::byte* const then_k =
      args.then_k != nullptr ? args.then_k : args.k_blocks[last_block] + args.k_offset;
  for (uint32_t b = first_block; b <= last_block; ++b) {
    const Block block = {
        .k = args.k_blocks[b] + args.k_offset,
        .v = args.v_blocks[b] + args.v_offset,
        .next_k = b < last_block ? args.k_blocks[b + 1] + args.k_offset : then_k,
        .begin = b == first_block ? args.first % kKvBlockPositions : 0,
        .end = b == last_block ? args.last % kKvBlockPositions + 1 : kKvBlockPositions,
        .first = b == first_block,
    };
    switch (args.k_type) {
      case KvType::kF32: score<KvType::kF32>(args, q, block, &state); break;
      case KvType::kF16: score<KvType::kF16>(args, q, block, &state); break;
      case KvType::kQ8_0: score<KvType::kQ8_0>(args, q, block, &state); break;
    }
    merge_softmax(block, &state);
    switch (args.v_type) {
      case KvType::kF32: accumulate<KvType::kF32>(args, block, state, out); break;
      case KvType::kF16: accumulate<KvType::kF16>(args, block, state, out); break;
      case KvType::kQ8_0: accumulate<KvType::kQ8_0>(args, block, state, out); break;
    }
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    float* o = out + size_t{h} * args.head_dim_v;
    if (args.sinks != nullptr)
      scale_avx512(o, merge_sink(args.sinks[head + h], &state.m[h], &state.l[h]), args.head_dim_v);
    const __m512 l = _mm512_set1_ps(state.l[h]);
    for (uint32_t d = 0; d < args.head_dim_v; d += 16) {
      const __mmask16 m = lanes_from(d, args.head_dim_v);
      _mm512_mask_storeu_ps(o + d, m, _mm512_div_ps(_mm512_maskz_loadu_ps(m, o + d), l));
    }
  }
}

}  // namespace

void attention_avx512(const AttentionArgs& args) {
  check_attention(args);
  uint32_t head = 0;
  for (; head + 8 <= args.n_heads; head += 8) attend<8>(args, head);
  for (; head + 4 <= args.n_heads; head += 4) attend<4>(args, head);
  for (; head + 2 <= args.n_heads; head += 2) attend<2>(args, head);
  for (; head < args.n_heads; ++head) attend<1>(args, head);
}

}  // namespace offstage
