// A routing trace: which experts a router called, token by token, and the file it lies in.
//
// All numbers are little-endian:
//
//   offset  bytes  content
//        0      8  magic "OFFSROUT"
//        8      4  version, 1
//       12      4  flags: 1 there are probabilities, 2 there are token ids
//       16      4  layers, L (those with experts, input side first)
//       20      4  experts of a layer, N
//       24      4  experts called per token and layer, k
//       28      4  bytes of a record, R = 8 + 2·L·k (4·L·k with probabilities)
//       32      8  tokens, T
//       40    T·R  records
//   40+T·R      8  XXH3-64 of everything before
//
// and a record:
//
//        0      4  token id, -1 if unknown
//        4      1  phase: 0 decode, 1 prefill
//        5      1  1 if a new sequence (a conversation) starts here
//        6      2  0
//        8  2·L·k  expert ids, layer by layer, in router order (highest weight first)
//           2·L·k  their router weights, f16
//
// Written under a temporary name, fsynced and renamed. Traces are untrusted input: nothing is
// believed that wasn't checked, and memory is taken only for a file whose size fits its header.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace offstage {

struct RouteShape {
  uint32_t n_layers = 0, n_experts = 0, n_used = 0;
  bool has_probs = false, has_tokens = false;

  uint32_t calls_per_token() const { return n_layers * n_used; }
  bool operator==(const RouteShape&) const = default;
};

// Limits of what a trace may say: far above any model, low enough that products can't wrap.
inline constexpr uint32_t kRouteLayersMax = 4096;
inline constexpr uint32_t kRouteExpertsMax = 65535;
inline constexpr uint32_t kRouteUsedMax = 1024;

struct RouteLog {
  RouteShape shape;
  std::vector<uint16_t> experts;  // [tokens][layers][used]
  std::vector<uint16_t> probs;    // f16 beside them; empty without probabilities
  std::vector<int32_t> tokens;    // one per token, -1 if unknown
  std::vector<uint8_t> prefill;   // one per token: 1 if it came in a prompt
  std::vector<uint64_t> starts;   // ascending; the first is 0 unless there is no token

  uint64_t n_tokens() const { return tokens.size(); }
  std::span<const uint16_t> calls(uint64_t token, uint32_t layer) const {
    return {experts.data() + (token * shape.n_layers + layer) * shape.n_used, shape.n_used};
  }
  // Router weight of the j-th call: equal shares where the trace has none.
  float weight(uint64_t token, uint32_t layer, uint32_t j) const;
};

// Whether a log is what the format can hold: ids below n_experts, no expert twice in one event,
// weights finite and not negative, starts ascending. `name` begins the error; it names the token,
// the layer and the place. kCorrupt.
Status check_route_log(const RouteLog& log, const std::string& name);

// Errors: kNotFound, kPermission, kIo; kCorrupt, kTruncated, kUnsupported with path and offset.
Result<RouteLog> read_route_log(const std::string& path);
Status write_route_log(const std::string& path, const RouteLog& log);
bool is_route_log(std::span<const std::byte> head);

// Writes a trace as a model runs. Memory doesn't grow with the text: a forward's rows are buffered,
// at most `rows_max`. Nothing is at `path` until close().
class RouteLogWriter {
 public:
  static Result<std::unique_ptr<RouteLogWriter>> create(const std::string& path,
                                                        const RouteShape& shape, uint32_t rows_max);
  ~RouteLogWriter();  // without close(): the temporary file goes

  struct Row {
    int32_t token = -1;
    bool prefill = false, starts_sequence = false;
  };
  // A forward: its rows, then every layer's calls [rows][used] with their weights, then end.
  void begin_rows(std::span<const Row> rows);
  void add_layer(uint32_t layer, std::span<const uint16_t> experts, std::span<const float> weights);
  Status end_rows();
  void drop_rows();  // the forward failed
  Status close();
  uint64_t n_tokens() const { return n_tokens_; }

 private:
  struct File;
  RouteLogWriter(std::unique_ptr<File> file, const RouteShape& shape, uint32_t rows_max);
  std::unique_ptr<File> file_;
  RouteShape shape_;
  uint32_t record_bytes_;
  std::vector<std::byte> records_;  // of the rows of this forward
  uint32_t n_rows_ = 0, layers_seen_ = 0;
  uint64_t n_tokens_ = 0;
};

}  // namespace offstage
