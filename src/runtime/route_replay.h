// A trace in the router's place: real routing for a model whose own router means nothing.
//
// Row after row takes the trace's next token, from the beginning again after its end (announced).
// Experts and weights are the trace's (equal weights where it has none), whatever the router said;
// the router runs all the same, because its time belongs to a token. Rows are tokens of one
// conversation in their order, so chunks don't show. Decode thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "base/types.h"
#include "cache/route_log.h"
#include "runtime/foresight.h"
#include "runtime/router.h"

namespace offstage {

class RouteReplay final : public Foresight {
 public:
  // A trace of ours or a .npz, of as many layers and experts as the model has (kInvalidArgument
  // otherwise; else the errors of read_routes). `oracle_recall`: see foretold(). `notices` outlives
  // it.
  static Result<RouteReplay> open(const std::string& path, const RouterSpec& router,
                                  uint32_t n_layers, std::optional<double> oracle_recall,
                                  Notices& notices);

  const std::string& path() const { return path_; }
  uint32_t n_used() const { return trace_.shape.n_used; }
  bool has_weights() const { return trace_.shape.has_probs; }
  uint64_t n_tokens() const { return trace_.n_tokens(); }
  uint64_t rows_replayed() const { return rows_replayed_; }
  uint64_t restarts() const { return rows_replayed_ == 0 ? 0 : (rows_replayed_ - 1) / n_tokens(); }
  std::optional<double> oracle_recall() const { return oracle_recall_; }

  // A forward: its rows, then every layer. One that fails in between used up no token.
  void begin_forward(uint32_t n_rows);
  // Replaces what `router` routed last.
  const Routing& force(LayerIndex layer, Router& router);
  void end_forward() { rows_replayed_ += n_rows_; }

  // The expert that a row of this forward will call at `layer` as its rank-th: the oracle's word in
  // place of a guess made `ahead` layers before. Nothing for the calls that it keeps to itself, the
  // same ones in every run: it knows a share of recall^ahead, and what it knew from afar it knows
  // when nearer.
  std::optional<ExpertId> foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                   uint32_t ahead) const override;

 private:
  RouteReplay(std::string path, RouteLog trace, std::optional<double> oracle_recall,
              Notices& notices)
      : path_(std::move(path)),
        trace_(std::move(trace)),
        oracle_recall_(oracle_recall),
        notices_(&notices) {}
  uint64_t token_of(uint32_t row) const { return (rows_replayed_ + row) % n_tokens(); }

  std::string path_;
  RouteLog trace_;
  std::optional<double> oracle_recall_;
  Notices* notices_;
  uint32_t n_rows_ = 0;            // of the forward
  uint64_t rows_replayed_ = 0;     // of those that ended
  std::vector<ExpertId> experts_;  // scratch of force()
  std::vector<float> weights_;
};

}  // namespace offstage
