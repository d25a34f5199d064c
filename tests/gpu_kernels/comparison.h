// What every comparison of the device's kernels with the CPU's has.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "tests/cpu/cpu_test_data.h"
#include "tests/gpu_kernels/rig.h"

namespace offstage {

inline const Kernels& oracle() {
  static const Kernels* kernels = *kernels_for(Isa::kScalar);
  return *kernels;
}

inline void expect_same(const std::vector<float>& expected, const std::vector<float>& actual,
                        const std::string& what) {
  ASSERT_EQ(expected.size(), actual.size());
  std::string difference;
  EXPECT_TRUE(same_bits(expected.data(), actual.data(), expected.size(), &difference))
      << what << ": " << difference;
}

class Comparison : public ::testing::Test {
 protected:
  void SetUp() override {
    if (*gpu_rig::why_not() != 0) GTEST_SKIP() << gpu_rig::why_not();
  }
  Rng rng_{1};
};

}  // namespace offstage
