// Attention on the device: the oracle's bits again.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/gpu_kernels/comparison.h"

namespace offstage {
namespace {

using gpu_rig::Array;

// A query row sees [first, last].
struct Span {
  uint32_t first, last;
};
// From the first position, within one block, over a window.
const std::vector<Span> kSpans = {{0, 130}, {70, 75}, {33, 200}};
const std::vector<Span> kLongSpans = {{0, 1300}, {900, 1283}};

struct AttentionCase {
  const char* name;
  KvType type;
  uint32_t head_dim, n_heads, n_kv_heads;
  bool sinks;
  uint32_t latent_dim = 0;  // V is so much of the K row's beginning; 0: V is by itself
  std::vector<Span> spans = kSpans;

  uint32_t n_blocks() const {
    uint32_t n = 0;
    for (const Span& span : spans) n = std::max(n, span.last / kKvBlockPositions + 1);
    return n;
  }
};

// A cache, queries and sinks; K blocks lie before V blocks.
struct AttentionProblem {
  AttentionProblem(const AttentionCase& with_in, Rng& rng)
      : with(with_in),
        row_bytes(kv_row_bytes(with.type, with.head_dim)),
        head_bytes(row_bytes * kKvBlockPositions),
        block_bytes(head_bytes * with.n_kv_heads),
        kv(2 * block_bytes * with.n_blocks()),
        q(random_floats(with.spans.size() * with.n_heads * with.head_dim, rng, 0.3f)),
        sinks(random_floats(with.n_heads, rng)) {
    for (uint64_t at = 0; at < kv.size(); at += row_bytes)
      oracle().store_kv(with.type, random_floats(with.head_dim, rng).data(), with.head_dim,
                        kv.data() + at);
  }

  bool is_latent() const { return with.latent_dim != 0; }
  uint32_t dim_v() const { return is_latent() ? with.latent_dim : with.head_dim; }
  // [rows][heads][dim_v]
  size_t out_floats() const { return with.spans.size() * with.n_heads * dim_v(); }
  std::vector<const std::byte*> blocks(const std::byte* memory, bool values) const {
    const uint64_t begin = values && !is_latent() ? block_bytes * with.n_blocks() : 0;
    std::vector<const std::byte*> table;
    for (uint32_t b = 0; b < with.n_blocks(); ++b)
      table.push_back(memory + begin + block_bytes * b);
    return table;
  }

  std::vector<float> expected() const {
    std::vector<float> out(out_floats());
    const auto k_blocks = blocks(kv.data(), false), v_blocks = blocks(kv.data(), true);
    const uint32_t group = with.n_heads / with.n_kv_heads;
    for (uint32_t r = 0; r < with.spans.size(); ++r) {
      for (uint32_t head = 0; head < with.n_heads; head += group) {
        AttentionArgs args;
        args.k_type = args.v_type = with.type;
        args.head_dim_k = with.head_dim;
        args.head_dim_v = dim_v();
        args.n_heads = group;
        args.q = q.data() + (size_t{r} * with.n_heads + head) * with.head_dim;
        args.k_blocks = k_blocks.data();
        args.v_blocks = v_blocks.data();
        args.k_offset = args.v_offset = head_bytes * (head / group);
        args.v_stride = row_bytes;
        args.first = with.spans[r].first;
        args.last = with.spans[r].last;
        args.scale = 0.25f;
        args.sinks = with.sinks ? sinks.data() + head : nullptr;
        args.out = out.data() + (size_t{r} * with.n_heads + head) * dim_v();
        oracle().attention(args);
      }
    }
    return out;
  }

  std::vector<float> device() const {
    Array<std::byte> memory(kv);
    Array<const std::byte*> k_blocks(blocks(memory.at(), false));
    Array<const std::byte*> v_blocks(blocks(memory.at(), true));
    std::vector<gpu::AttentionRow> spans;
    for (const Span& span : with.spans)
      spans.push_back({k_blocks.at(), v_blocks.at(), span.first, span.last});
    Array<gpu::AttentionRow> rows(spans);
    Array<float> queries(q), of_heads(sinks), out(out_floats());
    gpu::AttentionArgs args;
    args.k_type = args.v_type = static_cast<gpu::KvType>(with.type);
    args.head_dim_k = with.head_dim;
    args.head_dim_v = dim_v();
    args.n_heads = with.n_heads;
    args.n_kv_heads = with.n_kv_heads;
    args.n_rows = static_cast<uint32_t>(rows.size());
    args.rows = rows.at();
    args.q = queries.at();
    args.k_head_stride = args.v_head_stride = head_bytes;
    args.v_stride = row_bytes;
    args.scale = 0.25f;
    args.sinks = with.sinks ? of_heads.at() : nullptr;
    args.n_blocks_max = with.n_blocks();
    Array<std::byte> scratch(gpu::attention_scratch_bytes(args));
    args.scratch = reinterpret_cast<float*>(scratch.at());
    args.out = out.at();
    gpu_rig::finish(gpu::attention(gpu_rig::stream(), args));
    return out.take();
  }

  AttentionCase with;
  uint64_t row_bytes, head_bytes, block_bytes;
  std::vector<std::byte> kv;
  std::vector<float> q, sinks;
};

class DeviceAttention : public Comparison {};

TEST_F(DeviceAttention, GivesTheOraclesBits) {
  const AttentionCase cases[] = {
      {"F16, groups of 4", KvType::kF16, 64, 8, 2, false},
      {"F32, odd head size", KvType::kF32, 24, 3, 3, true},
      {"Q8_0, sinks", KvType::kQ8_0, 64, 2, 1, true},
      {"F16, latent, 11 heads", KvType::kF16, 96, 11, 1, false, 48},
      {"F32, latent, odd sizes", KvType::kF32, 44, 5, 1, false, 40},
      {"Q8_0, latent", KvType::kQ8_0, 96, 16, 1, false, 64},
      {"F16, latent of DeepSeek's size, long", KvType::kF16, 576, 9, 1, false, 512, kLongSpans},
      {"Q8_0, latent of DeepSeek's size, long", KvType::kQ8_0, 576, 3, 1, false, 512, kLongSpans}};
  for (const AttentionCase& with : cases) {
    const AttentionProblem problem(with, rng_);
    const std::vector<float> expected = problem.expected();
    const uint32_t n_turns = with.spans.size() == kSpans.size() ? gpu_rig::n_turns() : 1;
    for (uint32_t turn = 0; turn < n_turns; ++turn) {
      gpu_rig::begin_turn(turn);
      expect_same(expected, problem.device(), with.name);
    }
  }
}

}  // namespace
}  // namespace offstage
