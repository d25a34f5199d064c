// What is said to a runtime whose dense part may be a simulated device's.
#pragma once

#include <string>
#include <vector>

#include "tests/runtime/device_fixture.h"

namespace offstage {

inline constexpr uint64_t kAmple = 256ull << 20;

inline std::vector<TokenId> tokens_of(uint32_t n, uint64_t seed = 11) {
  Rng rng(seed);
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(3 + rng.below(200)));
  return tokens;
}

inline RuntimeOptions options_of(const std::string& name) {
  RuntimeOptions options = test_options(model_file(name));
  options.chunk_rows = 32;
  options.warm_start = false;
  options.promote = Promote::kAlways;
  options.n_sequences = 2;
  options.vram_bytes = kAmple;
  return options;
}

inline void append(std::vector<float>& all, std::span<const float> logits) {
  all.insert(all.end(), logits.begin(), logits.end());
}

inline void step(Runtime& runtime, std::span<const Row> rows, std::vector<float>& all) {
  const Status status = runtime.forward().run(
      rows, Phase::kDecode, [&](size_t, std::span<const float> logits) { append(all, logits); });
  EXPECT_TRUE(status) << (status ? "" : status.error().message);
}

// A prompt of more than a page, tokens, another prompt, and both again from an earlier position on;
// two sequences side by side; then one that takes the place of one that ended.
inline std::vector<float> conversation(Runtime& runtime) {
  std::vector<float> all;
  const LogitsSink sink = [&](size_t, std::span<const float> logits) { append(all, logits); };
  const std::vector<TokenId> tokens = tokens_of(90);
  const auto say = [&](Session& session, uint32_t from, uint32_t n) {
    EXPECT_TRUE(session.score(std::span(tokens).subspan(from, n), sink, nullptr));
  };
  {
    Session first(runtime, SequenceId(0));
    say(first, 0, 70);
    for (uint32_t i = 70; i < 74; ++i) say(first, i, 1);
    say(first, 20, 9);
    for (uint32_t i = 5; i < 8; ++i) say(first, i, 1);
    first.rewind(66);
    say(first, 30, 2);
    for (uint32_t i = 32; i < 35; ++i) say(first, i, 1);
    for (uint32_t i = 0; i < 3; ++i) {
      const Row rows[] = {{SequenceId(0), 71 + i, tokens[i], true},
                          {SequenceId(1), i, tokens[40 + i], true}};
      step(runtime, rows, all);
    }
  }
  Session second(runtime, SequenceId(0));
  for (uint32_t i = 50; i < 53; ++i) say(second, i, 1);
  runtime.kv().release(SequenceId(1));
  return all;
}

// Without a device.
template <typename Talk>
std::vector<float> reference(RuntimeOptions options, const Talk& talk) {
  options.vram_bytes.reset();
  const auto model = open_model(options);
  return model == nullptr ? std::vector<float>() : talk(*model->runtime);
}
inline std::vector<float> reference(const RuntimeOptions& options) {
  return reference(options, conversation);
}

// All that a sequence has in RAM's cache.
inline std::vector<std::byte> kv_of(Runtime& runtime, SequenceId sequence, uint32_t n_positions) {
  const ModelSpec& spec = runtime.spec();
  const AttentionSpec& attention = spec.attention;
  std::vector<std::byte> all;
  const auto add = [&](const std::byte* row, KvType type, uint32_t head_dim) {
    all.insert(all.end(), row, row + kv_row_bytes(type, head_dim));
  };
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer)
    for (uint32_t head = 0; head < attention.n_kv_heads; ++head)
      for (uint32_t position = 0; position < n_positions; ++position) {
        add(runtime.kv().k_row(sequence, position, layer, head), runtime.options().k_type,
            attention.head_dim_k);
        if (attention.mla.kv_rank != 0) continue;  // values are the keys' beginning
        add(runtime.kv().v_row(sequence, position, layer, head), runtime.options().v_type,
            attention.head_dim_v);
      }
  return all;
}

struct Said {
  std::vector<float> logits;
  std::vector<std::byte> kv;
  bool operator==(const Said& other) const {
    return same_bits(logits, other.logits) && kv == other.kv;
  }
};

// A prompt, tokens, and another prompt that begins within a page.
inline Said prompts_and_tokens(Runtime& runtime, uint32_t n_prompt) {
  Said said;
  Session session(runtime, SequenceId(0));
  const std::vector<TokenId> tokens = tokens_of(n_prompt + 20);
  const auto say = [&](uint32_t from, uint32_t n) {
    EXPECT_TRUE(session.score(
        std::span(tokens).subspan(from, n),
        [&](size_t, std::span<const float> logits) { append(said.logits, logits); }, nullptr));
  };
  say(0, n_prompt);
  for (uint32_t i = 0; i < 3; ++i) say(n_prompt + i, 1);
  say(n_prompt + 3, 17);
  say(5, 1);
  said.kv = kv_of(runtime, SequenceId(0), n_prompt + 21);
  return said;
}

inline Said expected_of(RuntimeOptions options, uint32_t n_prompt) {
  options.vram_bytes.reset();
  const auto model = open_model(options);
  return model == nullptr ? Said() : prompts_and_tokens(*model->runtime, n_prompt);
}

// So that nothing but the dense part is the device's, and what it is asked doesn't depend on time.
inline RuntimeOptions dense_alone(const std::string& name) {
  RuntimeOptions options = options_of(name);
  options.promote = Promote::kOff;
  options.placement = Placement::kCpu;
  return options;
}

inline size_t times_said(const DeviceModel& model, const std::string& words) {
  size_t said = 0;
  for (const Notice& notice : model.notices.list())
    said += notice.text.find(words) != std::string::npos;
  return said;
}

}  // namespace offstage
