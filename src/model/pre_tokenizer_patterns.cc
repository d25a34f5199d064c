// The patterns are those of the `pre_tokenizer` entries in the models' own tokenizer.json, under
// the names that GGUF converters give them. Four spellings differ, to the same effect:
// - `\s` is spelled out as [[S]]: PCRE2's takes U+180E for a space (as Unicode did before 6.3) and
//   the engine these models were trained with doesn't;
// - `\s+$` in deepseek-llm is anchored at the front of a run of spaces, because as it stands the
//   search starts once per space and runs to the end of the run each time: quadratic, where
//   patterns are interpreted (PCRE2's just-in-time compiler notices);
// - `[A&&[^\p{Han}]]` in kimi-k2 is the complement of what is outside A or Han: PCRE2's classes
//   don't intersect. Han is spelled out, because versions of PCRE2 disagree on what \p{Han} is (the
//   script, or the script's extensions as well);
// - characters are numbers where an editor's normalisation could turn them into others (U+2126).
#include "model/pre_tokenizer_patterns.h"

namespace offstage {
namespace {

// Unicode's White_Space, for use inside a character class.
#define OFFSTAGE_SPACE                                                           \
  "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
  "\\x{202f}\\x{205f}\\x{3000}"
#define OFFSTAGE_S "[" OFFSTAGE_SPACE "]"
#define OFFSTAGE_NOT_S "[^" OFFSTAGE_SPACE "]"
// A run of spaces up to the one before a word, then what is left.
#define OFFSTAGE_SPACES_LAST OFFSTAGE_S "+(?!" OFFSTAGE_NOT_S ")|" OFFSTAGE_S "+"
#define OFFSTAGE_LINES OFFSTAGE_S "*[\\r\\n]+|" OFFSTAGE_SPACES_LAST
#define OFFSTAGE_SYMBOLS " ?[^" OFFSTAGE_SPACE "\\p{L}\\p{N}]+"
#define OFFSTAGE_CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

#define OFFSTAGE_GPT2 \
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" OFFSTAGE_SYMBOLS "|" OFFSTAGE_SPACES_LAST
// Shared by llama-bpe and qwen2, which differ in how many digits go together.
#define OFFSTAGE_WORDS(digits)                                                       \
  OFFSTAGE_CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "|" OFFSTAGE_SYMBOLS \
                       "[\\r\\n]*|" OFFSTAGE_LINES
// Words by case, in the manner of o200k: shared by gpt-4o, tekken and kimi-k2.
#define OFFSTAGE_CASED_WORDS(upper, lower, contraction)                                    \
  "[^\\r\\n\\p{L}\\p{N}]?" upper "*" lower "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?" upper \
  "+" lower "*" contraction
#define OFFSTAGE_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define OFFSTAGE_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

// Letters as deepseek-llm lists them: those with case, in the scripts Unicode 12 had.
#define OFFSTAGE_CASED                                                                      \
  "A-Za-z"                                                                                  \
  "\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}" \
  "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}"     \
  "\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}"            \
  "\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}"                \
  "\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}"            \
  "\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}"            \
  "\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}"    \
  "\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}"   \
  "\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}"            \
  "\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}"    \
  "\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}"    \
  "\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}"              \
  "\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}"             \
  "\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}"            \
  "\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}"            \
  "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}"        \
  "\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}"    \
  "\\x{1e900}-\\x{1e943}"
#define OFFSTAGE_CJK_TO_HANGUL "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define OFFSTAGE_ASCII_SYMBOL "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"

constexpr std::string_view kGpt2Stages[] = {OFFSTAGE_GPT2};
constexpr std::string_view kStarcoderStages[] = {"\\p{N}", OFFSTAGE_GPT2};
constexpr std::string_view kDefaultStages[] = {"[\\p{P}\\$\\+<=>\\^~\\|]+", OFFSTAGE_GPT2,
                                               "\\p{N}+", "[0-9][0-9][0-9]"};
constexpr std::string_view kLlama3Stages[] = {OFFSTAGE_WORDS("\\p{N}{1,3}")};
constexpr std::string_view kQwen2Stages[] = {OFFSTAGE_WORDS("\\p{N}")};
constexpr std::string_view kDeepseekLlmStages[] = {
    "[\\r\\n]",
    OFFSTAGE_S "?[" OFFSTAGE_CASED "]+",
    OFFSTAGE_S
    "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
    "(?<!" OFFSTAGE_S ")" OFFSTAGE_S "++\\z",
    OFFSTAGE_CJK_TO_HANGUL,
    "\\p{N}+"};
constexpr std::string_view kDeepseekCoderStages[] = {
    "[\\r\\n]", OFFSTAGE_S "?\\p{L}+", OFFSTAGE_S "?\\p{P}+", OFFSTAGE_CJK_TO_HANGUL, "\\p{N}"};
constexpr std::string_view kDeepseekV3Stages[] = {
    "\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
    OFFSTAGE_ASCII_SYMBOL
    "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\\r\\n]*|" OFFSTAGE_LINES};
constexpr std::string_view kGpt4oStages[] = {OFFSTAGE_CASED_WORDS(
    OFFSTAGE_UPPER, OFFSTAGE_LOWER, OFFSTAGE_CONTRACTION "?") "|\\p{N}{1,3}|" OFFSTAGE_SYMBOLS
                                                              "[\\r\\n/]*|" OFFSTAGE_LINES};
constexpr std::string_view kTekkenStages[] = {OFFSTAGE_CASED_WORDS(
    OFFSTAGE_UPPER, OFFSTAGE_LOWER, "") "|\\p{N}|" OFFSTAGE_SYMBOLS "[\\r\\n/]*|" OFFSTAGE_LINES};

#define OFFSTAGE_HAN                                                                               \
  "\\x{2e80}-\\x{2e99}\\x{2e9b}-\\x{2ef3}\\x{2f00}-\\x{2fd5}\\x{3005}\\x{3007}\\x{3021}-\\x{3029}" \
  "\\x{3038}-\\x{303b}\\x{3400}-\\x{4dbf}\\x{4e00}-\\x{9fff}\\x{f900}-\\x{fa6d}\\x{fa70}-\\x{"     \
  "fad9}"                                                                                          \
  "\\x{16fe2}\\x{16fe3}\\x{16ff0}\\x{16ff1}\\x{20000}-\\x{2a6df}\\x{2a700}-\\x{2b739}"             \
  "\\x{2b740}-\\x{2b81d}\\x{2b820}-\\x{2cea1}\\x{2ceb0}-\\x{2ebe0}\\x{2ebf0}-\\x{2ee5d}"           \
  "\\x{2f800}-\\x{2fa1d}\\x{30000}-\\x{3134a}\\x{31350}-\\x{323af}"
#define OFFSTAGE_NO_LETTER "\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}"
#define OFFSTAGE_UPPER_NOT_HAN "[^\\p{Ll}" OFFSTAGE_NO_LETTER OFFSTAGE_HAN "]"
#define OFFSTAGE_LOWER_NOT_HAN "[^\\p{Lu}\\p{Lt}" OFFSTAGE_NO_LETTER OFFSTAGE_HAN "]"
constexpr std::string_view kKimiStages[] = {"[" OFFSTAGE_HAN "]+|" OFFSTAGE_CASED_WORDS(
    OFFSTAGE_UPPER_NOT_HAN, OFFSTAGE_LOWER_NOT_HAN,
    OFFSTAGE_CONTRACTION "?") "|\\p{N}{1,3}|" OFFSTAGE_SYMBOLS "[\\r\\n]*|" OFFSTAGE_LINES};
constexpr std::string_view kQwen35Stages[] = {
    OFFSTAGE_CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" OFFSTAGE_SPACE
                         "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" OFFSTAGE_LINES};
constexpr std::string_view kFalconStages[] = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", OFFSTAGE_GPT2,
                                              "[0-9][0-9][0-9]"};
constexpr std::string_view kBailingStages[] = {
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" OFFSTAGE_SPACE
    "\\p{L}\\p{N}]++[\\r\\n]*|" OFFSTAGE_S "*[\\r\\n]|" OFFSTAGE_SPACES_LAST};
constexpr std::string_view kSeedCoderStages[] = {
    OFFSTAGE_CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" OFFSTAGE_SPACE
                         "\\p{L}\\p{N}\\r\\n]+|" OFFSTAGE_LINES};
constexpr std::string_view kMiniCpm5Stages[] = {"\\p{N}{1,3}", OFFSTAGE_WORDS("\\p{N}+")};

constexpr std::string_view kGpt2Names[] = {
    "gpt-2",    "phi-2",   "gigachat", "mellum",     "modern-bert", "exaone4", "jais",
    "trillion", "jina-es", "jina-de",  "jina-v2-es", "jina-v2-de",  "a.x-4.0", "granite-docling"};
constexpr std::string_view kOlmoNames[] = {"olmo", "mpt"};
constexpr std::string_view kStarcoderNames[] = {"starcoder", "refact",     "smollm", "codeshell",
                                                "exaone",    "minerva-7b", "mellum2"};
constexpr std::string_view kCommandRNames[] = {"command-r"};
constexpr std::string_view kDefaultNames[] = {"", "default"};
constexpr std::string_view kLlama3Names[] = {"llama-bpe", "llama3",    "llama-v3",
                                             "falcon3",   "falcon-h1", "pixtral",
                                             "midm-2.0",  "lfm2",      "jina-v5-nano"};
constexpr std::string_view kDbrxNames[] = {"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"};
constexpr std::string_view kQwen2Names[] = {"qwen2"};
constexpr std::string_view kStablelm2Names[] = {
    "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez",
    "kormo",     "f2llmv2",          "grok-2",  "solar-open"};
constexpr std::string_view kDeepseekLlmNames[] = {"deepseek-llm"};
constexpr std::string_view kDeepseekCoderNames[] = {"deepseek-coder"};
constexpr std::string_view kDeepseekV3Names[] = {"deepseek-v3", "hunyuan-dense", "joyai-llm"};
constexpr std::string_view kGpt4oNames[] = {"gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"};
constexpr std::string_view kTekkenNames[] = {"tekken"};
constexpr std::string_view kKimiNames[] = {"kimi-k2"};
constexpr std::string_view kQwen35Names[] = {"qwen35"};
constexpr std::string_view kFalconNames[] = {"falcon"};
constexpr std::string_view kBailingNames[] = {"bailingmoe", "bailingmoe2", "llada-moe"};
constexpr std::string_view kSeedCoderNames[] = {"seed-coder"};
constexpr std::string_view kMiniCpm5Names[] = {"minicpm5"};

// Which of them compose is known from the `normalizer` entries of the same files; where the entry
// isn't known here, text is taken as it is.
constexpr PreTokenizerFamily kFamilies[] = {
    {.name = "gpt-2", .names = kGpt2Names, .stages = kGpt2Stages},
    {.name = "olmo", .names = kOlmoNames, .stages = kGpt2Stages, .composes = true},
    {.name = "starcoder", .names = kStarcoderNames, .stages = kStarcoderStages},
    {.name = "command-r", .names = kCommandRNames, .stages = kStarcoderStages, .composes = true},
    {.name = "default", .names = kDefaultNames, .stages = kDefaultStages},
    {.name = "llama-bpe",
     .names = kLlama3Names,
     .stages = kLlama3Stages,
     .ignore_merges = true,
     .add_bos = true},
    {.name = "dbrx", .names = kDbrxNames, .stages = kLlama3Stages},
    {.name = "qwen2", .names = kQwen2Names, .stages = kQwen2Stages, .composes = true},
    {.name = "stablelm2", .names = kStablelm2Names, .stages = kQwen2Stages},
    {.name = "qwen35", .names = kQwen35Names, .stages = kQwen35Stages, .composes = true},
    {.name = "deepseek-llm", .names = kDeepseekLlmNames, .stages = kDeepseekLlmStages},
    {.name = "deepseek-coder", .names = kDeepseekCoderNames, .stages = kDeepseekCoderStages},
    {.name = "deepseek-v3", .names = kDeepseekV3Names, .stages = kDeepseekV3Stages},
    {.name = "gpt-4o", .names = kGpt4oNames, .stages = kGpt4oStages},
    {.name = "tekken",
     .names = kTekkenNames,
     .stages = kTekkenStages,
     .ignore_merges = true,
     .add_bos = true},
    {.name = "kimi-k2", .names = kKimiNames, .stages = kKimiStages},
    {.name = "falcon", .names = kFalconNames, .stages = kFalconStages},
    {.name = "bailingmoe", .names = kBailingNames, .stages = kBailingStages},
    {.name = "seed-coder", .names = kSeedCoderNames, .stages = kSeedCoderStages},
    {.name = "minicpm5", .names = kMiniCpm5Names, .stages = kMiniCpm5Stages, .ignore_merges = true},
};

}  // namespace

std::span<const PreTokenizerFamily> pre_tokenizer_families() { return kFamilies; }

const PreTokenizerFamily* find_pre_tokenizer_family(std::string_view pre) {
  for (const PreTokenizerFamily& family : kFamilies) {
    for (const std::string_view name : family.names) {
      if (name == pre) return &family;
    }
  }
  return nullptr;
}

std::string supported_pre_tokenizers() {
  std::string list;
  for (const PreTokenizerFamily& family : kFamilies) {
    for (const std::string_view name : family.names) {
      if (name.empty()) continue;
      if (!list.empty()) list += ", ";
      list += name;
    }
  }
  return list;
}

}  // namespace offstage
