// Any bytes as a GGUF file: a model that is sound, or an error that says where. Never a crash.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "io/gguf.h"

namespace {

using offstage::ErrorCode;
using offstage::GgufModel;
using offstage::GgufTensor;
using offstage::Result;

// A broken promise ends the run like a crash.
void require(bool condition) {
  if (!condition) std::abort();
}

void require_sound(const GgufModel& model, uint64_t file_bytes) {
  require(model.shards().size() == 1);
  const uint64_t alignment = model.shards()[0].alignment;
  uint64_t end = model.shards()[0].header_bytes;
  require(end <= file_bytes);
  for (const GgufTensor& tensor : model.tensors()) {
    require(tensor.offset >= end && tensor.offset % 8 == 0);
    require((tensor.offset - model.shards()[0].header_bytes) % alignment == 0);
    require(tensor.bytes > 0 && tensor.bytes <= file_bytes - tensor.offset);
    require(tensor.bytes ==
            tensor.elements() / tensor.dims[0] * offstage::row_bytes(tensor.type, tensor.dims[0]));
    require(model.find_tensor(tensor.name) == &tensor);
    end = tensor.offset + tensor.bytes;
  }
}

// Whatever is asked of a key, the answer is a value or an error.
void ask_everything(const GgufModel& model) {
  for (const auto& [key, value] : model.metadata()) {
    require(model.find(key) == &value);
    const int typed = model.find_uint(key).has_value() + model.find_float(key).has_value() +
                      model.find_bool(key).has_value() + model.find_string(key).has_value() +
                      model.find_array(key).has_value();
    require(typed <= 1);
  }
  require(model.find("") == nullptr);
  require(!model.tensor("no such tensor"));
  require(!model.require_uint("no such key"));
}

void parse(std::span<const std::byte> bytes, uint64_t file_bytes) {
  const Result<GgufModel> model = GgufModel::parse("fuzz.gguf", bytes, file_bytes);
  if (model) {
    require_sound(*model, file_bytes);
    ask_everything(*model);
    return;
  }
  const std::string& message = model.error().message;
  require(message.starts_with("fuzz.gguf: ") && message.find("expected") != std::string::npos);
  require(message.size() < 1024);
  // Nothing of the file gets into a message unescaped.
  require(
      std::all_of(message.begin(), message.end(), [](char c) { return c >= 0x20 && c < 0x7f; }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  parse(bytes, size);
  // The beginning of a longer file: by the bytes' own last two a little longer, or much.
  const uint64_t more = size < 2 ? 0 : data[size - 2] + 256u * data[size - 1];
  parse(bytes, size + more);
  parse(bytes, size + (more << 32));
  return 0;
}
