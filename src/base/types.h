// Numbers that must not be swapped: each index has its own type, explicit in and explicit out.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace offstage {

// An index with a name. `Index<struct Tag>` of different tags don't convert into each other.
template <typename Tag>
struct Index {
  uint32_t value = 0;
  constexpr Index() = default;
  constexpr explicit Index(uint32_t v) : value(v) {}
  constexpr auto operator<=>(const Index&) const = default;
};

using LayerIndex = Index<struct LayerTag>;     // 0 … n_layers − 1, input side first
using ExpertId = Index<struct ExpertTag>;      // 0 … n_experts − 1 within its layer
using SlotIndex = Index<struct SlotTag>;       // a slot of the RAM tier
using SequenceId = Index<struct SequenceTag>;  // a conversation with its own KV pages

using TokenId = int32_t;  // as in GGUF and llama.cpp; −1 means none

inline constexpr TokenId kNoToken = -1;

}  // namespace offstage

template <typename Tag>
struct std::hash<offstage::Index<Tag>> {
  size_t operator()(offstage::Index<Tag> index) const noexcept { return index.value; }
};
