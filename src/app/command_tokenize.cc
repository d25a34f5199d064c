// offstage tokenize: text → ids and pieces, also with vocabulary-only files.
#include <memory>

#include "app/chat.h"
#include "app/command.h"
#include "app/default_model.h"
#include "app/model_flags.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "model/vocabulary.h"

namespace offstage {
namespace {

struct TokenizeFlags {
  ChatFlags chat;
  std::string model, prompt, file;
  bool add_special = false, parse_special = false, json = false;
};

Result<int> tokenize(const TokenizeFlags& flags) {
  if (flags.prompt.empty() == flags.file.empty())
    return make_error(ErrorCode::kInvalidArgument, "give the text with -p or with -f");
  OFFSTAGE_TRY(const std::string model, model_or_default(flags.model));
  OFFSTAGE_TRY(const GgufModel gguf, GgufModel::open(model));
  OFFSTAGE_TRY(VocabularyFacts facts, vocabulary_from_gguf(gguf));
  Notices notices;
  OFFSTAGE_TRY(const auto tokenizer, Tokenizer::create(std::move(facts), &notices));
  std::optional<Chat> chat;
  if (flags.chat.given()) {
    OFFSTAGE_TRY(chat, choose_chat(flags.chat, gguf, *tokenizer, notices));
  }
  NoticePrinter(notices).print();
  if (chat) fmt::print(stderr, "chat     {}\n", chat->description);
  std::string text = flags.prompt;
  if (!flags.file.empty()) {
    OFFSTAGE_TRY(text, read_text_file(flags.file));
  }
  std::vector<TokenId> ids;
  if (chat) {
    Conversation conversation = begin_conversation(*chat, flags.chat);
    conversation.add_user(std::move(text));
    OFFSTAGE_TRY(ids, conversation.prompt(*tokenizer));
  } else {
    ids = tokenizer->encode(text, {flags.add_special, flags.parse_special});
  }
  std::vector<std::string> pieces;
  for (const TokenId id : ids) pieces.push_back(tokenizer->piece(id, true));
  if (flags.json) {
    nlohmann::ordered_json json;
    json["schema"] = "offstage.tokenize/1";
    json["tokens"] = ids;
    json["pieces"] = pieces;
    json["fallbacks"] = notices_json(notices);
    print_json(json);
    return kExitOk;
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const nlohmann::json piece = pieces[i];
    fmt::print("{:>7} {}\n", ids[i],
               piece.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  return kExitOk;
}

}  // namespace

void add_tokenize_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command = app.add_subcommand(
      "tokenize",
      "text to token ids and their pieces; with a chat template, a question as it is asked");
  add_model_flag(*command, flags->model);
  command->add_option("-p,--prompt", flags->prompt, "text");
  command->add_option("-f,--file", flags->file, "text from a file, - for stdin");
  command->add_flag("--add-special", flags->add_special, "add BOS/EOS as the file says");
  command->add_flag("--parse-special,--special", flags->parse_special,
                    "read the text of special tokens as those tokens");
  flags->chat.add_to(*command);
  command->add_flag("--json", flags->json, "one JSON object: tokens, pieces");
  command->callback([flags, &chosen] { chosen = [flags] { return tokenize(*flags); }; });
}

}  // namespace offstage
