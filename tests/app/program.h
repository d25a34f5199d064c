// The real program, run as a person runs it: arguments in, exit code, stdout and stderr out.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/check.h"
#include "tests/io/gguf_files.h"

namespace offstage::testing {

struct Outcome {
  int code = -1;      // exit code
  int signal = 0;     // that ended it, if one did
  bool late = false;  // killed, because it didn't end in time
  std::string out, err;

  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

struct Conditions {
  std::string program = OFFSTAGE_BINARY;
  std::string input;                               // standard input
  std::map<std::string, std::string> environment;  // added to this process's
  int interrupt_after_bytes = -1;                  // SIGINT once so much was written to stdout
  int seconds_max = 60;
};

class Program {
 public:
  Program(std::vector<std::string> arguments, const Conditions& conditions)
      : arguments_(std::move(arguments)), conditions_(conditions) {}

  Outcome run() {
    start();
    feed();
    Outcome outcome;
    collect(outcome);
    int status = 0;
    CHECK_EQ(waitpid(pid_, &status, 0), pid_);
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    outcome.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return outcome;
  }

 private:
  void start() {
    int in[2], out[2], err[2];
    CHECK(pipe(in) == 0 && pipe(out) == 0 && pipe(err) == 0);
    std::vector<char*> argv = {const_cast<char*>(conditions_.program.c_str())};
    for (std::string& argument : arguments_) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    CHECK_GE(pid_, 0);
    if (pid_ == 0) {
      for (const auto& [name, value] : conditions_.environment)
        setenv(name.c_str(), value.c_str(), 1);
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      for (const int fd : {in[0], in[1], out[0], out[1], err[0], err[1]}) close(fd);
      execv(conditions_.program.c_str(), argv.data());
      _exit(127);
    }
    for (const int fd : {in[0], out[1], err[1]}) close(fd);
    in_ = in[1];
    out_ = out[0];
    err_ = err[0];
  }

  // Inputs of tests fit a pipe.
  void feed() {
    ::signal(SIGPIPE, SIG_IGN);
    const std::string& input = conditions_.input;
    if (!input.empty()) CHECK_GE(write(in_, input.data(), input.size()), -1);
    close(in_);
  }

  void collect(Outcome& outcome) {
    using std::chrono::steady_clock;
    const auto until = steady_clock::now() + std::chrono::seconds(conditions_.seconds_max);
    bool interrupted = conditions_.interrupt_after_bytes < 0;
    pollfd fds[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
      if (steady_clock::now() > until) {
        outcome.late = true;
        kill(pid_, SIGKILL);
        break;
      }
      poll(fds, 2, 100);
      for (int i = 0; i < 2; ++i) {
        if (fds[i].fd < 0 || fds[i].revents == 0) continue;
        char buffer[65536];
        const ssize_t n = read(fds[i].fd, buffer, sizeof(buffer));
        if (n > 0) (i == 0 ? outcome.out : outcome.err).append(buffer, static_cast<size_t>(n));
        if (n <= 0) fds[i].fd = -1;
      }
      if (!interrupted &&
          outcome.out.size() > static_cast<size_t>(conditions_.interrupt_after_bytes)) {
        kill(pid_, SIGINT);
        interrupted = true;
      }
    }
    close(out_);
    close(err_);
  }

  std::vector<std::string> arguments_;
  const Conditions& conditions_;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
};

inline std::string source(const std::string& file) {
  return std::string(OFFSTAGE_TEST_DATA) + "/models/" + file;
}

// A model of the committed ones, copied: an index written beside it goes away with the test.
class ProgramTest : public ::testing::Test {
 protected:
  std::string model(const std::string& name) {
    const std::string copy = folder_ / (name + ".gguf");
    if (!std::filesystem::exists(copy)) std::filesystem::copy_file(source(name + ".gguf"), copy);
    return copy;
  }
  Outcome offstage(std::vector<std::string> arguments, Conditions conditions = {}) {
    conditions.environment.try_emplace("XDG_CACHE_HOME", folder_ / "cache");
    return Program(std::move(arguments), conditions).run();
  }
  // `run` with what every test of it gives: a small context, greedy, two threads.
  Outcome run(const std::string& name, std::vector<std::string> more, Conditions conditions = {}) {
    std::vector<std::string> arguments = {"run", "-m", model(name), "-c", "256",
                                          "-t",  "2",  "--temp",    "0",  "--ignore-eos"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return offstage(arguments, conditions);
  }

  TempFolder folder_;
};

}  // namespace offstage::testing
