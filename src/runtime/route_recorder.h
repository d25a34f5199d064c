// The routing of every forward, written down as a trace while the model runs.
//
// One conversation at a time: rows of a forward are successive tokens, and a sequence starts with
// the row at position 0. Decode thread only.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "cache/route_log.h"
#include "runtime/attention.h"
#include "runtime/router.h"

namespace offstage {

class RouteRecorder {
 public:
  // `shape` with the model's layers; weights and token ids are always written.
  static Result<std::unique_ptr<RouteRecorder>> create(const std::string& path, RouteShape shape,
                                                       uint32_t rows_max);

  // A forward: its rows, every layer's routing in order, its end. One that fails in between leaves
  // nothing behind.
  void begin_forward(std::span<const Row> rows, bool is_prefill);
  void add_layer(LayerIndex layer, const Routing& routing);
  Status end_forward();

  // Puts the file in its place; without it there is none.
  Status close() { return writer_->close(); }
  uint64_t n_tokens() const { return writer_->n_tokens(); }
  const std::string& path() const { return path_; }

 private:
  RouteRecorder(std::string path, std::unique_ptr<RouteLogWriter> writer)
      : path_(std::move(path)), writer_(std::move(writer)) {}

  std::string path_;
  std::unique_ptr<RouteLogWriter> writer_;
  std::vector<RouteLogWriter::Row> rows_;
  std::vector<uint16_t> ids_;
};

}  // namespace offstage
