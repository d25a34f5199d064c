// offstage run: generate from a prompt, or chat.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <random>

#include "app/chat.h"
#include "app/command.h"
#include "app/model_flags.h"
#include "app/open_runtime.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "runtime/session.h"

namespace offstage {
namespace {

struct RunFlags {
  ModelFlags model;
  SamplerOptions sampler;
  std::string prompt, prompt_file;
  int64_t seed = -1;
  int32_t n_predict = 128;
  bool ignore_eos = false, json = false, parse_special = true;
  CLI::Option* prompt_option = nullptr;
  CLI::Option* prompt_file_option = nullptr;

  bool interactive() const {
    return prompt_option->count() == 0 && prompt_file_option->count() == 0;
  }
};

// One generation, streamed to stdout unless the result is JSON.
Result<Generation> generate(Runtime& runtime, Session& session, Sampler& sampler,
                            const RunFlags& flags, const std::vector<TokenId>& prompt,
                            const std::atomic<bool>& interrupted) {
  ProgressBar bar("prompt");
  GenerateOptions options;
  options.max_tokens = flags.n_predict < 0 ? UINT32_MAX : static_cast<uint32_t>(flags.n_predict);
  options.ignore_eos = flags.ignore_eos;
  options.cancel = &interrupted;
  options.on_prefill = [&](uint32_t done, uint32_t total) {
    if (done == total)
      bar.finish();
    else
      bar.update(done, total);
  };
  options.on_token = [&](TokenId token) {
    if (flags.json) return true;
    const std::string piece = runtime.tokenizer().piece(token, false);
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return true;
  };
  return session.generate(prompt, sampler, options);
}

Result<int> run_prompt(Runtime& runtime, const RunFlags& flags, Sampler& sampler,
                       Notices& notices) {
  std::string text = flags.prompt;
  if (!flags.prompt_file.empty()) {
    OFFSTAGE_TRY(text, read_text_file(flags.prompt_file));
  }
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  const auto prompt = runtime.tokenizer().encode(text, {true, flags.parse_special});
  Session session(runtime, SequenceId(0));
  OFFSTAGE_TRY(const Generation generation,
               generate(runtime, session, sampler, flags, prompt, interrupted));
  OFFSTAGE_TRY_VOID(runtime.save_index(notices));  // before the report, which lists what it says
  if (flags.json) {
    print_json(run_json(runtime, generation, notices));
  } else {
    std::puts("");
    std::fflush(stdout);  // before the summary on stderr
  }
  fmt::print(stderr, "\n{}", run_summary(runtime, generation));
  return interrupted ? kExitInterrupted : kExitOk;
}

Result<int> run_chat(Runtime& runtime, const RunFlags& flags, Sampler& sampler) {
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  const ChatFormat format = detect_chat_format(runtime.file().gguf, runtime.tokenizer());
  fmt::print(stderr, "chat     format {}; an empty line or Ctrl-D ends\n",
             chat_format_name(format));
  Session session(runtime, SequenceId(0));
  std::string line;
  bool first = true;
  while (!interrupted) {
    if (isatty(STDIN_FILENO) != 0) fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || line.empty()) break;
    const auto turn = runtime.tokenizer().encode(user_turn(format, line, first), {first, true});
    first = false;
    OFFSTAGE_TRY(const Generation generation,
                 generate(runtime, session, sampler, flags, turn, interrupted));
    std::puts("");
    std::fflush(stdout);  // before the summary on stderr
    fmt::print(stderr, "{}", run_summary(runtime, generation));
    if (generation.stop == StopReason::kContextFull) {
      fmt::print(stderr, "note: context: {} positions are full; start again or raise -c\n",
                 runtime.options().context);
      break;
    }
  }
  return interrupted ? kExitInterrupted : kExitOk;
}

Result<int> run(RunFlags flags) {
  OFFSTAGE_TRY_VOID(flags.sampler.check());
  flags.sampler.seed = flags.seed < 0 ? std::random_device{}() : static_cast<uint64_t>(flags.seed);
  if (flags.json && flags.interactive())
    return make_error(ErrorCode::kInvalidArgument, "--json needs a prompt (-p or -f)");
  Notices notices;
  OFFSTAGE_TRY(const auto runtime, open_runtime(flags.model, notices));
  NoticePrinter printer(notices);
  const size_t said = notices.list().size();
  Sampler sampler(flags.sampler, runtime->spec().n_vocab);
  auto code = flags.interactive() ? run_chat(*runtime, flags, sampler)
                                  : run_prompt(*runtime, flags, sampler, notices);
  printer.skip(said);
  const Status saved = runtime->save_index(notices);
  printer.print();
  OFFSTAGE_TRY_VOID(saved);
  return code;
}

}  // namespace

void add_run_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "generate from a prompt, or chat without one");
  flags->model.add_to(*command);
  flags->prompt_option = command->add_option("-p,--prompt", flags->prompt, "prompt text");
  flags->prompt_file_option =
      command->add_option("-f,--file", flags->prompt_file, "prompt from a file, - for stdin")
          ->excludes(flags->prompt_option);
  command->add_option("-n,--n-predict", flags->n_predict, "tokens to generate (-1: until the end)")
      ->check(CLI::Range(-1, 1 << 30))
      ->capture_default_str();
  command->add_option("-s,--seed", flags->seed, "sampling seed (-1: random)")
      ->capture_default_str();
  command->add_option("--temp", flags->sampler.temperature, "temperature (0: greedy)")
      ->capture_default_str();
  command->add_option("--top-k", flags->sampler.top_k, "keep the k likeliest (0: all)")
      ->capture_default_str();
  command->add_option("--top-p", flags->sampler.top_p, "keep the likeliest up to this sum")
      ->capture_default_str();
  command->add_option("--min-p", flags->sampler.min_p, "drop those below this share of the best")
      ->capture_default_str();
  command->add_option("--repeat-penalty", flags->sampler.repeat_penalty, "1: off")
      ->capture_default_str();
  command
      ->add_option("--repeat-last-n", flags->sampler.repeat_last_n,
                   "tokens the penalty looks back at (-1: all)")
      ->capture_default_str();
  command->add_flag("--ignore-eos", flags->ignore_eos, "go on past the end of generation");
  command->add_flag("--json", flags->json, "one JSON object on stdout instead of the text");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace offstage
