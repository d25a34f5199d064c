// Numbers of the specified arithmetic (cpu/README.md) that the CPU's and the GPU's kernels share.
// Facts alone, and scalars: device code may name a scalar constant, but not an array.
//
// exp: a minimax fit of (eʳ − 1 − r)/r² on |r| ≤ ln 2 / 2, weighted for relative error.
#pragma once

#include <cstdint>

namespace offstage {

inline constexpr uint32_t kRunElements = 256;
inline constexpr uint32_t kRunBlocks = 8;  // of 32 elements
inline constexpr uint32_t kKvBlockPositions = 64;

// Below this a scale group of activations is zero: 127 / amax and amax / 127 stay normal numbers
// above it.
inline constexpr float kTinyActivation = 0x1p-100f;

inline constexpr float kExpMin = -104.5f, kExpMax = 89.5f;
inline constexpr float kExpLog2e = 0x1.715476p+0f;
inline constexpr float kExpRound = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
inline constexpr float kExpLn2Hi = 0x1.62e43p-1f;
inline constexpr float kExpLn2Lo = -0x1.05c61p-29f;
inline constexpr float kExpQ0 = 0x1.fffffcp-2f, kExpQ1 = 0x1.555492p-3f, kExpQ2 = 0x1.5558f2p-5f,
                       kExpQ3 = 0x1.123a2p-7f, kExpQ4 = 0x1.6a23cep-10f;

// The clamped SwiGLU (cpu/README.md, "Sixteen lanes").
inline constexpr float kSwigluLimit = 7.0f, kSwigluAlpha = 1.702f;

// A router's weights that are normalised: sigmoids may all be near zero. The same floor as in
// llama.cpp, the least normal half.
inline constexpr float kRouterSumMin = 0x1p-14f;

}  // namespace offstage
