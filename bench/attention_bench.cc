// Speed of attention over a long context: Gop/s (4 · rows · heads · head size · positions) and GB/s
// of keys and values, per storage, rows (one: a decode step; several: of a prompt), heads in a
// group and positions.
//
//   attention_bench [isa] [positions …]      default: this CPU's best, 512 4096 32768
//
// Four kv heads take turns, so that each finds its keys and values where the others left them.
// Outputs are checked against the scalar oracle's bits and hashed.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/rng.h"
#include "cpu/kernels.h"

namespace offstage {
namespace {

constexpr uint32_t kKvHeads = 4, kHeadDim = 128;
constexpr int kRounds = 5;

struct Case {
  KvType type;
  const char* name;
  uint32_t n_heads;
  uint32_t n_rows = 1;
};
constexpr Case kCases[] = {{KvType::kF16, "f16", 8},    {KvType::kF16, "f16", 4},
                           {KvType::kF16, "f16", 7},    {KvType::kF16, "f16", 1},
                           {KvType::kQ8_0, "q8_0", 8},  {KvType::kF32, "f32", 8},
                           {KvType::kF16, "f16", 1, 8}, {KvType::kF16, "f16", 4, 8}};

// Keys and values of all kv heads, in blocks of 64 positions.
struct Cache {
  Cache(const Kernels& kernels, KvType type, uint32_t n_positions) {
    const size_t row = kv_row_bytes(type, kHeadDim);
    const uint32_t n_blocks = (n_positions + kKvBlockPositions - 1) / kKvBlockPositions;
    const size_t block = row * kKvBlockPositions;
    storage.resize(block * n_blocks * kKvHeads * 2);
    Rng rng(1);
    std::vector<float> x(kHeadDim);
    for (size_t at = 0; at < storage.size(); at += row) {
      for (float& v : x) v = static_cast<float>(rng.uniform() - 0.5);
      kernels.store_kv(type, x.data(), kHeadDim, storage.data() + at);
    }
    for (size_t b = 0; b < size_t{n_blocks} * kKvHeads * 2; ++b)
      blocks.push_back(storage.data() + block * b);
  }
  std::vector<std::byte> storage;
  std::vector<const std::byte*> blocks;  // [kv head][keys, values][block]
};

void run_case(const Kernels& kernels, const Case& c, uint32_t n_positions) {
  const Cache cache(kernels, c.type, n_positions);
  const size_t n_blocks = cache.blocks.size() / kKvHeads / 2;
  Rng rng(2);
  std::vector<float> q(size_t{c.n_rows} * c.n_heads * kHeadDim), out(q.size()), expected(q.size());
  for (float& v : q) v = static_cast<float>(rng.uniform() - 0.5);
  AttentionArgs args;
  args.k_type = args.v_type = c.type;
  args.head_dim_k = args.head_dim_v = kHeadDim;
  args.n_heads = c.n_heads;
  args.q = q.data();
  args.n_rows = c.n_rows;
  args.q_stride = args.out_stride = c.n_heads * kHeadDim;
  args.last = n_positions - std::min(n_positions, c.n_rows);
  args.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  args.out = out.data();
  Samples ns(kRounds * kKvHeads);
  SteadyClock clock;
  for (int round = 0; round < kRounds; ++round) {
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      args.k_blocks = cache.blocks.data() + n_blocks * 2 * head;
      args.v_blocks = args.k_blocks + n_blocks;
      const int64_t start = clock.now_ns();
      kernels.attention(args);
      ns.add(clock.now_ns() - start);
    }
  }
  args.out = expected.data();
  (*kernels_for(Isa::kScalar))->attention(args);
  const bool same = std::memcmp(out.data(), expected.data(), out.size() * 4) == 0;
  uint64_t hash = 0xcbf29ce484222325;
  for (float value : out) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    hash = (hash ^ bits) * 0x100000001b3;
  }
  const double operations = 4.0 * c.n_rows * c.n_heads * kHeadDim * n_positions;
  const double bytes = 2.0 * static_cast<double>(kv_row_bytes(c.type, kHeadDim)) * n_positions;
  const auto median = static_cast<double>(ns.percentile(50));
  fmt::print("{:5} {} rows  {} heads  {:6} positions  {:6.1f} Gop/s  {:6.2f} GB/s  {:016x}{}\n",
             c.name, c.n_rows, c.n_heads, n_positions, operations / median, bytes / median, hash,
             same ? "" : "  NOT THE ORACLE'S BITS");
}

int run(int argc, char** argv) {
  const auto kernels = choose_kernels(argc > 1 ? argv[1] : "");
  if (!kernels) {
    fmt::print(stderr, "{}\n", kernels.error().message);
    return 1;
  }
  std::vector<uint32_t> positions;
  for (int i = 2; i < argc; ++i)
    positions.push_back(std::max(1u, static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10))));
  if (positions.empty()) positions = {512, 4096, 32768};
  fmt::print("isa {}, head size {}, {} kv heads in turn, one thread, medians\n",
             isa_name((*kernels)->isa), kHeadDim, kKvHeads);
  for (const Case& c : kCases)
    for (uint32_t n : positions) run_case(**kernels, c, n);
  return 0;
}

}  // namespace
}  // namespace offstage

int main(int argc, char** argv) { return offstage::run(argc, argv); }
