// The patterns are those of the `pre_tokenizer` entries in the models' own tokenizer.json, under
// the names that GGUF converters give them. Three spellings differ, to the same effect:
// - `\s` is spelled out as [[S]]: PCRE2's takes U+180E for a space (as Unicode did before 6.3) and
//   the engine these models were trained with doesn't;
// - `\s+$` in deepseek-llm is anchored at the front of a run of spaces, because as it stands the
//   search starts once per space and runs to the end of the run each time: quadratic, where
//   patterns are interpreted (PCRE2's just-in-time compiler notices);
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
constexpr std::string_view kGpt4oStages[] = {
    "[^\\r\\n\\p{L}\\p{N}]?" OFFSTAGE_UPPER "*" OFFSTAGE_LOWER "+" OFFSTAGE_CONTRACTION
    "?|[^\\r\\n\\p{L}\\p{N}]?" OFFSTAGE_UPPER "+" OFFSTAGE_LOWER "*" OFFSTAGE_CONTRACTION
    "?|\\p{N}{1,3}|" OFFSTAGE_SYMBOLS "[\\r\\n/]*|" OFFSTAGE_LINES};

constexpr std::string_view kGpt2Names[] = {
    "gpt-2",    "phi-2",   "olmo",    "mpt",        "gigachat",   "mellum",  "modern-bert",
    "trillion", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "a.x-4.0", "granite-docling"};
constexpr std::string_view kStarcoderNames[] = {"starcoder", "refact", "command-r", "smollm",
                                                "codeshell", "exaone", "minerva-7b"};
constexpr std::string_view kDefaultNames[] = {"", "default"};
constexpr std::string_view kLlama3Names[] = {"llama-bpe", "llama3",  "llama-v3", "falcon3",
                                             "falcon-h1", "pixtral", "midm-2.0", "lfm2"};
constexpr std::string_view kDbrxNames[] = {"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"};
constexpr std::string_view kQwen2Names[] = {"qwen2",   "deepseek-r1-qwen", "stablelm2",
                                            "hunyuan", "megrez",           "kormo",
                                            "f2llmv2", "solar-open"};
constexpr std::string_view kDeepseekLlmNames[] = {"deepseek-llm"};
constexpr std::string_view kDeepseekCoderNames[] = {"deepseek-coder"};
constexpr std::string_view kDeepseekV3Names[] = {"deepseek-v3", "hunyuan-dense", "joyai-llm"};
constexpr std::string_view kGpt4oNames[] = {"gpt-4o", "llama4", "kanana2", "minimax-m2"};

constexpr PreTokenizerFamily kFamilies[] = {
    {"gpt-2", kGpt2Names, kGpt2Stages, false, false},
    {"starcoder", kStarcoderNames, kStarcoderStages, false, false},
    {"default", kDefaultNames, kDefaultStages, false, false},
    {"llama-bpe", kLlama3Names, kLlama3Stages, true, true},
    {"dbrx", kDbrxNames, kLlama3Stages, false, false},
    {"qwen2", kQwen2Names, kQwen2Stages, false, false},
    {"deepseek-llm", kDeepseekLlmNames, kDeepseekLlmStages, false, false},
    {"deepseek-coder", kDeepseekCoderNames, kDeepseekCoderStages, false, false},
    {"deepseek-v3", kDeepseekV3Names, kDeepseekV3Stages, false, false},
    {"gpt-4o", kGpt4oNames, kGpt4oStages, false, false},
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
