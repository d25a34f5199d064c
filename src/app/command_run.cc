// offstage run: generate from a prompt, or chat.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>

#include "app/chat.h"
#include "app/command.h"
#include "app/model_flags.h"
#include "app/open_runtime.h"
#include "app/record_json.h"
#include "app/report_data.h"
#include "app/report_page.h"
#include "app/run_forecast.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "app/timeline.h"
#include "runtime/session.h"

namespace offstage {
namespace {

struct RunFlags {
  ModelFlags model;
  ChatFlags chat;
  SamplerOptions sampler;
  std::string prompt, prompt_file, timeline_file, report_file, record_routing;
  int64_t seed = -1;
  int32_t n_predict = 128;
  bool ignore_eos = false, json = false, verbose_tokens = false, parse_special = true;
  // Those of a prompt that is taken as it stands, known before the plan.
  std::optional<std::vector<TokenId>> prompt_tokens;
  CLI::Option* prompt_option = nullptr;
  CLI::Option* prompt_file_option = nullptr;

  bool interactive() const {
    return prompt_option->count() == 0 && prompt_file_option->count() == 0;
  }
};

// One generation, streamed to stdout as the reader shows it, or as records, unless the result is
// JSON.
Result<Generation> generate(Runtime& runtime, Session& session, Sampler& sampler,
                            const RunFlags& flags, std::span<const TokenId> prompt,
                            std::span<const TokenId> stops, ReplyReader& reader,
                            const std::atomic<bool>& interrupted) {
  ProgressBar bar("prompt");
  GenerateOptions options;
  options.max_tokens = flags.n_predict < 0 ? UINT32_MAX : static_cast<uint32_t>(flags.n_predict);
  options.ignore_eos = flags.ignore_eos;
  options.stops = stops;
  options.cancel = &interrupted;
  options.on_prefill = [&](uint32_t done, uint32_t total) {
    if (done == total)
      bar.finish();
    else
      bar.update(done, total);
  };
  std::string piece;
  uint32_t n_records = 0;
  options.on_token = [&](TokenId token) {
    piece = reader.read(token);
    if (flags.json || flags.verbose_tokens) return true;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return true;
  };
  if (flags.verbose_tokens) {
    options.on_record = [&](const TokenRecord& record) {
      nlohmann::ordered_json json = {{"schema", kTokenSchema}, {"text", piece}};
      json.update(token_json(n_records++, record, runtime));
      print_json(json);
      std::fflush(stdout);
    };
  }
  return session.generate(prompt, sampler, options);
}

// What a reply holds that wasn't shown, if anything.
void say_hidden(const ReplyReader& reader) {
  if (reader.hidden_tokens() == 0) return;
  fmt::print(stderr, "note: chat: {} tokens of other channels than the final one aren't shown\n",
             reader.hidden_tokens());
}

Result<std::vector<TokenId>> encode_plain(const RunFlags& flags, const Tokenizer& tokenizer) {
  return tokenizer.encode(flags.prompt, {true, flags.parse_special});
}

// The prompt's tokens: the text as it stands, or, if the flags speak of a chat, one turn of it.
Result<std::vector<TokenId>> encode_prompt(const Runtime& runtime, const RunFlags& flags,
                                           const std::optional<Chat>& chat) {
  if (flags.prompt_tokens) return *flags.prompt_tokens;
  if (!chat) return encode_plain(flags, runtime.tokenizer());
  Conversation conversation = begin_conversation(*chat, flags.chat);
  conversation.add_user(flags.prompt);
  return conversation.prompt(runtime.tokenizer());
}

Status write_report_of(const std::string& path, Runtime& runtime, const GenerationRecord& record,
                       const Ceilings& ceilings, const SpikeReport& spikes,
                       const Notices& notices) {
  ReportRun run = {.ceilings = ceilings, .spikes = spikes, .notices = notices};
  run.name =
      fmt::format("{} tokens after a prompt of {}", record.tokens.size(), record.prompt_tokens);
  run.records = record.tokens;
  run.ttft_ms = static_cast<double>(record.prefill.wall_ns) / 1e6;
  run.tokens_per_s = static_cast<double>(record.tokens.size()) * 1e9 /
                     static_cast<double>(std::max<int64_t>(record.decode_ns(), 1));
  std::vector<nlohmann::ordered_json> runs;
  OFFSTAGE_TRY(runs.emplace_back(), report_run(runtime, run));
  return write_report(path, report_json(std::move(runs)));
}

Result<int> run_prompt(Runtime& runtime, const RunFlags& flags, Sampler& sampler, Notices& notices,
                       const std::optional<Chat>& chat, RunForecast& forecast) {
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  OFFSTAGE_TRY(const auto prompt, encode_prompt(runtime, flags, chat));
  Session session(runtime, SequenceId(0));
  ReplyReader reader(chat ? *chat->chat_template : *find_chat_template("plain"),
                     runtime.tokenizer());
  OFFSTAGE_TRY(const Generation generation,
               generate(runtime, session, sampler, flags, prompt,
                        chat ? chat->stops : std::span<const TokenId>(), reader, interrupted));
  OFFSTAGE_TRY_VOID(runtime.save_index(notices));  // before the report, which lists what it says
  // Before the workers do anything else, which would be in it.
  if (!flags.timeline_file.empty())
    OFFSTAGE_TRY_VOID(write_timeline(flags.timeline_file, generation.record.prefill,
                                     generation.record.tokens, runtime));
  const Ceilings ceilings = measure_ceilings(runtime);
  const SpikeReport spikes =
      explain_spikes(generation.record.tokens, flags.model.spikes, runtime.drive_names());
  if (!flags.report_file.empty())
    OFFSTAGE_TRY_VOID(
        write_report_of(flags.report_file, runtime, generation.record, ceilings, spikes, notices));
  std::optional<KeptForecast> forecasted;
  if (!interrupted) {
    forecast.add(generation.record, 0);
    forecasted = forecast.make(runtime, "run", notices);
  }
  if (flags.json) {
    auto json = run_json(runtime, generation, ceilings, spikes, notices, reader.text(),
                         chat ? chat->chat_template->name : std::string_view());
    if (forecasted) json["forecast"] = forecast_json(*forecasted);
    print_json(json);
  } else if (!flags.verbose_tokens) {
    std::puts("");
    std::fflush(stdout);  // before the summary on stderr
  }
  say_hidden(reader);
  fmt::print(stderr, "\n{}{}", run_summary(runtime, generation, ceilings),
             interrupted ? "" : forecast.line(forecasted));
  return interrupted ? kExitInterrupted : kExitOk;
}

// One turn: what the session already holds of the conversation stays, the rest is appended.
Result<Generation> reply(Runtime& runtime, Session& session, Sampler& sampler,
                         const RunFlags& flags, const Chat& chat, Conversation& conversation,
                         const std::atomic<bool>& interrupted, RunForecast& forecast) {
  OFFSTAGE_TRY(const auto prompt, conversation.prompt(runtime.tokenizer()));
  const auto history = session.history();
  const auto differs = std::mismatch(history.begin(), history.end(), prompt.begin(), prompt.end());
  const auto same = static_cast<size_t>(differs.first - history.begin());
  const size_t kept = std::min(same, prompt.size() - 1);
  if (kept < history.size()) {
    fmt::print(stderr, "chat     {} of {} tokens in the KV stay, the template changed the rest\n",
               kept, history.size());
  }
  session.rewind(kept);
  ReplyReader reader(*chat.chat_template, runtime.tokenizer());
  OFFSTAGE_TRY(Generation generation,
               generate(runtime, session, sampler, flags, std::span(prompt).subspan(kept),
                        chat.stops, reader, interrupted));
  std::puts("");
  std::fflush(stdout);  // before the summary on stderr
  say_hidden(reader);
  conversation.add_reply(reader.text(), reader.ids());
  forecast.add(generation.record, static_cast<uint32_t>(kept));
  return generation;
}

Result<int> run_chat(Runtime& runtime, const RunFlags& flags, Sampler& sampler, Notices& notices,
                     const Chat& chat, RunForecast& forecast) {
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  fmt::print(stderr, "chat     {}; an empty line or Ctrl-D ends\n", chat.description);
  Session session(runtime, SequenceId(0));
  Conversation conversation = begin_conversation(chat, flags.chat);
  std::string line;
  while (!interrupted) {
    if (isatty(STDIN_FILENO) != 0) fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || line.empty()) break;
    conversation.add_user(line);
    OFFSTAGE_TRY(const Generation generation, reply(runtime, session, sampler, flags, chat,
                                                    conversation, interrupted, forecast));
    fmt::print(stderr, "{}", run_summary(runtime, generation, measure_ceilings(runtime)));
    if (generation.stop == StopReason::kContextFull) {
      fmt::print(stderr, "note: context: {} positions are full; start again or raise -c\n",
                 runtime.options().context);
      break;
    }
  }
  if (interrupted) return kExitInterrupted;
  fmt::print(stderr, "{}", forecast.line(forecast.make(runtime, "chat", notices)));
  return kExitOk;
}

Result<int> run(RunFlags flags) {
  OFFSTAGE_TRY_VOID(flags.sampler.check());
  flags.sampler.seed = flags.seed < 0 ? std::random_device{}() : static_cast<uint64_t>(flags.seed);
  if (flags.json && flags.interactive())
    return make_error(ErrorCode::kInvalidArgument, "--json needs a prompt (-p or -f)");
  if (flags.verbose_tokens && (flags.json || flags.interactive()))
    return make_error(ErrorCode::kInvalidArgument,
                      "--verbose-tokens needs a prompt (-p or -f) and stands in place of --json");
  if (!flags.timeline_file.empty()) {
    if (flags.interactive())
      return make_error(ErrorCode::kInvalidArgument, "--timeline needs a prompt (-p or -f)");
    flags.model.record = "read";
  }
  if (!flags.report_file.empty()) {
    if (flags.interactive())
      return make_error(ErrorCode::kInvalidArgument, "--report needs a prompt (-p or -f)");
    flags.model.record_layers();
  }
  if (!flags.prompt_file.empty()) {
    OFFSTAGE_TRY(flags.prompt, read_text_file(flags.prompt_file));
  }
  if (!flags.interactive() && !flags.chat.given())
    flags.model.longest_prompt = [&flags](const Tokenizer& tokenizer) {
      auto prompt = encode_plain(flags, tokenizer);
      if (!prompt) return 0u;  // run_prompt() says the error
      flags.prompt_tokens = std::move(*prompt);
      return static_cast<uint32_t>(flags.prompt_tokens->size());
    };
  RunForecast forecast(!flags.model.no_forecast);
  flags.model.keep_first_routes = forecast.is_on();
  Notices notices;
  OFFSTAGE_TRY(const auto runtime, open_runtime(flags.model, notices));
  NoticePrinter printer(notices);
  printer.skip(notices.list().size());
  std::optional<Chat> chat;
  if (flags.interactive() || flags.chat.given()) {
    OFFSTAGE_TRY(chat,
                 choose_chat(flags.chat, runtime->file().gguf, runtime->tokenizer(), notices));
    printer.print();
    if (!flags.interactive()) fmt::print(stderr, "chat     {}\n", chat->description);
  }
  const size_t said = notices.list().size();
  if (!flags.record_routing.empty())
    OFFSTAGE_TRY_VOID(runtime->record_routes(flags.record_routing));
  forecast.begin(*runtime);
  Sampler sampler(flags.sampler, runtime->spec().n_vocab);
  auto code = flags.interactive() ? run_chat(*runtime, flags, sampler, notices, *chat, forecast)
                                  : run_prompt(*runtime, flags, sampler, notices, chat, forecast);
  printer.skip(said);
  OFFSTAGE_TRY_VOID(runtime->close_route_record());
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
  flags->model.add_measuring_to(*command);
  flags->chat.add_to(*command);
  flags->prompt_option = command->add_option("-p,--prompt", flags->prompt,
                                             "prompt text, as it stands unless a flag speaks of "
                                             "a chat (--chat-template, --system-prompt)");
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
  command->add_option("--record-routing", flags->record_routing,
                      "write a trace of the experts that every token called");
  command->add_flag("--ignore-eos", flags->ignore_eos, "go on past the end of generation");
  command->add_flag("--json", flags->json, "one JSON object on stdout instead of the text");
  command->add_flag("--verbose-tokens", flags->verbose_tokens,
                    "what every token cost, a JSON object a line, on stdout instead of the text");
  command->add_option("--timeline", flags->timeline_file,
                      "write a timeline for Perfetto to this file");
  command->add_option("--report", flags->report_file,
                      "write charts of the run to this HTML file, for a browser; sets --record "
                      "layer");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace offstage
