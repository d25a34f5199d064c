// A small model and a machine for it, made up for tests: round numbers, so that times can be said.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "plan/hardware_profile.h"
#include "plan/model_shape.h"
#include "plan/planned_model.h"

namespace offstage::testing {

// 4 layers of 16 experts, top-2, each of 3 x 256 x 512 weights.
inline ModelShape small_shape() {
  ModelShape shape;
  shape.name = "small";
  shape.architecture = "qwen3moe";
  shape.source = "a test";
  shape.n_layers = 4;
  shape.hidden = 256;
  shape.n_vocab = 512;
  shape.context_train = 4096;
  shape.n_heads = 4;
  shape.n_kv_heads = 2;
  shape.head_dim = 64;
  shape.n_experts = 16;
  shape.n_used = 2;
  shape.expert_ffn = 512;
  return shape;
}

inline PlannedModel small_model() {
  const auto spec = spec_of(small_shape());
  EXPECT_TRUE(spec);
  return imagine_model(*spec, false, QuantMix::kQ8_0);
}

inline HardwareProfile small_machine() {
  HardwareProfile profile;
  profile.machine = "a test's";
  profile.date = "2026-11-22T00:00:00Z";
  profile.ram_bytes = 1ull << 30;
  profile.ram_read_bytes_per_s = 10e9;
  profile.threads = 2;
  profile.hash_bytes_per_s = 10e9;
  profile.dispatch_ns = 100;
  profile.event_ns = 300;
  profile.token_ns = 5000;
  profile.slowdown_beside_reads = 1;
  profile.kernels = {{TensorType::kF32, 8e9, 40e9}, {TensorType::kQ8_0, 8e9, 40e9}};
  DriveSpeed& drive = profile.drives.emplace_back();
  drive.name = "sim0";
  drive.bytes_per_s = 1e9;
  drive.latency_ns = 50'000;
  drive.depth = 16;
  return profile;
}

}  // namespace offstage::testing
