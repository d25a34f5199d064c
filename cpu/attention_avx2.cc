// Attention: sixteen lanes (two registers) over d for q · k, positions in lanes
// for the softmax, d in lanes for the values. K and V of a block are converted once for up to four
// queries.
#include <immintrin.h>

#include <cstddef>

#include "cpu/attention_walk.h"
#include "cpu/avx2.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

// A row that is read within the next block of 64, into L2.
OFFSTAGE_INLINE void fetch(const std::byte* row, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char*>(row + at), _MM_HINT_T1);
}

// Elements base + offset … + 7 of a stored row; base is a multiple of 16, offset 0 or 8. (Apart, so
// that the compiler sees two halves share a scale.)
template <KvType kType>
OFFSTAGE_INLINE __m256 load_kv(const std::byte* row, uint32_t base, uint32_t offset) {
  const uint32_t at = base + offset;
  if constexpr (kType == KvType::kF32)
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row) + at);
  if constexpr (kType == KvType::kF16) return _mm256_cvtph_ps(load16(row + size_t{at} * 2));
  const std::byte* block = row + size_t{base} / 32 * 34;
  uint16_t d;
  __builtin_memcpy(&d, block, 2);
  const __m128i q =
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 + base % 32 + offset));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                       _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(d))));
}

// The same of a row of n that may end before: then zeros.
template <KvType kType>
OFFSTAGE_INLINE __m256 load_kv_end(const std::byte* row, uint32_t at, uint32_t n) {
  if (at >= n) return _mm256_setzero_ps();
  if (n - at >= 8) return load_kv<kType>(row, at / 16 * 16, at % 16);
  if constexpr (kType == KvType::kF32)
    return _mm256_maskload_ps(reinterpret_cast<const float*>(row) + at, lanes_from(at, n));
  alignas(16) std::byte padded[16] = {};  // F16: rows in Q8_0 are multiples of 32
  __builtin_memcpy(padded, row + size_t{at} * 2, (n - at) * 2);
  return _mm256_cvtph_ps(load16(padded));
}

// Sixteen lanes of q · k, the upper eight added to the lower, for kRows rows and kQueries heads: q
// is loaded once for all rows.
template <KvType kType, int kQueries, int kRows>
OFFSTAGE_INLINE void dot_lanes(const float* q, uint32_t q_stride, uint32_t n,
                               const std::byte* const* row, __m256 (*sums)[kRows]) {
  __m256 lanes[kQueries][kRows][2];
  for (int h = 0; h < kQueries; ++h)
    for (int r = 0; r < kRows; ++r) lanes[h][r][0] = lanes[h][r][1] = _mm256_setzero_ps();
  uint32_t d = 0;
  for (; d + 16 <= n; d += 16) {
    for (uint32_t half = 0; half < 2; ++half) {
      __m256 k[kRows];
      for (int r = 0; r < kRows; ++r) k[r] = load_kv<kType>(row[r], d, 8 * half);
      for (uint32_t h = 0; h < kQueries; ++h) {
        const __m256 x = _mm256_loadu_ps(q + size_t{h} * q_stride + d + 8 * half);
        for (int r = 0; r < kRows; ++r)
          lanes[h][r][half] = _mm256_fmadd_ps(x, k[r], lanes[h][r][half]);
      }
    }
  }
  for (uint32_t half = 0; d + 8 * half < n; ++half) {
    const uint32_t at = d + 8 * half;
    const __m256i mask = lanes_from(at, n);
    for (int r = 0; r < kRows; ++r) {
      const __m256 k = load_kv_end<kType>(row[r], at, n);
      for (uint32_t h = 0; h < kQueries; ++h)
        lanes[h][r][half] = _mm256_fmadd_ps(_mm256_maskload_ps(q + size_t{h} * q_stride + at, mask),
                                            k, lanes[h][r][half]);
    }
  }
  for (int h = 0; h < kQueries; ++h)
    for (int r = 0; r < kRows; ++r) sums[h][r] = _mm256_add_ps(lanes[h][r][0], lanes[h][r][1]);
}

// p ← scale · dot(q, k) of eight positions. Those that aren't attended get another's score.
template <KvType kType, int kQueries>
void score8(const AttentionArgs& args, const float* q, uint32_t q_stride, const Block& block,
            uint32_t origin, bool fetch_values, float (*p)[kKvBlockPositions]) {
  constexpr int kRows = kQueries == 2 ? 2 : 1;
  const uint32_t n = args.head_dim_k;
  const uint64_t stride = kv_row_bytes(kType, n);
  const uint64_t v_bytes = kv_row_bytes(args.v_type, args.head_dim_v);
  const uint64_t v_stride = v_stride_of(args);
  __m256 sums[kQueries][8];
  for (uint32_t first = 0; first < 8; first += kRows) {
    const std::byte* row[kRows];
    for (uint32_t r = 0; r < kRows; ++r) {
      uint32_t i = origin + first + r;
      i = i < block.begin ? block.begin : i < block.end ? i : block.end - 1;
      row[r] = block.k + stride * i;
      if (fetch_values) fetch(block.v + v_stride * i, v_bytes);
    }
    __m256 here[kQueries][kRows];
    dot_lanes<kType, kQueries, kRows>(q, q_stride, n, row, here);
    for (int h = 0; h < kQueries; ++h)
      for (uint32_t r = 0; r < kRows; ++r) sums[h][first + r] = here[h][r];
  }
  for (int h = 0; h < kQueries; ++h)
    _mm256_store_ps(p[h] + origin,
                    _mm256_mul_ps(_mm256_set1_ps(args.scale), sum_lanes8_avx2(sums[h])));
}

// p ← scores of the attended positions; the others' are of no account.
template <KvType kType, int kQueries>
void score(const AttentionArgs& args, const Queries& queries, const Block& block,
           State<kQueries>* state) {
  constexpr int kTogether = kQueries == 4 && kType != KvType::kQ8_0 ? 2 : kQueries;
  for (uint32_t origin = 0; origin < kKvBlockPositions; origin += 8) {
    if (origin >= block.end || origin + 8 <= block.begin) continue;  // merge_softmax writes them
    for (uint32_t h = 0; h < kQueries; h += kTogether)
      score8<kType, kTogether>(args, queries.q + size_t{h} * queries.q_stride, queries.q_stride,
                               block, origin, h == 0, state->p + h);
  }
}

// Scores → p of the block, and how it merges with what came before.
template <int kQueries>
void merge_softmax(const Block& block, State<kQueries>* state) {
  for (int h = 0; h < kQueries; ++h) {
    float* p = state->p[h];
    for (uint32_t i = 0; i < kKvBlockPositions; ++i)
      if (i < block.begin || i >= block.end) p[i] = -__builtin_inff();
    __m256 max = _mm256_set1_ps(-__builtin_inff());
    for (int i = 0; i < 64; i += 8) max = _mm256_max_ps(_mm256_load_ps(p + i), max);
    const float m = max_lanes_avx2(max);
    for (int i = 0; i < 64; i += 8)
      _mm256_store_ps(p + i, exp_avx2(_mm256_sub_ps(_mm256_load_ps(p + i), _mm256_set1_ps(m))));
    __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t i = 0; i < kKvBlockPositions; ++i)  // −inf − (−inf) is NaN: written, not computed
      if (i < block.begin || i >= block.end) p[i] = 0.0f;
    for (int i = 0; i < 64; i += 8)
      lanes[i / 8 % 2] = _mm256_add_ps(lanes[i / 8 % 2], _mm256_load_ps(p + i));
    const float l = sum_lanes_avx2(lanes[0], lanes[1]);
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

// Elements d … of the block's Σ p·v, kChunks vectors of eight, merged into out.
template <KvType kType, int kQueries, int kChunks, bool kWhole>
OFFSTAGE_INLINE void add_values(const AttentionArgs& args, const Block& block, uint32_t d,
                                const State<kQueries>& state, const Queries& queries) {
  const uint32_t n = args.head_dim_v;
  const uint64_t stride = v_stride_of(args);
  __m256 o[kQueries][kChunks];
  for (int h = 0; h < kQueries; ++h)
    for (int c = 0; c < kChunks; ++c) o[h][c] = _mm256_setzero_ps();
  const uint64_t k_stride = kv_row_bytes(args.k_type, args.head_dim_k);
  for (uint32_t i = block.begin; i < block.end; ++i) {
    if (d == 0) fetch(block.next_k + k_stride * i, k_stride);
    const std::byte* row = block.v + stride * i;
    __m256 v[kChunks];
    for (uint32_t c = 0; c < kChunks; ++c)
      v[c] = kWhole ? load_kv<kType>(row, d + 8 * c / 16 * 16, 8 * c % 16)
                    : load_kv_end<kType>(row, d + 8 * c, n);
    for (int h = 0; h < kQueries; ++h) {
      const __m256 p = _mm256_set1_ps(state.p[h][i]);
      for (int c = 0; c < kChunks; ++c) o[h][c] = _mm256_fmadd_ps(p, v[c], o[h][c]);
    }
  }
  for (uint32_t h = 0; h < kQueries; ++h) {
    for (uint32_t c = 0; c < kChunks; ++c) {
      const __m256i lanes = lanes_from(d + 8 * c, n);
      float* at = queries.out + size_t{h} * queries.out_stride + d + 8 * c;
      if (!block.first) {
        const __m256 old =
            _mm256_mul_ps(_mm256_maskload_ps(at, lanes), _mm256_set1_ps(state.old_scale[h]));
        o[h][c] = _mm256_fmadd_ps(o[h][c], _mm256_set1_ps(state.new_scale[h]), old);
      }
      _mm256_maskstore_ps(at, lanes, o[h][c]);
    }
  }
}

template <KvType kType, int kQueries>
void accumulate(const AttentionArgs& args, const Block& block, const State<kQueries>& state,
                const Queries& queries) {
  constexpr int kChunks = kQueries == 4 ? 2 : 4;
  uint32_t d = 0;
  for (; d + 8 * kChunks <= args.head_dim_v; d += 8 * kChunks)
    add_values<kType, kQueries, kChunks, true>(args, block, d, state, queries);
  for (; d < args.head_dim_v; d += 8)
    add_values<kType, kQueries, 1, false>(args, block, d, state, queries);
}

struct Avx2 {
  static constexpr uint32_t kTogether = 4;

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
        scale_avx2(
            o,
            merge_sink(queries.sinks[size_t{h} * queries.sink_stride], &state->m[h], &state->l[h]),
            args.head_dim_v);
      const __m256 l = _mm256_set1_ps(state->l[h]);
      for (uint32_t d = 0; d < args.head_dim_v; d += 8) {
        const __m256i m = lanes_from(d, args.head_dim_v);
        _mm256_maskstore_ps(o + d, m, _mm256_div_ps(_mm256_maskload_ps(o + d, m), l));
      }
    }
  }
};

}  // namespace

void attention_avx2(const AttentionArgs& args) {
  check_attention(args);
  attend_all<Avx2>(args);
}

}  // namespace offstage
