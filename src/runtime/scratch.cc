#include "runtime/scratch.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked_math.h"
#include "runtime/compute.h"

namespace offstage {
namespace {

// Either counts (arena == nullptr) or hands out: one walk, so that the two can't disagree.
class Taker {
 public:
  explicit Taker(HostArena* arena) : arena_(arena) {}

  float* floats(uint64_t rows, uint64_t width) {
    return reinterpret_cast<float*>(bytes(rows * width * sizeof(float)));
  }
  std::byte* bytes(uint64_t n) {
    const uint64_t rounded = round_up(n == 0 ? 1 : n, 64);
    total_ += rounded;
    return arena_ == nullptr ? nullptr : arena_->take(rounded, 64);
  }
  uint64_t total() const { return total_; }

 private:
  HostArena* arena_;
  uint64_t total_ = 0;
};

uint64_t widest_row_bytes(uint32_t k) { return ActivationCache::memory_bytes(1, k) / 3; }

MoeScratch walk_moe(const ModelSpec& spec, uint32_t rows, Taker& take) {
  MoeScratch moe;
  const uint64_t calls = uint64_t{rows} * spec.router.n_used;
  moe.router_logits = take.floats(rows, spec.router.n_experts);
  moe.gate = take.floats(calls, spec.expert_ffn);
  moe.up = take.floats(calls, spec.expert_ffn);
  moe.hidden_forms = take.bytes(calls * widest_row_bytes(spec.expert_ffn));
  moe.expert_out = take.floats(calls, spec.hidden);
  moe.router_sum = take.floats(rows, spec.hidden);
  moe.input_forms = take.bytes(ActivationCache::memory_bytes(rows, spec.hidden));
  if (spec.shared_ffn != 0) moe.shared_out = take.floats(rows, spec.hidden);
  return moe;
}

GqaScratch walk_gqa(const ModelSpec& spec, uint32_t rows, Taker& take) {
  GqaScratch gqa;
  gqa.q = take.floats(rows, spec.q_width());
  gqa.k = take.floats(rows, spec.k_width());
  gqa.v = take.floats(rows, spec.v_width());
  gqa.attended = take.floats(rows, spec.o_width());
  gqa.attended_forms = take.bytes(ActivationCache::memory_bytes(rows, spec.o_width()));
  return gqa;
}

MlaScratch walk_mla(const AttentionSpec& attention, uint32_t rows, Taker& take) {
  MlaScratch s;
  const MlaSpec& mla = attention.mla;
  const uint64_t heads = uint64_t{rows} * attention.n_heads;
  if (mla.q_rank != 0) {
    s.q_low = take.floats(rows, mla.q_rank);
    s.q_low_forms = take.bytes(ActivationCache::memory_bytes(rows, mla.q_rank));
  }
  s.q = take.floats(heads, mla.head_dim());
  s.kv = take.floats(rows, mla.row_dim());
  s.absorbed = take.floats(heads, mla.row_dim());
  s.latents = take.floats(heads, mla.kv_rank);
  s.values = take.floats(heads, mla.v_dim);
  s.head_forms = take.bytes(heads * widest_row_bytes(std::max(mla.nope_dim, mla.kv_rank)));
  s.values_forms = take.bytes(ActivationCache::memory_bytes(rows, attention.n_heads * mla.v_dim));
  return s;
}

Scratch walk(const ModelSpec& spec, uint32_t rows, Taker& take) {
  Scratch s;
  s.x = take.floats(rows, spec.hidden);
  s.normed = take.floats(rows, spec.hidden);
  s.projected = take.floats(rows, spec.hidden);
  s.input_forms = take.bytes(ActivationCache::memory_bytes(rows, spec.hidden));
  s.logits = take.floats(kLogitRows, spec.n_vocab);
  if (spec.attention.mla.kv_rank == 0) {
    s.gqa = walk_gqa(spec, rows, take);
  } else {
    s.mla = walk_mla(spec.attention, rows, take);
  }

  const uint32_t ffn = std::max(spec.dense_ffn, spec.shared_ffn);
  if (ffn != 0) {
    s.ffn.gate = take.floats(rows, ffn);
    s.ffn.up = take.floats(rows, ffn);
    s.ffn.hidden_forms = take.bytes(ActivationCache::memory_bytes(rows, ffn));
  }
  if (spec.n_moe_layers() != 0) s.moe = walk_moe(spec, rows, take);
  s.moe.shared = s.ffn;
  return s;
}

}  // namespace

uint64_t Scratch::bytes_needed(const ModelSpec& spec, uint32_t rows) {
  Taker counter(nullptr);
  walk(spec, rows, counter);
  return counter.total();
}

Scratch Scratch::take(const ModelSpec& spec, uint32_t rows, HostArena& arena) {
  Taker taker(&arena);
  return walk(spec, rows, taker);
}

}  // namespace offstage
