#include "runtime/route_replay.h"

#include "base/check.h"
#include "base/rng.h"
#include "cache/route_npz.h"

namespace offstage {
namespace {

constexpr uint64_t kOracleSeed = 0x0FF57A6E;

}  // namespace

Result<RouteReplay> RouteReplay::open(const std::string& path, const RouterSpec& router,
                                      uint32_t n_layers, std::optional<double> oracle_recall,
                                      Notices& notices) {
  if (n_layers == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: a model without experts has no routing to replay", path);
  OFFSTAGE_TRY(RouteLog trace, read_routes(path, router.n_experts));
  if (trace.shape.n_layers != n_layers)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: expected a trace of {} layers with experts as in the model, actual {}",
                      path, n_layers, trace.shape.n_layers);
  if (trace.n_tokens() == 0)
    return make_error(ErrorCode::kInvalidArgument, "{}: the trace has no token", path);
  return RouteReplay(path, std::move(trace), oracle_recall, notices);
}

void RouteReplay::begin_forward(uint32_t n_rows) {
  n_rows_ = n_rows;
  if (rows_replayed_ + n_rows <= n_tokens()) return;
  notices_->add("replay_routing",
                fmt::format("{}: its {} tokens are used up; it starts again from its beginning",
                            path_, n_tokens()));
}

const Routing& RouteReplay::force(LayerIndex layer, Router& router) {
  experts_.clear();
  weights_.clear();
  for (uint32_t row = 0; row < n_rows_; ++row) {
    const uint64_t token = token_of(row);
    const auto calls = trace_.calls(token, layer.value);
    for (uint32_t j = 0; j < n_used(); ++j) {
      experts_.push_back(ExpertId(calls[j]));
      weights_.push_back(trace_.weight(token, layer.value, j));
    }
  }
  return router.replace(experts_, weights_);
}

// A number of its own for every call, so that it doesn't matter which were asked for, or how often.
std::optional<ExpertId> RouteReplay::foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                              uint32_t ahead) const {
  CHECK(oracle_recall_.has_value());
  double share = 1;
  for (uint32_t i = 0; i < ahead; ++i) share *= *oracle_recall_;
  const uint64_t token = token_of(row);
  const uint64_t call = (token * trace_.shape.n_layers + layer.value) * n_used() + rank;
  if (Rng(kOracleSeed + call).uniform() >= share) return std::nullopt;
  return ExpertId(trace_.calls(token, layer.value)[rank]);
}

}  // namespace offstage
