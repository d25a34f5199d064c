// Attention: sixteen lanes over d for q · k, positions in lanes for the softmax, d
// in lanes for the values. K and V of a block are converted once for up to eight queries.
#include <immintrin.h>

#include <cstddef>

#include "cpu/attention_walk.h"
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

// Sixteen lanes of q · k for kRows rows and kQueries heads, sixteen accumulators in all: q is
// loaded once for all rows, and what is left of a row is folded before it leaves the registers.
template <KvType kType, int kQueries, int kRows>
OFFSTAGE_INLINE void dot_lanes(const float* q, uint32_t q_stride, uint32_t n,
                               const std::byte* const* row, __m512 (*lanes)[kRows]) {
  for (int h = 0; h < kQueries; ++h)
    for (int r = 0; r < kRows; ++r) lanes[h][r] = _mm512_setzero_ps();
  const auto add = [&](uint32_t d, uint32_t offset, __mmask16 mask) {
    __m512 k[kRows];
    for (int r = 0; r < kRows; ++r) k[r] = load_kv<kType>(row[r], d, offset, mask);
    for (uint32_t h = 0; h < kQueries; ++h) {
      const __m512 x = _mm512_maskz_loadu_ps(mask, q + size_t{h} * q_stride + d + offset);
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
template <KvType kType, int kQueries>
void score16(const AttentionArgs& args, const float* q, uint32_t q_stride, const Block& block,
             uint32_t origin, bool fetch_values, float (*p)[kKvBlockPositions]) {
  constexpr int kRows = kQueries == 1 ? 1 : 16 / kQueries, kPasses = 16 / kRows;
  const uint32_t n = args.head_dim_k;
  const uint64_t stride = kv_row_bytes(kType, n);
  const uint64_t v_bytes = kv_row_bytes(args.v_type, args.head_dim_v);
  const uint64_t v_stride = v_stride_of(args);
  __m512 folded[kQueries][kPasses];
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const std::byte* row[kRows];
    for (uint32_t r = 0; r < kRows; ++r) {
      uint32_t i = origin + pass + kPasses * r;
      i = i < block.begin ? block.begin : i < block.end ? i : block.end - 1;
      row[r] = block.k + stride * i;
      if (fetch_values) fetch(block.v + v_stride * i, v_bytes);
    }
    __m512 lanes[kQueries][kRows];
    dot_lanes<kType, kQueries, kRows>(q, q_stride, n, row, lanes);
    for (int h = 0; h < kQueries; ++h) {
      fold_all<0, kRows>(lanes[h]);
      folded[h][pass] = lanes[h][0];
    }
  }
  for (int h = 0; h < kQueries; ++h) {
    fold_all<__builtin_ctz(kRows), kPasses>(folded[h]);
    _mm512_store_ps(p[h] + origin,
                    _mm512_mul_ps(_mm512_set1_ps(args.scale), in_order_avx512(folded[h][0])));
  }
}

// p ← scores of the attended positions; the others' are of no account.
template <KvType kType, int kQueries>
void score(const AttentionArgs& args, const Queries& queries, const Block& block,
           State<kQueries>* state) {
  constexpr int kTogether = kQueries == 8 && kType != KvType::kQ8_0 ? 4 : kQueries;
  for (uint32_t origin = 0; origin < kKvBlockPositions; origin += 16) {
    if (origin >= block.end || origin + 16 <= block.begin) {
      for (int h = 0; h < kQueries; ++h) _mm512_store_ps(state->p[h] + origin, _mm512_setzero_ps());
      continue;
    }
    for (uint32_t h = 0; h < kQueries; h += kTogether)
      score16<kType, kTogether>(args, queries.q + size_t{h} * queries.q_stride, queries.q_stride,
                                block, origin, h == 0, state->p + h);
  }
}

// Scores → p of the block, and how it merges with what came before.
template <int kQueries>
void merge_softmax(const Block& block, State<kQueries>* state) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  const uint64_t attended = (block.end == 64 ? ~uint64_t{0} : (uint64_t{1} << block.end) - 1) &
                            ~uint64_t{0} << block.begin;
  for (int h = 0; h < kQueries; ++h) {
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
template <KvType kType, int kQueries, int kChunks>
OFFSTAGE_INLINE void add_values(const AttentionArgs& args, const Block& block, uint32_t d,
                                const State<kQueries>& state, const Queries& queries) {
  const uint32_t n = args.head_dim_v;
  const uint64_t stride = v_stride_of(args);
  __mmask16 lanes[kChunks];
  __m512 o[kQueries][kChunks];
  for (uint32_t c = 0; c < kChunks; ++c) {
    lanes[c] = kChunks > 1 ? 0xffff : lanes_from(d, n);
    for (int h = 0; h < kQueries; ++h) o[h][c] = _mm512_setzero_ps();
  }
  const uint64_t k_stride = kv_row_bytes(args.k_type, args.head_dim_k);
  for (uint32_t i = block.begin; i < block.end; ++i) {
    if (d == 0) fetch(block.next_k + k_stride * i, k_stride);
    const std::byte* row = block.v + stride * i;
    __m512 v[kChunks];
    for (uint32_t c = 0; c < kChunks; ++c)
      v[c] = kChunks > 1 ? load_kv<kType>(row, d + c / 2 * 32, c % 2 * 16, 0xffff)
                         : load_kv<kType>(row, d / 32 * 32, d % 32, lanes[c]);
    for (int h = 0; h < kQueries; ++h) {
      const __m512 p = _mm512_set1_ps(state.p[h][i]);
      for (int c = 0; c < kChunks; ++c) o[h][c] = _mm512_fmadd_ps(p, v[c], o[h][c]);
    }
  }
  for (uint32_t h = 0; h < kQueries; ++h) {
    for (uint32_t c = 0; c < kChunks; ++c) {
      float* at = queries.out + size_t{h} * queries.out_stride + d + 16 * c;
      if (!block.first) {
        const __m512 old =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes[c], at), _mm512_set1_ps(state.old_scale[h]));
        o[h][c] = _mm512_fmadd_ps(o[h][c], _mm512_set1_ps(state.new_scale[h]), old);
      }
      _mm512_mask_storeu_ps(at, lanes[c], o[h][c]);
    }
  }
}

template <KvType kType, int kQueries>
void accumulate(const AttentionArgs& args, const Block& block, const State<kQueries>& state,
                const Queries& queries) {
  constexpr int kChunks = kQueries == 8 ? 2 : 4;
  uint32_t d = 0;
  for (; d + 16 * kChunks <= args.head_dim_v; d += 16 * kChunks)
    add_values<kType, kQueries, kChunks>(args, block, d, state, queries);
  for (; d < args.head_dim_v; d += 16)
    add_values<kType, kQueries, 1>(args, block, d, state, queries);
}

struct Avx512 {
  static constexpr uint32_t kTogether = 8;

  template <int kQueries>
  static void add_block(const AttentionArgs& args, const Block& block, const Queries& queries,
                        State<kQueries>* state) {
    switch (args.k_type) {
      case KvType::kF32: score<KvType::kF32>(args, queries, block, state); break;
      case KvType::kF16: score<KvType::kF16>(args, queries, block, state); break;
      case KvType::kQ8_0: score<KvType::kQ8_0>(args, queries, block, state); break;
    }
    merge_softmax(block, state);
    switch (args.v_type) {
      case KvType::kF32: accumulate<KvType::kF32>(args, block, *state, queries); break;
      case KvType::kF16: accumulate<KvType::kF16>(args, block, *state, queries); break;
      case KvType::kQ8_0: accumulate<KvType::kQ8_0>(args, block, *state, queries); break;
    }
  }

  // Sinks, and what was summed by what it is shares of.
  template <int kQueries>
  static void finish(const AttentionArgs& args, const Queries& queries, State<kQueries>* state) {
    for (uint32_t h = 0; h < kQueries; ++h) {
      float* o = queries.out + size_t{h} * queries.out_stride;
      if (queries.sinks != nullptr)
        scale_avx512(
            o,
            merge_sink(queries.sinks[size_t{h} * queries.sink_stride], &state->m[h], &state->l[h]),
            args.head_dim_v);
      const __m512 l = _mm512_set1_ps(state->l[h]);
      for (uint32_t d = 0; d < args.head_dim_v; d += 16) {
        const __mmask16 m = lanes_from(d, args.head_dim_v);
        _mm512_mask_storeu_ps(o + d, m, _mm512_div_ps(_mm512_maskz_loadu_ps(m, o + d), l));
      }
    }
  }
};

}  // namespace

void attention_avx512(const AttentionArgs& args) {
  check_attention(args);
  attend_all<Avx512>(args);
}

}  // namespace offstage
