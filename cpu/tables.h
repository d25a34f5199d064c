// The tables that dispatch.cc chooses from; each is defined beside its kernels.
#pragma once

#include "cpu/kernels.h"

namespace offstage {

extern const Kernels kKernelsScalar;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;

}  // namespace offstage
