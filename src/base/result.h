// Errors of the world (files, drives, requests, memory) as values.
//
// A function that can fail for a reason outside the program returns Result<T>. The error carries a
// stable code for machines and a message for people that names file, tensor or key, absolute
// offset, expected and actual. A bug in the program is a CHECK (check.h), never a Result.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace offstage {

// Stable: the spellings of error_code_name() are published in JSON and in exit messages.
enum class ErrorCode {
  kInvalidArgument,  // a flag, a request field, a combination of them
  kNotFound,         // a file, a tensor or a key that isn't there
  kPermission,       // EACCES, EPERM
  kIo,               // the drive said no, for ever (after the retries)
  kTruncated,        // a file shorter than its own header promises
  kCorrupt,          // bytes that can't be what the format says
  kUnsupported,   // well-formed, but not something Offstage can do; the message lists what it can
  kBudget,        // --ram (or a cgroup) below the floor; the message gives the floor
  kDeadline,      // an operation outlived its deadline
  kHashMismatch,  // a weight's bytes differ from the index, twice
  kOutOfMemory,   // the kernel refused an allocation, a pin, a registration
  kCancelled,     // the person or the process asked to stop
};

std::string_view error_code_name(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// make_error(ErrorCode::kCorrupt, "{}: tensor '{}': ...", path, name)
template <typename... Args>
[[nodiscard]] tl::unexpected<Error> make_error(ErrorCode code, fmt::format_string<Args...> format,
                                               Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

// The code that an errno of open/read/mmap maps to, so that every caller maps alike.
ErrorCode error_code_of_errno(int err);

// Of the call that has just failed: "path: what: errno's text".
Error errno_error(const std::string& path, std::string_view what);

}  // namespace offstage

// OFFSTAGE_TRY(auto file, File::open(path));   declares `file`, or returns the error.
// OFFSTAGE_TRY_VOID(writer.flush());           returns the error if there is one.
#define OFFSTAGE_CONCAT_INNER(a, b) a##b
#define OFFSTAGE_CONCAT(a, b) OFFSTAGE_CONCAT_INNER(a, b)
#define OFFSTAGE_TRY_IMPL(tmp, decl, expr)                   \
  auto tmp = (expr);                                         \
  if (!tmp) return ::tl::unexpected(std::move(tmp).error()); \
  decl = std::move(*tmp)
#define OFFSTAGE_TRY(decl, expr) \
  OFFSTAGE_TRY_IMPL(OFFSTAGE_CONCAT(offstage_try_, __LINE__), decl, expr)
#define OFFSTAGE_TRY_VOID(expr)                                        \
  do {                                                                 \
    if (auto offstage_try_status = (expr); !offstage_try_status)       \
      return ::tl::unexpected(std::move(offstage_try_status).error()); \
  } while (false)
