// One GGUF header into a GgufModel, and the joining of several.
//
// In: a reader standing at byte 0. Out: a model with one shard, its names sorted and unique, every
// tensor's place proven to lie inside the file, after the one before it. One thread.
#pragma once

#include <string>

#include "base/result.h"
#include "io/gguf.h"
#include "io/gguf_reader.h"

namespace offstage {

class GgufParser {
 public:
  static Result<GgufModel> parse(GgufReader& reader);

  // Appends a model of one shard: its tensors and the keys that `model` lacks. Errors: a key with
  // another value than before, a tensor that an earlier shard has.
  static Status append_shard(GgufModel& model, GgufModel&& shard);

 private:
  explicit GgufParser(GgufReader& reader) : reader_(reader) {}
  static Status sort_names(GgufModel& model);
  Status parse_header();
  Status parse_metadata();
  Status parse_alignment();
  Status parse_tensor_info(uint64_t number);
  Status parse_shape(GgufTensor& tensor);
  Status parse_type(GgufTensor& tensor);
  Status find_data_start();
  Status place_tensors();
  Status check_tail(uint64_t data_end);

  GgufReader& reader_;
  GgufModel model_;
  uint64_t tensor_count_ = 0;
  uint64_t key_count_ = 0;
};

}  // namespace offstage
