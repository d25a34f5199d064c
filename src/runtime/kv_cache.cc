#include "runtime/kv_cache.h"

#include "base/check.h"

namespace offstage {

Status check_kv_types(const ModelSpec& spec, KvType k_type, KvType v_type) {
  const AttentionSpec& attention = spec.attention;
  const auto fits = [](KvType type, uint32_t head_dim) {
    return type != KvType::kQ8_0 || head_dim % 32 == 0;
  };
  if (fits(k_type, attention.head_dim_k) && fits(v_type, attention.head_dim_v)) return {};
  return make_error(ErrorCode::kUnsupported,
                    "a q8_0 KV cache needs heads of a multiple of 32; this model's are {} (K) and "
                    "{} (V)",
                    attention.head_dim_k, attention.head_dim_v);
}

KvCache::Shape KvCache::shape_of(const ModelSpec& spec, KvType k_type, KvType v_type) {
  const AttentionSpec& attention = spec.attention;
  const bool v_in_k = attention.mla.kv_rank != 0;
  return {spec.n_layers, attention.n_kv_heads, kv_row_bytes(k_type, attention.head_dim_k),
          v_in_k ? 0 : kv_row_bytes(v_type, attention.head_dim_v)};
}

uint32_t KvCache::pages_for(uint32_t context, uint32_t n_sequences) {
  const bool part = context % kKvBlockPositions != 0;
  return context / kKvBlockPositions + (part ? 1 : 0) + n_sequences - 1;
}

Result<KvCache> KvCache::create(const Shape& shape, uint32_t n_pages, uint32_t n_sequences,
                                Notices& notices) {
  OFFSTAGE_TRY(HostArena arena,
               HostArena::create("KV cache", n_pages * shape.page_bytes(), notices));
  KvCache cache(shape, std::move(arena));
  cache.n_pages_ = n_pages;
  cache.tables_.resize(n_sequences);
  for (auto& table : cache.tables_) table.reserve(n_pages);
  for (uint32_t i = 0; i < n_pages; ++i)
    cache.free_.push_back(cache.arena_.take(shape.page_bytes(), 64));
  return cache;
}

Status KvCache::reserve(SequenceId sequence, uint32_t n_positions) {
  CHECK_LT(sequence.value, tables_.size());
  auto& table = tables_[sequence.value];
  const size_t needed = pages_for(n_positions, 1);
  if (needed > table.size() + free_.size())
    return make_error(ErrorCode::kBudget,
                      "KV cache is full: sequence {} needs {} positions, {} pages of {} "
                      "positions are shared by {} sequences; raise -c",
                      sequence.value, n_positions, n_pages_, kKvBlockPositions, tables_.size());
  while (table.size() < needed) {
    table.push_back(free_.back());
    free_.pop_back();
  }
  return {};
}

void KvCache::release(SequenceId sequence) {
  auto& table = tables_[sequence.value];
  free_.insert(free_.end(), table.begin(), table.end());
  table.clear();
}

uint64_t KvCache::layer_bytes() const {
  return uint64_t{shape_.n_kv_heads} * kKvBlockPositions *
         (shape_.k_row_bytes + shape_.v_row_bytes);
}

uint64_t KvCache::k_offset(uint32_t layer, uint32_t head) const {
  return layer * layer_bytes() + uint64_t{head} * kKvBlockPositions * shape_.k_row_bytes;
}

uint64_t KvCache::v_offset(uint32_t layer, uint32_t head) const {
  return k_offset(layer, 0) + uint64_t{shape_.n_kv_heads} * kKvBlockPositions * shape_.k_row_bytes +
         uint64_t{head} * kKvBlockPositions * shape_.v_row_bytes;
}

std::byte* KvCache::k_row(SequenceId sequence, uint32_t position, uint32_t layer, uint32_t head) {
  return tables_[sequence.value][position / kKvBlockPositions] + k_offset(layer, head) +
         position % kKvBlockPositions * shape_.k_row_bytes;
}

std::byte* KvCache::v_row(SequenceId sequence, uint32_t position, uint32_t layer, uint32_t head) {
  return tables_[sequence.value][position / kKvBlockPositions] + v_offset(layer, head) +
         position % kKvBlockPositions * shape_.v_row_bytes;
}

}  // namespace offstage
