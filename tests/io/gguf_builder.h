// A small writer of GGUF files in memory, for tests: right ones, and ones that lie on purpose.
//
// Keys and tensors are written in the order of the calls. A tensor's data is zeros unless given.
// After build(), key_offset() etc. say where things lie, so that a test can expect or patch them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/tensor_type.h"
#include "io/gguf.h"

namespace offstage::testing {

using Bytes = std::vector<std::byte>;

template <typename T>
void append_number(Bytes& bytes, T value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

inline void append_text(Bytes& bytes, std::string_view text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  bytes.insert(bytes.end(), begin, begin + text.size());
}

inline void append_string(Bytes& bytes, std::string_view text) {
  append_number<uint64_t>(bytes, text.size());
  append_text(bytes, text);
}

template <typename T>
void patch_number(Bytes& bytes, uint64_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

class GgufBuilder {
 public:
  // What the fixed header and the layout say; the writer uses `alignment` without writing its key.
  uint32_t version = 3;
  uint32_t alignment = 32;
  std::optional<uint64_t> tensor_count;  // instead of the true one
  std::optional<uint64_t> key_count;
  bool pads_last_tensor = true;

  // T: the type as stored.
  template <typename T>
  GgufBuilder& add(std::string key, GgufValueType type, T value) {
    Bytes payload;
    append_number(payload, value);
    return add_raw(std::move(key), static_cast<uint32_t>(type), std::move(payload));
  }
  GgufBuilder& add_uint32(std::string key, uint32_t value) {
    return add(std::move(key), GgufValueType::kUint32, value);
  }
  GgufBuilder& add_float32(std::string key, float value) {
    return add(std::move(key), GgufValueType::kFloat32, value);
  }
  GgufBuilder& add_bool(std::string key, bool value) {
    return add(std::move(key), GgufValueType::kBool, static_cast<uint8_t>(value));
  }
  GgufBuilder& add_string(std::string key, std::string_view value) {
    Bytes payload;
    append_string(payload, value);
    return add_raw(std::move(key), static_cast<uint32_t>(GgufValueType::kString),
                   std::move(payload));
  }
  template <typename T>
  GgufBuilder& add_array(std::string key, GgufValueType element_type,
                         const std::vector<T>& elements) {
    Bytes payload = array_head(static_cast<uint32_t>(element_type), elements.size());
    for (const T& element : elements) append_number(payload, element);
    return add_raw(std::move(key), static_cast<uint32_t>(GgufValueType::kArray),
                   std::move(payload));
  }
  GgufBuilder& add_strings(std::string key, const std::vector<std::string>& elements) {
    Bytes payload = array_head(static_cast<uint32_t>(GgufValueType::kString), elements.size());
    for (const std::string& element : elements) append_string(payload, element);
    return add_raw(std::move(key), static_cast<uint32_t>(GgufValueType::kArray),
                   std::move(payload));
  }
  // Any type id with any payload.
  GgufBuilder& add_raw(std::string key, uint32_t type_id, Bytes payload) {
    keys_.push_back({std::move(key), type_id, std::move(payload)});
    return *this;
  }
  static Bytes array_head(uint32_t element_type_id, uint64_t count) {
    Bytes payload;
    append_number(payload, element_type_id);
    append_number(payload, count);
    return payload;
  }

  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;
    uint32_t type_id = 0;
    std::optional<uint64_t> offset;  // instead of the true one, relative to the data
    std::optional<uint32_t> n_dims;  // instead of dims.size()
    std::optional<Bytes> data;       // instead of zeros of the right size
  };
  GgufBuilder& add_tensor(std::string name, TensorType type, std::vector<uint64_t> dims) {
    return add_tensor({std::move(name), std::move(dims), static_cast<uint32_t>(type), {}, {}, {}});
  }
  GgufBuilder& add_tensor(std::string name, TensorType type, std::vector<uint64_t> dims,
                          Bytes data) {
    return add_tensor(
        {std::move(name), std::move(dims), static_cast<uint32_t>(type), {}, {}, std::move(data)});
  }
  GgufBuilder& add_tensor(Tensor tensor) {
    tensors_.push_back(std::move(tensor));
    return *this;
  }
  Tensor& tensor(std::string_view name) {
    for (Tensor& tensor : tensors_)
      if (tensor.name == name) return tensor;
    std::abort();
  }

  Bytes build() {
    offsets_.clear();
    Bytes bytes;
    append_text(bytes, "GGUF");
    append_number(bytes, version);
    append_number<uint64_t>(bytes, tensor_count.value_or(tensors_.size()));
    append_number<uint64_t>(bytes, key_count.value_or(keys_.size()));
    for (const Key& key : keys_) {
      offsets_["key:" + key.name] = bytes.size();
      append_string(bytes, key.name);
      append_number(bytes, key.type_id);
      offsets_["value:" + key.name] = bytes.size();
      bytes.insert(bytes.end(), key.payload.begin(), key.payload.end());
    }
    append_directory(bytes);
    header_bytes_ = bytes.size();
    append_data(bytes);
    return bytes;
  }

  // Absolute offsets in what build() returned last.
  uint64_t key_offset(const std::string& key) const { return offsets_.at("key:" + key); }
  uint64_t value_offset(const std::string& key) const { return offsets_.at("value:" + key); }
  uint64_t info_offset(const std::string& tensor) const { return offsets_.at("info:" + tensor); }
  uint64_t data_offset(const std::string& tensor) const { return offsets_.at("data:" + tensor); }
  uint64_t header_bytes() const { return header_bytes_; }  // before the padding

 private:
  struct Key {
    std::string name;
    uint32_t type_id;
    Bytes payload;
  };

  static Bytes data_of(const Tensor& tensor) {
    if (tensor.data) return *tensor.data;
    const std::optional<TensorType> type = tensor_type_from_gguf(tensor.type_id);
    if (!type || tensor.dims.empty()) return {};
    unsigned __int128 rows = 1;
    for (size_t d = 1; d < tensor.dims.size(); ++d) rows *= tensor.dims[d];
    const unsigned __int128 bytes = rows * row_bytes(*type, tensor.dims[0]);
    // Tensors that can't be are not to be written.
    return Bytes(bytes < (1u << 28) ? static_cast<size_t>(bytes) : 0);
  }

  void pad(Bytes& bytes) const {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  }

  void append_directory(Bytes& bytes) {
    uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      offsets_["info:" + tensor.name] = bytes.size();
      append_string(bytes, tensor.name);
      append_number(bytes, tensor.n_dims.value_or(static_cast<uint32_t>(tensor.dims.size())));
      for (const uint64_t dim : tensor.dims) append_number(bytes, dim);
      append_number(bytes, tensor.type_id);
      append_number(bytes, tensor.offset.value_or(offset));
      offset += (data_of(tensor).size() + alignment - 1) / alignment * alignment;
    }
  }

  void append_data(Bytes& bytes) {
    if (!tensors_.empty()) pad(bytes);
    for (const Tensor& tensor : tensors_) {
      offsets_["data:" + tensor.name] = bytes.size();
      const Bytes data = data_of(tensor);
      bytes.insert(bytes.end(), data.begin(), data.end());
      if (&tensor != &tensors_.back() || pads_last_tensor) pad(bytes);
    }
  }

  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
  std::map<std::string, uint64_t> offsets_;
  uint64_t header_bytes_ = 0;
};

}  // namespace offstage::testing
