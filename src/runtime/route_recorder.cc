#include "runtime/route_recorder.h"

namespace offstage {

Result<std::unique_ptr<RouteRecorder>> RouteRecorder::create(const std::string& path,
                                                             RouteShape shape, uint32_t rows_max) {
  if (shape.n_layers == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: a model without experts has no routing to record", path);
  shape.has_probs = true;
  shape.has_tokens = true;
  OFFSTAGE_TRY(auto writer, RouteLogWriter::create(path, shape, rows_max));
  return std::unique_ptr<RouteRecorder>(new RouteRecorder(path, std::move(writer)));
}

void RouteRecorder::begin_forward(std::span<const Row> rows, bool is_prefill) {
  writer_->drop_rows();  // of a forward that failed
  rows_.clear();
  for (const Row& row : rows) rows_.push_back({row.token, is_prefill, row.position == 0});
  writer_->begin_rows(rows_);
}

void RouteRecorder::add_layer(LayerIndex layer, const Routing& routing) {
  const size_t n_calls = size_t{routing.n_rows} * routing.n_used;
  ids_.clear();
  for (size_t c = 0; c < n_calls; ++c)
    ids_.push_back(static_cast<uint16_t>(routing.experts[c].value));
  writer_->add_layer(layer.value, ids_, {routing.weights.data(), n_calls});
}

Status RouteRecorder::end_forward() { return writer_->end_rows(); }

}  // namespace offstage
