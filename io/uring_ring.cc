#include "io/uring_ring.h"

#include <sys/resource.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/units.h"

namespace offstage {
namespace {

// The kernel takes at most 1 GiB per registered buffer (io_uring/rsrc.c, SZ_1G).
constexpr size_t kPieceBytesMax = size_t{1} << 30;

Error ring_error(const char* what, int err) {
  // A container's seccomp profile and kernel.io_uring_disabled both answer EPERM.
  const char* hint = err == EPERM    ? " (refused by seccomp or kernel.io_uring_disabled)"
                     : err == ENOMEM ? " (often RLIMIT_MEMLOCK)"
                                     : "";
  return {error_code_of_errno(err),
          fmt::format("io_uring: {}: {}{}", what, std::strerror(err), hint)};
}

}  // namespace

UringRing::~UringRing() {
  if (created_) io_uring_queue_exit(&ring_);
}

Status UringRing::set_up(uint32_t depth, std::span<const ReadFile> files,
                         std::span<const std::span<std::byte>> buffers, Notices& notices) {
  OFFSTAGE_TRY_VOID(create(depth + 1));
  OFFSTAGE_TRY_VOID(prove());
  register_files(files, notices);
  register_buffers(buffers, notices);
  return {};
}

Status UringRing::create(uint32_t entries) {
  // Best first. 6.1 knows DEFER_TASKRUN: completions are worked off when this thread waits for
  // them and never by interrupting it. 5.19 knows COOP_TASKRUN, 5.18 SUBMIT_ALL.
  constexpr unsigned kLadder[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
      0,
  };
  int rc = -EINVAL;
  for (const unsigned flags : kLadder) {
    io_uring_params params = {};
    params.flags = flags;
    rc = io_uring_queue_init_params(entries, &ring_, &params);
    if (rc == 0) {
      created_ = true;
      has_timeouts_ = (params.features & IORING_FEAT_EXT_ARG) != 0;
      return {};
    }
    if (rc != -EINVAL) break;  // only an unknown flag is worth another try
  }
  return tl::unexpected(ring_error("cannot set up a ring", -rc));
}

// The ring exists; now one trip through io_uring_enter, and the opcodes we need (Linux 5.6).
Status UringRing::prove() {
  io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
  if (probe == nullptr) return tl::unexpected(ring_error("cannot list operations", ENOSYS));
  const bool able = io_uring_opcode_supported(probe, IORING_OP_READ) != 0 &&
                    io_uring_opcode_supported(probe, IORING_OP_READ_FIXED) != 0;
  io_uring_free_probe(probe);
  if (!able) return tl::unexpected(ring_error("this kernel has no IORING_OP_READ", ENOSYS));

  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  CHECK(sqe != nullptr);
  io_uring_prep_nop(sqe);
  int rc;
  do {
    rc = io_uring_submit_and_wait(&ring_, 1);
  } while (rc == -EINTR);
  if (rc < 0) return tl::unexpected(ring_error("the first io_uring_enter failed", -rc));
  int result = -EIO;
  drain([&](uint64_t, int res) { result = res; });
  if (result != 0) return tl::unexpected(ring_error("the first request failed", -result));
  return {};
}

void UringRing::register_files(std::span<const ReadFile> files, Notices& notices) {
  for (const ReadFile& file : files) fds_.push_back(file.fd.get());
  const int rc = io_uring_register_files(&ring_, fds_.data(), static_cast<unsigned>(fds_.size()));
  files_registered_ = rc == 0;
  if (rc != 0 && !fds_.empty()) {
    notices.add("io_files", fmt::format("io_uring could not register {} files ({}); reads look "
                                        "their descriptor up each time",
                                        fds_.size(), std::strerror(-rc)));
  }
}

void UringRing::register_buffers(std::span<const std::span<std::byte>> buffers, Notices& notices) {
  uint64_t total_bytes = 0;
  for (std::span<std::byte> rest : buffers) {
    while (!rest.empty()) {
      const size_t bytes = std::min(rest.size(), kPieceBytesMax);
      pieces_.push_back({rest.data(), bytes});
      total_bytes += bytes;
      rest = rest.subspan(bytes);
    }
  }
  if (pieces_.empty()) return;
  std::sort(pieces_.begin(), pieces_.end(),
            [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  std::vector<iovec> vectors;
  for (const Piece& piece : pieces_) {
    vectors.push_back({const_cast<std::byte*>(piece.begin), piece.bytes});
  }
  const int rc =
      io_uring_register_buffers(&ring_, vectors.data(), static_cast<unsigned>(vectors.size()));
  if (rc == 0) return;
  pieces_.clear();
  rlimit limit = {};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string allowed =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : format_bytes(limit.rlim_cur);
  notices.add("io_buffers",
              fmt::format("io_uring could not register {} of buffers: {} (RLIMIT_MEMLOCK is {}); "
                          "reads go to the same memory unregistered",
                          format_bytes(total_bytes), std::strerror(-rc), allowed));
}

std::optional<uint32_t> UringRing::piece_of(const std::byte* begin, size_t bytes) const {
  auto after = std::upper_bound(
      pieces_.begin(), pieces_.end(), begin,
      [](const std::byte* p, const Piece& piece) { return std::less<>()(p, piece.begin); });
  if (after == pieces_.begin()) return std::nullopt;
  const Piece& piece = *--after;
  const auto head = static_cast<size_t>(begin - piece.begin);
  // A read across two pieces can name neither; it goes unregistered.
  if (head >= piece.bytes || bytes > piece.bytes - head) return std::nullopt;
  return static_cast<uint32_t>(after - pieces_.begin());
}

bool UringRing::push_read(const ReadRequest& request, uint64_t key) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  CHECK(sqe != nullptr);
  const int fd = files_registered_ ? static_cast<int>(request.file) : fds_[request.file];
  const auto piece = piece_of(request.buffer, request.bytes);
  if (piece) {
    io_uring_prep_read_fixed(sqe, fd, request.buffer, request.bytes, request.offset,
                             static_cast<int>(*piece));
  } else {
    io_uring_prep_read(sqe, fd, request.buffer, request.bytes, request.offset);
  }
  if (files_registered_) sqe->flags |= IOSQE_FIXED_FILE;
  sqe->user_data = key;
  return piece.has_value();
}

void UringRing::push_wake(int event_fd) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  CHECK(sqe != nullptr);
  io_uring_prep_read(sqe, event_fd, &wake_count_, sizeof wake_count_, 0);
  sqe->user_data = kWakeKey;
}

uint64_t UringRing::take_back() {
  // The submission array maps position to position (liburing fills it once, at set-up).
  io_uring_sq& sq = ring_.sq;
  const unsigned head = *sq.khead;
  const uint64_t key = sq.sqes[head & *sq.kring_mask].user_data;
  *sq.khead = head + 1;
  return key;
}

EnterOutcome UringRing::enter(bool wait, int64_t timeout_ns) {
  int rc;
  if (wait && timeout_ns != kNoTimeout && has_timeouts_) {
    __kernel_timespec timeout = {.tv_sec = timeout_ns / 1'000'000'000,
                                 .tv_nsec = timeout_ns % 1'000'000'000};
    io_uring_cqe* cqe = nullptr;
    rc = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
  } else {
    rc = io_uring_submit_and_wait(&ring_, wait ? 1 : 0);
  }
  return rc >= 0 ? EnterOutcome::kEntered : outcome_of(-rc);
}

EnterOutcome UringRing::outcome_of(int err) {
  switch (err) {
    case EINTR:  // a signal (a debugger's: ours are blocked); nothing was lost
    case ETIME:  // the bounded sleep ended
    case EBUSY:  // completions overflowed and want collecting first: the caller drains next
      return EnterOutcome::kEntered;
    case EAGAIN:  // no memory for request structures now
    case ENOMEM: return EnterOutcome::kBackOff;
    case EBADR:  // the kernel dropped a completion: some read will never be answered
    case EPERM:  // a seccomp filter came later than the ring
    case EACCES:
    case ENOSYS:
    case ENXIO:  // the ring is being torn down
    // The next ones would be bugs here (not a ring, wrong thread, bad arguments). Refusing reads
    // is still better than ending the process under the requests of others.
    case EBADF:
    case EBADFD:
    case EEXIST:
    case EFAULT:
    case EINVAL:
    case EOPNOTSUPP:
    default: dead_errno_ = err; return EnterOutcome::kDead;
  }
}

}  // namespace offstage
