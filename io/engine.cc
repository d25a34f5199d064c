#include "io/engine.h"

#include "io/file.h"
#include "io/threads.h"
#include "io/uring.h"

namespace offstage {
namespace {

constexpr uint32_t kDepthMax = 4096;  // far above what any drive gains from

}  // namespace

Result<std::unique_ptr<IoEngine>> open_io_engine(const IoEngineOptions& options, Notices& notices) {
  if (options.depth == 0 || options.depth > kDepthMax) {
    return make_error(ErrorCode::kInvalidArgument, "io depth {} is not in 1 ... {}", options.depth,
                      kDepthMax);
  }
  OFFSTAGE_TRY(std::vector<ReadFile> files,
               open_read_files(options.paths, options.direct, notices));
  if (options.kind == IoEngineKind::kThreads) {
    return open_threads_engine(std::move(files), options);
  }
  auto engine = open_uring_engine(files, options, notices);
  if (engine || options.kind == IoEngineKind::kUring) return engine;
  notices.add("io_engine",
              fmt::format("{}; a pool of pread threads reads instead", engine.error().message));
  return open_threads_engine(std::move(files), options);
}

}  // namespace offstage
