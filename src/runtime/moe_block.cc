#include "runtime/moe_block.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {
namespace {

// Work items are slices of an expert's rows; 64 rows of a 2,048-wide Q4_K matrix are 72 KiB.
constexpr uint32_t kSliceRows = 64;

// So many floats are quantised by one thread in the time that a hand-out takes.
constexpr uint64_t kHandOutElements = 4096;

// Of a row's sum; whole vectors, and long enough that a hand-out pays.
constexpr uint32_t kSumElements = 1024;

uint32_t slices_of(uint32_t rows) { return (rows + kSliceRows - 1) / kSliceRows; }

// One dot product in the order of unquantised weights (cpu/README.md).
float dot_f32(const Kernels& kernels, const float* w, const float* x, uint32_t k) {
  float result = 0;
  MatmulArgs args;
  args.weights = reinterpret_cast<const std::byte*>(w);
  args.k = k;
  args.row_end = 1;
  args.activations = reinterpret_cast<const std::byte*>(x);
  args.n_tokens = 1;
  args.out = &result;
  args.out_stride = 1;
  kernels.matmul(args);
  return result;
}

}  // namespace

MoeBlock::MoeBlock(const Parts& parts)
    : spec_(parts.spec),
      compute_(parts.compute),
      tier_(parts.tier),
      timer_(parts.timer),
      scratch_(parts.scratch),
      router_(parts.spec.router, parts.compute.kernels(), parts.rows_max),
      input_(parts.scratch.input_forms, parts.spec.n_moe_layers() == 0 ? 0 : parts.rows_max,
             parts.spec.hidden),
      shared_(parts.spec.activation, parts.compute, parts.scratch.shared, parts.rows_max,
              parts.spec.shared_ffn),
      replay_(parts.replay),
      device_(parts.device),
      dense_(parts.dense) {
  jobs_.reserve(spec_.router.n_experts);
}

void MoeBlock::begin_forward(uint32_t n_rows, Phase phase) {
  if (replay_ != nullptr) replay_->begin_forward(n_rows);
  if (device_ != nullptr) device_->begin_forward(phase);
}

void MoeBlock::end_forward() {
  if (replay_ != nullptr) replay_->end_forward();
}

const Routing& MoeBlock::call(LayerIndex layer, const LayerWeights& weights, const float* normed,
                              uint32_t n_rows, Phase phase) {
  const CauseScope scope(timer_, Cause::kRouter);
  input_.reset(normed, n_rows);
  layer_ = layer;
  routing_ = &route(layer, weights, n_rows);
  const std::span<const ExpertId> row_experts(routing_->experts.data(),
                                              size_t{n_rows} * routing_->n_used);
  // The device begins at once; what it hasn't got is for RAM and drive to bring.
  std::span<const ExpertCall> here = routing_->calls;
  const float* there = dense_ != nullptr ? dense_->normed() : nullptr;
  if (device_ != nullptr) here = device_->take(layer, *routing_, normed, phase, there);
  shared_on_device_ = dense_ != nullptr && dense_->start_ffn();
  tier_.begin({layer, routing_->calls, n_rows, row_experts, last_probabilities(n_rows)}, here,
              phase);
  return *routing_;
}

// A trace is asked after the router, whose time belongs to a token all the same.
const Routing& MoeBlock::route(LayerIndex layer, const LayerWeights& weights, uint32_t n_rows) {
  const DeviceDense::Choice* choice = dense_ == nullptr ? nullptr : dense_->choice();
  const Routing& routing =
      choice != nullptr ? routed_by(*choice, n_rows)
                        : router_.route(weights, compute_, input_, n_rows, scratch_.router_logits);
  return replay_ == nullptr ? routing : replay_->force(layer, router_);
}

const Routing& MoeBlock::routed_by(const DeviceDense::Choice& choice, uint32_t n_rows) {
  const size_t n_experts = spec_.router.n_experts;
  std::copy_n(choice.last_scores, n_experts, scratch_.router_logits + (n_rows - 1) * n_experts);
  return router_.adopt(choice.experts, choice.weights, n_rows);
}

// By expert, of the last row. Raw logits (softmax of the chosen) are no probabilities, and the
// router's say nothing about a trace's calls.
std::span<const float> MoeBlock::last_probabilities(uint32_t n_rows) const {
  if (spec_.router.score == RouterScore::kSoftmaxOfChosen || replay_ != nullptr) return {};
  const uint32_t n_experts = spec_.router.n_experts;
  return {scratch_.router_logits + uint64_t{n_rows - 1} * n_experts, n_experts};
}

Status MoeBlock::compute(const LayerWeights& weights, const float* normed, uint32_t n_rows,
                         float* x) {
  const CauseScope scope(timer_, Cause::kExperts);
  const Routing& routing = *routing_;
  const auto run_shared = [&] { shared_.run(weights.shared, input_, n_rows, scratch_.shared_out); };
  if (spec_.shared_ffn != 0 && !shared_on_device_) run_shared();
  EventCosts costs;
  Status status = run_called(weights, normed, costs);
  if (shared_on_device_ && !dense_->collect_ffn(scratch_.shared_out)) run_shared();
  tier_.end();
  OFFSTAGE_TRY_VOID(std::move(status));
  if (device_ != nullptr) device_->promote(layer_, costs);

  add_in_router_order(routing, normed, weights, x);
  return {};
}

// What the device took stands in its place when the others are done, or is lost with it and called
// here after all. It is collected after an error too.
Status MoeBlock::run_called(const LayerWeights& weights, const float* normed, EventCosts& costs) {
  Status status = run_all(weights, normed, costs);
  if (device_ == nullptr) return status;
  const DeviceExperts::Lost lost = device_->collect(*routing_, scratch_.expert_out);
  if (!status || lost.empty()) return status;
  tier_.call(lost.taken);
  tier_.call_again(lost.copied);
  return run_all(weights, normed, costs);
}

// As the tier brings them on; the device may take some of them from the CPU.
Status MoeBlock::run_all(const LayerWeights& weights, const float* normed, EventCosts& costs) {
  const Routing& routing = *routing_;
  const int64_t waited_before_ns = timer_.times()[Cause::kWaitDrive];
  while (true) {
    OFFSTAGE_TRY(const PinnedExperts pinned, tier_.next());
    if (pinned.experts().empty()) break;
    std::span<const ReadyExpert> here = pinned.experts();
    if (device_ != nullptr) here = device_->place(routing, normed, here);
    if (!here.empty()) {
      const int64_t began_ns = timer_.enter(Cause::kExperts);
      run_experts(weights, here, routing);
      costs.cpu_ns += timer_.enter(Cause::kExperts) - began_ns;
      costs.calls += static_cast<uint32_t>(here.size());
    }
    if (device_ != nullptr) device_->let_go();
  }
  costs.wait_ns += timer_.times()[Cause::kWaitDrive] - waited_before_ns;
  return {};
}

// Three passes over all given experts, each spread over the workers: (gate, up, activation),
// quantise, down. A pass costs one hand-out however many experts it holds.
void MoeBlock::run_experts(const LayerWeights& weights, std::span<const ReadyExpert> experts,
                           const Routing& routing) {
  input_.for_weights(weights.gate_type, compute_);
  input_.for_weights(weights.up_type, compute_);
  jobs_.clear();
  for (const ReadyExpert& expert : experts) {
    const uint32_t first = routing.first[expert.expert.value];
    jobs_.push_back({expert, first, routing.first[expert.expert.value + 1] - first});
  }
  gate_and_up(weights, routing);
  down(weights);
}

void MoeBlock::gate_and_up(const LayerWeights& weights, const Routing& routing) {
  const Kernels& kernels = compute_.kernels();
  const uint32_t ffn = spec_.expert_ffn;
  const uint32_t slices = slices_of(ffn);
  const Activations gate_input = input_.for_weights(weights.gate_type, compute_);
  const Activations up_input = input_.for_weights(weights.up_type, compute_);
  const auto slice_of = [&](const Job& job, uint32_t row_begin, uint32_t row_end) {
    MatmulArgs args;
    args.k = spec_.hidden;
    args.row_begin = row_begin;
    args.row_end = row_end;
    args.token_rows = routing.call_rows.data() + job.first_call;
    args.n_tokens = job.n_calls;
    args.out_stride = ffn;
    args.type = weights.gate_type;
    args.weights = job.expert.gate;
    args.activations = gate_input.rows;
    args.out = scratch_.gate + uint64_t{job.first_call} * ffn;
    kernels.matmul(args);
    args.type = weights.up_type;
    args.weights = job.expert.up;
    args.activations = up_input.rows;
    args.out = scratch_.up + uint64_t{job.first_call} * ffn;
    kernels.matmul(args);
    const uint64_t bias_at = uint64_t{job.expert.expert.value} * ffn + row_begin;
    for (uint32_t c = job.first_call; c < job.first_call + job.n_calls; ++c) {
      float* gate = scratch_.gate + uint64_t{c} * ffn + row_begin;
      float* up = scratch_.up + uint64_t{c} * ffn + row_begin;
      const uint32_t n = row_end - row_begin;
      if (weights.gate_bias != nullptr) kernels.add(gate, weights.gate_bias + bias_at, n);
      if (weights.up_bias != nullptr) kernels.add(up, weights.up_bias + bias_at, n);
      activate(kernels, spec_.activation, gate, up, n);
    }
  };
  compute_.workers().parallel_for(
      static_cast<uint32_t>(jobs_.size()) * slices, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
          const uint32_t row = i % slices * kSliceRows;
          slice_of(jobs_[i / slices], row, std::min(row + kSliceRows, ffn));
        }
      });
}

void MoeBlock::down(const LayerWeights& weights) {
  const Kernels& kernels = compute_.kernels();
  const uint32_t ffn = spec_.expert_ffn;
  const ActivationFormat format = activation_format(weights.down_type);
  const uint64_t stride = activation_row_bytes(format, ffn);
  uint64_t n_elements = 0;
  for (const Job& job : jobs_) n_elements += uint64_t{job.n_calls} * ffn;
  const auto n_jobs = static_cast<uint32_t>(jobs_.size());
  compute_.workers().parallel_for(
      n_jobs, n_elements <= kHandOutElements ? n_jobs : 1,
      [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t j = begin; j < end; ++j)
          for (uint32_t c = jobs_[j].first_call; c < jobs_[j].first_call + jobs_[j].n_calls; ++c)
            kernels.quantise_activations(format, scratch_.gate + uint64_t{c} * ffn, ffn,
                                         scratch_.hidden_forms + c * stride);
      });
  const uint32_t slices = slices_of(spec_.hidden);
  compute_.workers().parallel_for(
      static_cast<uint32_t>(jobs_.size()) * slices, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
          const Job& job = jobs_[i / slices];
          MatmulArgs args;
          args.type = weights.down_type;
          args.weights = job.expert.down;
          args.k = ffn;
          args.row_begin = i % slices * kSliceRows;
          args.row_end = std::min(args.row_begin + kSliceRows, spec_.hidden);
          args.activations = scratch_.hidden_forms + job.first_call * stride;
          args.n_tokens = job.n_calls;
          args.out = scratch_.expert_out + uint64_t{job.first_call} * spec_.hidden;
          args.out_stride = spec_.hidden;
          kernels.matmul(args);
          const uint64_t bias_at = uint64_t{job.expert.expert.value} * spec_.hidden;
          for (uint32_t c = 0; weights.down_bias != nullptr && c < job.n_calls; ++c)
            kernels.add(args.out + uint64_t{c} * spec_.hidden + args.row_begin,
                        weights.down_bias + bias_at + args.row_begin,
                        args.row_end - args.row_begin);
        }
      });
}

// Arrival order never shows: each row adds its experts' outputs in the order of its router weights,
// then the shared expert, then the residual.
void MoeBlock::add_in_router_order(const Routing& routing, const float* normed,
                                   const LayerWeights& weights, float* x) {
  const Kernels& kernels = compute_.kernels();
  const uint32_t hidden = spec_.hidden;
  // Work items are parts of a row: of one token's, each worker has some.
  const uint32_t parts = (hidden + kSumElements - 1) / kSumElements;
  const uint32_t n_parts = routing.n_rows * parts;
  compute_.workers().parallel_for(n_parts, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t i = begin; i < end; ++i) {
      const uint32_t row = i / parts, from = i % parts * kSumElements;
      const uint32_t n = std::min(kSumElements, hidden - from);
      const uint64_t at = uint64_t{row} * hidden + from;
      const uint32_t* place = &routing.place_of[size_t{row} * routing.n_used];
      const float* weight = &routing.weights[size_t{row} * routing.n_used];
      float* sum = scratch_.router_sum + at;
      std::fill_n(sum, n, 0.0f);
      for (uint32_t j = 0; j < routing.n_used; ++j)
        kernels.add_scaled(sum, scratch_.expert_out + uint64_t{place[j]} * hidden + from, weight[j],
                           n);
      if (spec_.shared_ffn != 0) {
        float gate = 1;
        if (spec_.shared_gate) {
          gate =
              dot_f32(kernels, weights.shared_gate_input, normed + uint64_t{row} * hidden, hidden);
          kernels.sigmoid(&gate, 1);
        }
        kernels.add_scaled(sum, scratch_.shared_out + at, gate, n);
      }
      kernels.add_scaled(x + at, sum, spec_.residual_scale, n);
    }
  });
}

}  // namespace offstage
