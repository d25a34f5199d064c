// From router logits to calls, as src/runtime/router.cc makes them: scores, the choice (ties to the
// lower id), weights; then the same calls grouped by expert.
#include "gpu/kernels/arithmetic.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kThreads = 128;

// What the choice compares, as integers: NaN (a broken file) sorts last, −0 ties with +0.
inline constexpr uint32_t kTaken = 0, kNanKey = 1;
OFFSTAGE_DEVICE uint32_t choice_key(float merit) {
  if (merit != merit) return kNanKey;
  const uint32_t bits = merit == 0.0f ? 0u : bits_of_float(merit);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// x[0 … n) ← its softmax; all threads of the block call it.
OFFSTAGE_DEVICE void softmax_in_block(float* x, uint32_t n, float* scratch) {
  if (threadIdx.x < kWarp) {
    float max = float_of_bits(kLowestBits);
    for (uint32_t i = threadIdx.x; i < n; i += kWarp) max = x[i] > max ? x[i] : max;
    for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
      const float other = shuffle_xor(max, distance);
      max = other > max ? other : max;
    }
    if (threadIdx.x == 0) scratch[0] = max;
  }
  __syncthreads();
  const float max = scratch[0];
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) x[i] = exp_exact(x[i] - max);
  __syncthreads();
  if (threadIdx.x < kWarp) {
    float lane = 0.0f;
    if (threadIdx.x < 16)
      for (uint32_t i = threadIdx.x; i < n; i += 16) lane = lane + x[i];
    const float sum = sum_sixteen(lane);
    if (threadIdx.x == 0) scratch[0] = sum;
  }
  __syncthreads();
  const float sum = scratch[0];
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) x[i] = divided(x[i], sum);
  __syncthreads();
}

// Experts of all but the best groups lose every comparison: a group is as good as its two best
// together, ties go to the lower one.
OFFSTAGE_DEVICE void mask_groups(const RouteArgs& args, float* merits, float* group_merits) {
  const uint32_t size = args.n_experts / args.n_groups, g = threadIdx.x;
  const float lowest = float_of_bits(kLowestBits);
  if (g < args.n_groups) {
    float best = lowest, second = lowest;
    for (uint32_t i = g * size; i < (g + 1) * size; ++i) {
      if (merits[i] > best) {
        second = best;
        best = merits[i];
      } else if (merits[i] > second) {
        second = merits[i];
      }
    }
    const float merit = best + second;
    group_merits[g] = merit != merit ? lowest : merit;
  }
  __syncthreads();
  if (g < args.n_groups) {
    uint32_t rank = 0;
    for (uint32_t other = 0; other < args.n_groups; ++other)
      if (group_merits[other] > group_merits[g] ||
          (group_merits[other] == group_merits[g] && other < g))
        ++rank;
    if (rank >= args.n_groups_used)
      for (uint32_t i = g * size; i < (g + 1) * size; ++i) merits[i] = lowest;
  }
  __syncthreads();
}

// The first warp takes the largest key n_used times.
OFFSTAGE_DEVICE void choose(const RouteArgs& args, uint32_t* keys, uint32_t* chosen) {
  for (uint32_t j = 0; j < args.n_used; ++j) {
    uint32_t key = kTaken, id = args.n_experts;
    for (uint32_t i = threadIdx.x; i < args.n_experts; i += kWarp) {
      if (keys[i] > key) {
        key = keys[i];
        id = i;
      }
    }
    for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
      const uint32_t other_key = shuffle_xor(key, distance), other_id = shuffle_xor(id, distance);
      if (other_key > key || (other_key == key && other_id < id)) {
        key = other_key;
        id = other_id;
      }
    }
    if (threadIdx.x == 0) {
      keys[id] = kTaken;
      chosen[j] = id;
    }
    sync_warp();
  }
}

// Grid: rows.
__global__ void route_rows(RouteArgs args) {
  OFFSTAGE_SHARED(float, scores, kRouterExpertsMax);
  OFFSTAGE_SHARED(float, merits, kRouterExpertsMax);
  OFFSTAGE_SHARED(uint32_t, keys, kRouterExpertsMax);
  OFFSTAGE_SHARED(float, group_merits, kRouterGroupsMax);
  OFFSTAGE_SHARED(uint32_t, chosen, kRouterUsedMax);
  OFFSTAGE_SHARED(float, weights, kRouterUsedMax);
  OFFSTAGE_SHARED(float, scratch, 1);
  const size_t row = blockIdx.x;
  float* logits = args.logits + row * args.n_experts;
  for (uint32_t i = threadIdx.x; i < args.n_experts; i += kThreads)
    scores[i] = args.score == RouterScore::kSigmoid ? sigmoid(logits[i]) : logits[i];
  __syncthreads();
  if (args.score == RouterScore::kSoftmax) softmax_in_block(scores, args.n_experts, scratch);
  for (uint32_t i = threadIdx.x; i < args.n_experts; i += kThreads) {
    logits[i] = scores[i];
    merits[i] = args.selection_bias != nullptr ? scores[i] + args.selection_bias[i] : scores[i];
  }
  __syncthreads();
  if (args.n_groups > 1) mask_groups(args, merits, group_merits);
  for (uint32_t i = threadIdx.x; i < args.n_experts; i += kThreads) keys[i] = choice_key(merits[i]);
  __syncthreads();
  if (threadIdx.x < kWarp) choose(args, keys, chosen);
  __syncthreads();
  for (uint32_t j = threadIdx.x; j < args.n_used; j += kThreads) weights[j] = scores[chosen[j]];
  __syncthreads();
  if (args.score == RouterScore::kSoftmaxOfChosen) softmax_in_block(weights, args.n_used, scratch);
  float sum = 0.0f;
  for (uint32_t j = 0; j < args.n_used; ++j) sum = sum + weights[j];
  if (sum < kRouterSumMin) sum = kRouterSumMin;  // false for NaN, which then shows
  for (uint32_t j = threadIdx.x; j < args.n_used; j += kThreads) {
    const float weight = args.normalise_weights ? divided(weights[j], sum) : weights[j];
    args.experts[row * args.n_used + j] = chosen[j];
    args.weights[row * args.n_used + j] = weight * args.weights_scale;
  }
}

// One block. A thread owns experts and goes over all calls: they are few at decode, and the order
// within an expert needs no atomics.
__global__ void group_all_calls(GroupCallsArgs args) {
  OFFSTAGE_SHARED(uint32_t, counts, kRouterExpertsMax);
  OFFSTAGE_SHARED(uint32_t, firsts, kRouterExpertsMax);
  const uint32_t n_calls = args.n_rows * args.n_used;
  for (uint32_t e = threadIdx.x; e < args.n_experts; e += kThreads) {
    uint32_t count = 0;
    for (uint32_t c = 0; c < n_calls; ++c)
      if (args.experts[c] == e) ++count;
    counts[e] = args.slots == nullptr || args.slots[e] != nullptr ? count : 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t first = 0, job = 0;
    for (uint32_t e = 0; e < args.n_experts; ++e) {
      firsts[e] = first;
      if (counts[e] != 0) args.jobs[job++] = {e, first, counts[e]};
      first += counts[e];
    }
    const uint32_t n_jobs = args.n_experts < n_calls ? args.n_experts : n_calls;
    for (; job < n_jobs; ++job) args.jobs[job] = {};
    for (uint32_t i = 0; args.told != nullptr && i < n_jobs; ++i) args.told[i] = args.jobs[i];
    if (args.n_places != nullptr) *args.n_places = first;
  }
  __syncthreads();
  for (uint32_t e = threadIdx.x; e < args.n_experts; e += kThreads) {
    uint32_t place = firsts[e];
    for (uint32_t c = 0; c < n_calls && counts[e] != 0; ++c) {
      if (args.experts[c] != e) continue;
      args.place_rows[place] = c / args.n_used;
      if (args.place_of != nullptr) args.place_of[c] = place;
      ++place;
    }
  }
}

}  // namespace

CallStatus route(StreamHandle stream, const RouteArgs& args) {
  return OFFSTAGE_LAUNCH("route", route_rows, args.n_rows, kThreads, stream, args);
}

CallStatus group_calls(StreamHandle stream, const GroupCallsArgs& args) {
  return OFFSTAGE_LAUNCH("group_calls", group_all_calls, 1, kThreads, stream, args);
}

}  // namespace offstage::gpu
