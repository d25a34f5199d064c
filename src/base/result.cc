#include "base/result.h"

#include <cerrno>
#include <cstring>

namespace offstage {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "invalid_argument";
    case ErrorCode::kNotFound: return "not_found";
    case ErrorCode::kPermission: return "permission";
    case ErrorCode::kIo: return "io";
    case ErrorCode::kTruncated: return "truncated";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kBudget: return "budget";
    case ErrorCode::kDeadline: return "deadline";
    case ErrorCode::kHashMismatch: return "hash_mismatch";
    case ErrorCode::kOutOfMemory: return "out_of_memory";
    case ErrorCode::kCancelled: return "cancelled";
  }
  return "unknown";
}

ErrorCode error_code_of_errno(int err) {
  switch (err) {
    case ENOENT:
    case ENOTDIR: return ErrorCode::kNotFound;
    case EACCES:
    case EPERM: return ErrorCode::kPermission;
    case ENOMEM: return ErrorCode::kOutOfMemory;
    case EINVAL:
    case ENAMETOOLONG: return ErrorCode::kInvalidArgument;
    default: return ErrorCode::kIo;
  }
}

Error errno_error(const std::string& path, std::string_view what) {
  const int err = errno;
  return {error_code_of_errno(err), fmt::format("{}: {}: {}", path, what, std::strerror(err))};
}

}  // namespace offstage
