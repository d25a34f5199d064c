// What set-up does when the machine says no: each fallback happens, and is announced.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/clock.h"
#include "io/engine.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using ::testing::AllOf;
using testing::BoundedTest;
using ::testing::HasSubstr;
using testing::TempFile;

class EngineSetupTest : public BoundedTest {
 protected:
  // Opens, reads one sector, and tells how it went in one line: "uring direct | subject: text".
  static std::string open_and_read(const IoEngineOptions& options) {
    Notices notices;
    auto engine = open_io_engine(options, notices);
    if (!engine) {
      return fmt::format("{}: {}", error_code_name(engine.error().code), engine.error().message);
    }
    AlignedBuffer buffer(kSectorBytes);
    const ReadRequest request = {.buffer = buffer.data(), .bytes = kSectorBytes};
    (*engine)->submit({&request, 1});
    ReadCompletion done;
    if ((*engine)->reap({&done, 1}, 10'000'000'000) != 1) return "no completion";
    std::string text = fmt::format("{} {} read {}", (*engine)->name(),
                                   (*engine)->direct_io(0) ? "direct" : "buffered", done.result);
    for (const Notice& notice : notices.list()) {
      text += fmt::format(" | {}: {}", notice.subject, notice.text);
    }
    return text;
  }

  // Runs `work` in a child, since what it does to its process can't be undone; returns its text.
  template <typename Work>
  static std::string in_child(Work&& work) {
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    const pid_t child = fork();
    CHECK_GE(child, 0);
    if (child == 0) {
      alarm(30);
      const std::string text = work();
      const bool sent =
          write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
      _exit(sent ? 0 : 1);
    }
    close(ends[1]);
    std::string text;
    char chunk[4096];
    for (ssize_t n; (n = read(ends[0], chunk, sizeof chunk)) > 0;) text.append(chunk, n);
    close(ends[0]);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "child status " << status;
    return text;
  }

  // From now on `syscall_number` answers `err` in every thread of this process; with `flags`, only
  // where its third argument has one of them.
  static void refuse_syscall(unsigned syscall_number, unsigned err, unsigned flags = ~0u) {
    const uint8_t any = flags == ~0u ? 1 : 0;  // jumps over the look at the argument
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, syscall_number, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JA, any, 0, 0),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, flags, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program = {.len = 7, .filter = code};
    CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    CHECK_EQ(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program), 0);
  }
};

TEST_F(EngineSetupTest, AutoFallsBackToThreadsWhenIoUringIsRefused) {
  const TempFile file = TempFile::random(10'000);
  for (const int err : {EPERM, ENOSYS, ENOMEM}) {
    const std::string text = in_child([&] {
      refuse_syscall(SYS_io_uring_setup, static_cast<unsigned>(err));
      return open_and_read({.paths = {file.path()}});
    });
    EXPECT_THAT(text, HasSubstr("threads direct read 4096 | io_engine: "));
    EXPECT_THAT(text, HasSubstr(std::strerror(err)));
  }
}

TEST_F(EngineSetupTest, AutoFallsBackWhenEnteringTheRingIsRefused) {
  const TempFile file = TempFile::random(10'000);
  const std::string text = in_child([&] {
    refuse_syscall(SYS_io_uring_enter, EPERM);
    return open_and_read({.paths = {file.path()}});
  });
  EXPECT_THAT(text, HasSubstr("threads direct read 4096 | io_engine: "));
}

// Later than set-up there is no falling back: reads are answered with the errno, none is lost.
TEST_F(EngineSetupTest, ARingThatDiesAnswersItsReads) {
  const TempFile file = TempFile::random(10'000);
  AlignedBuffer buffer(2 * kSectorBytes);
  const std::string text = in_child([&] {
    Notices notices;
    auto engine = open_io_engine({.paths = {file.path()}, .kind = IoEngineKind::kUring}, notices);
    refuse_syscall(SYS_io_uring_enter, EPERM);
    std::string results;
    for (uint64_t round = 0; round < 3; ++round) {
      const ReadRequest requests[2] = {
          {.tag = round, .buffer = buffer.data(), .bytes = kSectorBytes},
          {.tag = round, .buffer = buffer.data() + kSectorBytes, .bytes = kSectorBytes}};
      (*engine)->submit(requests);
      for (size_t got = 0; got < 2; ++got) {
        ReadCompletion done;
        if ((*engine)->reap({&done, 1}, 10'000'000'000) != 1) return results + "no completion";
        results += fmt::format("{}:{} ", done.tag, done.result);
      }
    }
    return results;
  });
  EXPECT_EQ(text, "0:-1 0:-1 1:-1 1:-1 2:-1 2:-1 ");
}

TEST_F(EngineSetupTest, NamedUringThatIsRefusedIsAnError) {
  const TempFile file = TempFile::random(10'000);
  const std::string text = in_child([&] {
    refuse_syscall(SYS_io_uring_setup, EPERM);
    return open_and_read({.paths = {file.path()}, .kind = IoEngineKind::kUring});
  });
  EXPECT_THAT(text, HasSubstr("permission: io_uring"));
}

TEST_F(EngineSetupTest, AnnouncesBuffersThatMayNotBeLocked) {
  const TempFile file = TempFile::random(10'000);
  AlignedBuffer buffer(8 << 20);
  const std::string text = in_child([&]() -> std::string {
    const rlimit limit = {64 << 10, 64 << 10};
    CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    if (geteuid() == 0 && setuid(65534) != 0) return "skip";
    if (access(file.path().c_str(), R_OK) != 0) return "skip";
    return open_and_read(
        {.paths = {file.path()}, .kind = IoEngineKind::kUring, .buffers = {buffer.span()}});
  });
  if (text == "skip") GTEST_SKIP() << "nobody can't read " << file.path();
  EXPECT_THAT(text, HasSubstr("uring direct read 4096 | io_buffers: "));
  EXPECT_THAT(text, HasSubstr("RLIMIT_MEMLOCK is 64.0"));
}

TEST_F(EngineSetupTest, SetUpOutOfDescriptorsFallsBackOrNamesTheFile) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "UBSan's vptr check needs descriptors of its own to look at memory";
#endif
  const TempFile file = TempFile::random(10'000);
  for (rlim_t spare = 0; spare < 4; ++spare) {
    const std::string text = in_child([&] {
      const int next = dup(0);
      close(next);
      const rlimit limit = {static_cast<rlim_t>(next) + spare, static_cast<rlim_t>(next) + spare};
      CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
      return open_and_read({.paths = {file.path()}});
    });
    const char* expected = spare == 0  ? "cannot open: Too many open files"
                           : spare < 3 ? "threads direct read 4096 | io_engine: "
                                       : "uring direct read 4096";
    EXPECT_THAT(text, HasSubstr(expected)) << spare << " descriptors to spare";
  }
}

// What an in-memory filesystem says to O_DIRECT is no proof: it takes the flag, and misaligned
// reads too.
TEST_F(EngineSetupTest, DoesNotBelieveTmpfs) {
  struct statfs fs = {};
  if (statfs("/dev/shm", &fs) != 0 || fs.f_type != TMPFS_MAGIC) GTEST_SKIP() << "no tmpfs";
  const TempFile file(testing::random_bytes(10'000, 1), "/dev/shm");
  EXPECT_THAT(open_and_read({.paths = {file.path()}}),
              HasSubstr("uring buffered read 4096 | direct_io: "));
  EXPECT_THAT(open_and_read({.paths = {file.path()}, .direct = DirectIo::kOn}),
              HasSubstr("unsupported: "));
}

// The flag is refused, or taken and then refused by the first read (FUSE, overlays).
TEST_F(EngineSetupTest, DirectIoThatIsRefusedIsAnnounced) {
  const TempFile file = TempFile::random(10'000);
  const auto with = [&](unsigned syscall_number, unsigned flags, DirectIo direct) {
    return in_child([&] {
      refuse_syscall(syscall_number, EINVAL, flags);
      return open_and_read(
          {.paths = {file.path()}, .kind = IoEngineKind::kUring, .direct = direct});
    });
  };
  EXPECT_THAT(with(SYS_fcntl, O_DIRECT, DirectIo::kAuto),
              AllOf(HasSubstr("uring buffered read 4096 | direct_io: " + file.path()),
                    HasSubstr("the filesystem refused O_DIRECT: Invalid argument")));
  EXPECT_THAT(with(SYS_pread64, ~0u, DirectIo::kAuto),
              AllOf(HasSubstr("uring buffered read 4096 | direct_io: " + file.path()),
                    HasSubstr("a direct read at offset 0 failed: Invalid argument")));
  EXPECT_THAT(with(SYS_pread64, ~0u, DirectIo::kOn), HasSubstr("unsupported: " + file.path()));
}

TEST_F(EngineSetupTest, AFileThatMayNotBeReadIsNamed) {
  const TempFile file = TempFile::random(10'000);
  const std::string text = in_child([&]() -> std::string {
    CHECK_EQ(chmod(file.path().c_str(), 0), 0);
    if (geteuid() == 0 && setuid(65534) != 0) return "skip";
    return open_and_read({.paths = {file.path()}});
  });
  if (text == "skip") GTEST_SKIP() << "root that can't be anybody else";
  EXPECT_THAT(text, HasSubstr("permission: " + file.path() + ": cannot open: Permission denied"));
}

TEST_F(EngineSetupTest, RefusesWhatIsNotAFile) {
  const std::string folder = testing::real_folder();
  EXPECT_THAT(open_and_read({.paths = {folder + "/offstage-absent"}}), HasSubstr("not_found: "));
  EXPECT_THAT(open_and_read({.paths = {folder}}), HasSubstr("invalid_argument: "));
  const std::string fifo = folder + "/offstage-test-fifo-" + std::to_string(getpid());
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(open_and_read({.paths = {fifo}}), HasSubstr("invalid_argument: "));  // and no hang
  unlink(fifo.c_str());
  EXPECT_THAT(open_and_read({.paths = {"/dev/zero"}}), HasSubstr("invalid_argument: "));
}

TEST_F(EngineSetupTest, RefusesDepthOutOfRange) {
  EXPECT_THAT(open_and_read({.depth = 0}), HasSubstr("invalid_argument: "));
  EXPECT_THAT(open_and_read({.depth = 100'000}), HasSubstr("invalid_argument: "));
}

// The slice of a fair thread in ns; 0: the kernel doesn't say, or gives it none of its own.
uint64_t slice_of(pid_t thread) {
  uint64_t attributes[6] = {};  // size and policy, flags, nice and priority, runtime, …
  if (syscall(SYS_sched_getattr, thread, attributes, sizeof attributes, 0u) != 0) return 0;
  return attributes[3];
}

TEST_F(EngineSetupTest, ItsThreadsGoBeforeWhoComputes) {
  if (slice_of(0) == 0) GTEST_SKIP() << "Linux before 6.12, or the test isn't scheduled fairly";
  const TempFile file = TempFile::random(10'000);
  for (const auto& [kind, name] : {std::pair(IoEngineKind::kUring, "offstage-io\n"),
                                   std::pair(IoEngineKind::kThreads, "offstage-pread\n")}) {
    Notices notices;
    const auto engine = open_io_engine({.paths = {file.path()}, .kind = kind}, notices);
    ASSERT_TRUE(engine);
    AlignedBuffer buffer(kSectorBytes);
    const ReadRequest request = {.buffer = buffer.data(), .bytes = kSectorBytes};
    (*engine)->submit({&request, 1});
    ReadCompletion done;
    ASSERT_EQ((*engine)->reap({&done, 1}, 10'000'000'000), 1u);
    std::vector<uint64_t> slices;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string comm;
      std::getline(std::ifstream(thread.path() / "comm"), comm, '\0');
      if (comm == name) slices.push_back(slice_of(std::stoi(thread.path().filename())));
    }
    EXPECT_THAT(slices, ::testing::Contains(100'000u)) << name;
  }
  EXPECT_GT(slice_of(0), 100'000u);
}

TEST_F(EngineSetupTest, LeaksNoDescriptor) {
  const TempFile file = TempFile::random(10'000);
  const auto open_descriptors = [] {
    namespace fs = std::filesystem;
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const auto before = open_descriptors();
  for (const IoEngineKind kind : {IoEngineKind::kUring, IoEngineKind::kThreads}) {
    for (int i = 0; i < 3; ++i) open_and_read({.paths = {file.path()}, .kind = kind});
    open_and_read({.paths = {file.path(), "/dev/null"}, .kind = kind});
  }
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace offstage
