// Files for tests: a folder that goes away, and the tiny model most GGUF tests start from.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <system_error>

#include "tests/io/gguf_builder.h"

namespace offstage::testing {

inline void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

inline Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  Bytes bytes;
  append_text(bytes, text);
  return bytes;
}

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "offstage-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Every kind of value that real files have, one experts' tensor, three tensors in all.
inline GgufBuilder tiny_model() {
  GgufBuilder builder;
  builder.add_string("general.architecture", "llama");
  builder.add_uint32("general.alignment", 32);
  builder.add_uint32("llama.expert_count", 2);
  builder.add_float32("llama.rope.freq_base", 10000.0f);
  builder.add_bool("tokenizer.ggml.add_bos_token", true);
  builder.add_strings("tokenizer.ggml.tokens", {"<s>", "", "a token longer than fifteen bytes"});
  builder.add_array<float>("tokenizer.ggml.scores", GgufValueType::kFloat32, {0.f, -1.f, -2.f});
  builder.add_array<int32_t>("tokenizer.ggml.token_type", GgufValueType::kInt32, {3, 1, -1});
  builder.add_tensor("token_embd.weight", TensorType::kF32, {32, 3});
  builder.add_tensor("blk.0.ffn_gate_exps.weight", TensorType::kQ4_0, {32, 2, 2});
  builder.add_tensor("output_norm.weight", TensorType::kF32, {6});
  return builder;
}

}  // namespace offstage::testing
