// Which matrix a block of threads has, and which rows of activations and output: what matvec and
// matmul make of MatvecArgs.
#pragma once

#include "gpu/kernels/intrinsics.cuh"
#include "gpu/kernels/kernels.h"

namespace offstage::gpu {

// The grid's second dimension: jobs, or heads where there are none.
OFFSTAGE_BOTH uint32_t jobs_or_heads(const MatvecArgs& args) {
  return args.jobs != nullptr ? args.n_jobs : args.n_heads;
}
OFFSTAGE_DEVICE ExpertJob job_of(const MatvecArgs& args) {
  if (args.jobs != nullptr) return args.jobs[blockIdx.y];
  return {0, 0, args.n_places};
}
OFFSTAGE_DEVICE uint32_t head_of(const MatvecArgs& args) {
  return args.jobs != nullptr ? 0 : blockIdx.y;
}
// The row of activations of a place, and that of the output.
OFFSTAGE_DEVICE size_t row_in(const MatvecArgs& args, uint32_t place) {
  const uint32_t row = args.place_rows != nullptr ? args.place_rows[place] : place;
  return size_t{row} * args.n_heads + head_of(args);
}
OFFSTAGE_DEVICE float* row_out(const MatvecArgs& args, uint32_t place) {
  const size_t row = size_t{place} * args.n_heads + head_of(args);
  return args.out + row * (args.out_stride != 0 ? args.out_stride : args.n);
}

}  // namespace offstage::gpu
