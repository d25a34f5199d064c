// What a model's experts were used for so far: counted while it runs, kept beside the model, and
// given to the next run's cache before its first token (warm start).
//
// The file `model.gguf.offstage-usage` lies where the hash index lies. Little-endian:
//
//   offset  bytes  content
//        0      8  magic "OFFSUSAG"
//        8      4  version, 1
//       12      4  layers with experts, L
//       16      4  experts of a layer, N
//       20      4  0
//       24     32  identity of the model (index_file.h)
//       56      8  tokens counted, f64, older ones forgotten by half every 4,096
//       64  4·L·N  calls of every expert, layer by layer, f32, forgotten likewise
//  64+4·L·N     8  XXH3-64 of everything before
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "cache/eviction.h"
#include "io/index_file.h"

namespace offstage {

struct ExpertUsage {
  uint32_t n_layers = 0, n_experts = 0;
  double tokens = 0;
  std::vector<float> calls;  // [layer][expert]

  // Calls per token of a layer's experts, 0 to 1; all 0 before the first token.
  std::vector<float> shares(LayerIndex layer) const;
};

// Errors: kNotFound (there is none), kCorrupt, kTruncated, kUnsupported (another version),
// kInvalidArgument (of another model or another state of it), kPermission, kIo.
Result<ExpertUsage> read_usage(const std::string& path, const IndexIdentity& identity,
                               uint32_t n_layers, uint32_t n_experts);
Status write_usage(const std::string& path, const IndexIdentity& identity,
                   const ExpertUsage& usage);
// Beside every place of the index.
std::vector<std::string> usage_places(const std::string& model_path);

// Passes events to `inner` and counts them into `usage`, which must outlive it. `inner` is seeded
// with what `usage` holds already.
std::unique_ptr<EvictionPolicy> make_counting_policy(std::unique_ptr<EvictionPolicy> inner,
                                                     ExpertUsage& usage);

}  // namespace offstage
