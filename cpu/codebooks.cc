#include "cpu/codebooks.h"

#include "cpu/codebook_indices.h"

namespace offstage {
namespace {

// kBits bits of index per element → its byte.
template <typename Entry, int kBits, int kEntries, int kValues>
constexpr Codebook<Entry, kEntries> expand(const uint16_t (&indices)[kEntries],
                                           const uint8_t (&values)[kValues]) {
  Codebook<Entry, kEntries> book = {};
  for (int e = 0; e < kEntries; ++e) {
    for (unsigned i = 0; i < sizeof(Entry); ++i) {
      const unsigned index = indices[e] >> (kBits * i) & ((1u << kBits) - 1);
      book.entry[e] |= static_cast<Entry>(values[index]) << (8 * i);
    }
  }
  return book;
}

constexpr uint8_t kIq2Values[] = {8, 25, 43};
constexpr uint8_t kIq3XxsValues[] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr uint8_t kIq3SValues[] = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr uint8_t kIq1Values[] = {0, 8, 16};

}  // namespace

constexpr Codebook<uint64_t, 256> kCodebookIQ2_XXS =
    expand<uint64_t, 2>(kIndicesIQ2_XXS, kIq2Values);
constexpr Codebook<uint64_t, 512> kCodebookIQ2_XS = expand<uint64_t, 2>(kIndicesIQ2_XS, kIq2Values);
constexpr Codebook<uint64_t, 1024> kCodebookIQ2_S = expand<uint64_t, 2>(kIndicesIQ2_S, kIq2Values);
constexpr Codebook<uint32_t, 256> kCodebookIQ3_XXS =
    expand<uint32_t, 3>(kIndicesIQ3_XXS, kIq3XxsValues);
constexpr Codebook<uint32_t, 512> kCodebookIQ3_S = expand<uint32_t, 3>(kIndicesIQ3_S, kIq3SValues);
constexpr Codebook<uint64_t, 2048> kCodebookIQ1 = expand<uint64_t, 2>(kIndicesIQ1, kIq1Values);

}  // namespace offstage
