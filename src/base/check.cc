#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace offstage {

void check_failed(const char* file, int line, const char* expression, const std::string& operands) {
  std::fprintf(stderr, "offstage: bug at %s:%d: CHECK(%s) failed%s%s\n", file, line, expression,
               operands.empty() ? "" : ": ", operands.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace offstage
