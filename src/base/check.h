// CHECK for bugs: on in release builds, prints both operands, ends the process.
// Never for file bytes, requests or memory: those are Results (result.h).
#pragma once

#include <fmt/format.h>

#include <string>

namespace offstage {
[[noreturn]] void check_failed(const char* file, int line, const char* expression,
                               const std::string& operands);
}  // namespace offstage

#define CHECK(condition)                             \
  (__builtin_expect(static_cast<bool>(condition), 1) \
       ? static_cast<void>(0)                        \
       : ::offstage::check_failed(__FILE__, __LINE__, #condition, {}))

#define OFFSTAGE_CHECK_OP(op, a, b)                                                          \
  do {                                                                                       \
    const auto& offstage_check_a = (a);                                                      \
    const auto& offstage_check_b = (b);                                                      \
    if (__builtin_expect(!(offstage_check_a op offstage_check_b), 0))                        \
      ::offstage::check_failed(__FILE__, __LINE__, #a " " #op " " #b,                        \
                               fmt::format("{} vs {}", offstage_check_a, offstage_check_b)); \
  } while (false)

#define CHECK_EQ(a, b) OFFSTAGE_CHECK_OP(==, a, b)
#define CHECK_NE(a, b) OFFSTAGE_CHECK_OP(!=, a, b)
#define CHECK_LT(a, b) OFFSTAGE_CHECK_OP(<, a, b)
#define CHECK_LE(a, b) OFFSTAGE_CHECK_OP(<=, a, b)
#define CHECK_GT(a, b) OFFSTAGE_CHECK_OP(>, a, b)
#define CHECK_GE(a, b) OFFSTAGE_CHECK_OP(>=, a, b)

// Inner loops only: compiled out of release builds.
#ifdef NDEBUG
#define DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#else
#define DCHECK(condition) CHECK(condition)
#endif
