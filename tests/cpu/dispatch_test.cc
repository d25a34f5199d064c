#include <gtest/gtest.h>

#include "cpu_test_data.h"

namespace offstage {
namespace {

TEST(Dispatch, EveryTableIsWholeAndNamesItself) {
  for (Isa isa : kAllIsas) {
    const auto found = kernels_for(isa);
    if (!found) {
      EXPECT_EQ(found.error().code, ErrorCode::kUnsupported);
      EXPECT_NE(found.error().message.find("lacks"), std::string::npos) << found.error().message;
      continue;
    }
    const Kernels& k = **found;
    EXPECT_EQ(k.isa, isa);
    EXPECT_TRUE(k.dequantise && k.quantise_activations && k.matmul && k.rms_norm && k.rope &&
                k.swiglu && k.sigmoid && k.softmax && k.add && k.add_scaled && k.store_kv &&
                k.attention)
        << isa_name(isa);
  }
}

TEST(Dispatch, OverrideIsHonouredOrRefused) {
  for (Isa isa : kAllIsas) {
    const auto direct = kernels_for(isa), chosen = choose_kernels(isa_name(isa));
    ASSERT_EQ(direct.has_value(), chosen.has_value());
    if (chosen) {
      EXPECT_EQ(*chosen, *direct);
    }
  }
  for (const char* wrong : {"AVX2", "avx", "sse", "avx512 ", "best"}) {
    const auto chosen = choose_kernels(wrong);
    ASSERT_FALSE(chosen) << wrong;
    EXPECT_EQ(chosen.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(chosen.error().message.find(wrong), std::string::npos);
  }
}

TEST(Dispatch, WithoutOverrideTheWidestAvailable) {
  const auto chosen = choose_kernels("");
  ASSERT_TRUE(chosen);
  Isa widest = Isa::kScalar;
  for (Isa isa : kAllIsas)
    if (kernels_for(isa)) widest = isa;
  EXPECT_EQ((*chosen)->isa, widest);
}

}  // namespace
}  // namespace offstage
