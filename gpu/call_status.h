// What became of a call to the device's runtime, as plain data: it crosses the seam between nvcc
// and the host's compiler (nvcc's front end can't read fmt, so no Result there).
#pragma once

namespace offstage::cuda {

// Null names are success. The strings are static, mostly the runtime's own.
struct CallStatus {
  const char* call = nullptr;   // "cudaGetDeviceCount", or the kernel
  const char* error = nullptr;  // "cudaErrorInvalidDevice"
  const char* meaning = nullptr;
  bool ok() const { return error == nullptr; }
};

}  // namespace offstage::cuda
