// Attention on the device: the oracle's bits again.
#include <gtest/gtest.h>

#include <iterator>

#include "tests/gpu_kernels/comparison.h"

namespace offstage {
namespace {

using gpu_rig::Array;

struct AttentionCase {
  const char* name;
  KvType type;
  uint32_t head_dim, n_heads, n_kv_heads;
  bool sinks;
  bool latent;  // V is the beginning of the K row
};

// Three query rows: from the first position, within one block, over a window.
struct Span {
  uint32_t first, last;
};
constexpr Span kSpans[] = {{0, 130}, {70, 75}, {33, 200}};
constexpr uint32_t kKvBlocks = 4;

// A cache, queries and sinks; K blocks lie before V blocks.
struct AttentionProblem {
  AttentionProblem(const AttentionCase& with_in, Rng& rng)
      : with(with_in),
        row_bytes(kv_row_bytes(with.type, with.head_dim)),
        head_bytes(row_bytes * kKvBlockPositions),
        block_bytes(head_bytes * with.n_kv_heads),
        kv(2 * block_bytes * kKvBlocks),
        q(random_floats(std::size(kSpans) * with.n_heads * with.head_dim, rng, 0.3f)),
        sinks(random_floats(with.n_heads, rng)) {
    for (uint64_t at = 0; at < kv.size(); at += row_bytes)
      oracle().store_kv(with.type, random_floats(with.head_dim, rng).data(), with.head_dim,
                        kv.data() + at);
  }

  uint32_t dim_v() const { return with.latent ? with.head_dim / 2 : with.head_dim; }
  // [rows][heads][dim_v]
  size_t out_floats() const { return std::size(kSpans) * with.n_heads * dim_v(); }
  std::vector<const std::byte*> blocks(const std::byte* memory, bool values) const {
    const uint64_t begin = values && !with.latent ? block_bytes * kKvBlocks : 0;
    std::vector<const std::byte*> table;
    for (uint32_t b = 0; b < kKvBlocks; ++b) table.push_back(memory + begin + block_bytes * b);
    return table;
  }

  std::vector<float> expected() const {
    std::vector<float> out(out_floats());
    const auto k_blocks = blocks(kv.data(), false), v_blocks = blocks(kv.data(), true);
    const uint32_t group = with.n_heads / with.n_kv_heads;
    for (uint32_t r = 0; r < std::size(kSpans); ++r) {
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
        args.first = kSpans[r].first;
        args.last = kSpans[r].last;
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
    for (const Span& span : kSpans)
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
    args.n_blocks_max = kKvBlocks;
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
  const AttentionCase cases[] = {{"F16, groups of 4", KvType::kF16, 64, 8, 2, false, false},
                                 {"F32, odd head size", KvType::kF32, 24, 3, 3, true, false},
                                 {"Q8_0, sinks", KvType::kQ8_0, 64, 2, 1, true, false},
                                 {"F16, latent, 11 heads", KvType::kF16, 96, 11, 1, false, true}};
  for (const AttentionCase& with : cases) {
    const AttentionProblem problem(with, rng_);
    const std::vector<float> expected = problem.expected();
    for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
      gpu_rig::begin_turn(turn);
      expect_same(expected, problem.device(), with.name);
    }
  }
}

}  // namespace
}  // namespace offstage
