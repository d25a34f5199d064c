// Functions that hold registers across a call must not be calls. For cpu/*_avx*.cc.
#pragma once

// The GNU spelling, because it may stand behind `static`.
#define OFFSTAGE_INLINE __attribute__((always_inline)) inline
