#!/usr/bin/env python3
"""Writes tests/data/tokenizer/*.json: small vocabularies and the ids that independent tokenizers give with them.

Byte-level BPE comes from PyPI `tokenizers` (its own regex engine, oniguruma, runs the split patterns), the
SentencePiece family from PyPI `sentencepiece`, and its special tokens from `tokenizers` again. Texts: each line of
corpus.txt, the whole of it, and the awkward cases below, which go into cases.json.

One file: model, pre, tokens, types, scores or merges, bos, eos; `lines`, `cases`: ids per text; `whole`: ids of the
whole corpus; `splits`: lengths of the pre-tokenizer's words in each line, each case, the whole; `special`: ids of the
cases that name special tokens, read as such; `special_as_text`: read as text, except for the user-defined one.

splits.json has nothing but `splits`, per family, of those whose ids would prove nothing more.
"""

import argparse
import io
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>x"]  # one is the front of another
USER_DEFINED = ["<tool>"]
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED_TYPE, UNUSED, BYTE = range(1, 7)

CASES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", " \n \n", "\n  \n\n   x", "x\n", "x \n", "x\n\n",
    "a\r\nb\r\n\r\nc", "a\rb", " \r \n\t x", "\t\t\tx", "x\t\t\t", "a \t b", "\u00a0\u00a0x", "x\u3000\u3000", "\u2028x\u2029",
    "\x00", "a\x00b", "\x01\x02\x1f\x7f", "a\x0bb\x0cc", "\x0b\x0c\x0c x", "\x85\x85", "\x1b[31mred\x1b[0m", " " * 100,
    "x" + " " * 100 + "y", "\n" * 50, " \n" * 20, "1" * 50, "a" * 100, "中" * 50, "\u0301" * 40, "a\u0301" * 30, "!" * 60,
    "!?\n\n!", "...\n", "... \n", ".\r\n.", "foo.bar()\n\n\n  baz", "'s", "''s", "'S's'LL'll", "I'll'll", "'\u017f", "\u212a",
    " 's", "x 's", "1's", "'1", "123's456", "a1b2c3", "１２３４５", "٣٤٥٦٧", "½¾", "²³¹", "Ⅷ12", "12 34", " 1", "  1", "   12345",
    "$1,234.56", "é", "e\u0301", "\ufeffx", "\ufffd", "\U0010ffff", "\U0001f469\u200d\U0001f52c", "\U0001f1e9\U0001f1ea", "🏳️‍🌈👍🏽",
    "ABCdefGHI", "abcDEF'sGHI", "ÀÉàéÀ", "ǅǆǄ", "中A文b", "ʰAʰb", "a\u0301B\u0301c", "_a _b", "/a/b\n/c", "//\n//", "a/\n",
    "#include<x>\n\tint\ty;\r\n", "\u180e\u180ex \u180e", "x\u0378y", "ᄀ\u1161\u11a8한", "हिन्दी", "ภาษา ไทย", "「引用」、。", "！？（）",
    "Offstage  offstage OFFSTAGE", "trailing  ", "  leading", "\u2003x\u2003", "a\u200bb", "ẞß ﬁ ΩÅK", "ᾈᾳ \u1f7d\u1fbe\u1fd3",
    "<|im_start", "|im_end|>", "<0x41>", "\u2581", "a\u2581b", " \u2581 ", "\u2581\u2581x",
]

SPECIAL_CASES = [
    "<|im_start|>", "<|im_start|>user\nHello<|im_end|>\n", "a<|endoftext|>", "<|endoftext|>a", "<|im_end|><|im_end|>",
    "<|im_end|>xy", "<|im_end|> x", "<|<|im_end|>|>", "<|im_start<|im_start|>", "<|IM_START|>", "x <tool> y", "<tool>",
    "<tool><|im_start|><tool>", "<tool> <tool>\n", "'<tool>s", "1<|im_end|>23", "<|im_end|>x<|im_end|>",
]

SPACES_LAST = r"\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LINES = r"\s*[\r\n]+|" + SPACES_LAST
WORDS = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + LINES
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + SPACES_LAST
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ"
    "ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")

O200K = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
O200K_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + LINES
NOT_HAN = r"&&[^\p{Han}]]"

# tokenizer.ggml.pre → split patterns in order; None: the library's own GPT-2 splitting.
FAMILIES = {
    "gpt-2": None,
    "starcoder": [r"\p{N}", GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "llama-bpe": [WORDS % r"\p{N}{1,3}"],
    "qwen2": [WORDS % r"\p{N}"],
    "deepseek-llm": ["[\r\n]", rf"\s?[{CASED}]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|" + LINES],
    "gpt-4o": [O200K % (CONTRACTION + "?", CONTRACTION + "?") + r"|\p{N}{1,3}" + O200K_REST],
}
# Those that compose characters (NFC) first.
COMPOSING = ["qwen2"]
# Families of which only the words are compared: how words become ids is the same for all.
SPLITS_ONLY = {
    "tekken": [O200K % ("", "") + r"|\p{N}" + O200K_REST],
    "kimi-k2": [
        r"[\p{Han}]+|" + (O200K % (CONTRACTION + "?", CONTRACTION + "?")).replace(
            UPPER, UPPER[:-1] + NOT_HAN).replace(LOWER, LOWER[:-1] + NOT_HAN)
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + LINES],
    "qwen35": [
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + LINES],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "bailingmoe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + SPACES_LAST],
    "seed-coder": [CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + LINES],
    "minicpm5": [r"\p{N}{1,3}", WORDS % r"\p{N}+"],
}


def texts(corpus):
    return corpus.split("\n"), CASES


def results(encode, encode_special, encode_special_as_text, corpus):
    lines, cases = texts(corpus)
    return {
        "lines": [encode(text) for text in lines],
        "whole": encode(corpus),
        "cases": [encode(text) for text in cases],
        "special": [encode_special(text) for text in SPECIAL_CASES],
        "special_as_text": [encode_special_as_text(text) for text in SPECIAL_CASES],
    }


def splitter_of(patterns):
    from tokenizers import Regex, pre_tokenizers
    if patterns is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def splits(splitter, all_texts):
    """Lengths of the words in bytes: byte-level text has a character for each."""
    return [[len(word) for word, _ in splitter.pre_tokenize_str(text)] for text in all_texts]


def byte_pair_golden(pre, patterns, corpus):
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    splitter = splitter_of(patterns)
    tokenizer = Tokenizer(models.BPE())
    # Trained on stretches of 12 characters wherever they fall, not on words: a vocabulary of words couldn't tell a
    # missing split, having no token that reaches across it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\s\S]{1,12}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus.split("\n") + CASES, trainer)
    state = json.loads(tokenizer.to_str())
    if pre == "llama-bpe":  # words that only ignore_merges can give
        state["model"]["ignore_merges"] = True
        for word in ["Offstage", "ĠConcert", "Ġoffstage", "ĠOFFSTAGE", "ABCdefGHI", "çļĦä¸Ńæĸĩ"]:
            state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = splitter
    if pre in COMPOSING:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])

    def encode(text, as_text):
        tokenizer.encode_special_tokens = as_text
        return tokenizer.encode(text, add_special_tokens=False).ids

    lines, cases = texts(corpus)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    types = [CONTROL_TYPE if t in CONTROL else USER_DEFINED_TYPE if t in USER_DEFINED else NORMAL for t in tokens]
    return {
        "model": "gpt2", "pre": pre, "tokens": tokens, "types": types,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]],
        "bos": vocabulary["<|endoftext|>"], "eos": vocabulary["<|im_end|>"],
        "splits": splits(splitter, (*lines, *cases, corpus)),
        **results(lambda t: encode(t, False), lambda t: encode(t, False), lambda t: encode(t, True), corpus),
    }


def train_sentencepiece(corpus, **options):
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.split("\n") + [c for c in CASES if c.strip() and "\x00" not in c and "\u2581" not in c]),
        model_writer=model, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2, **options)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_golden(corpus, **options):
    sp = train_sentencepiece(corpus, **options)
    size = sp.get_piece_size()
    kinds = [(sp.is_unknown, UNKNOWN), (sp.is_control, CONTROL_TYPE), (sp.is_byte, BYTE), (sp.is_unused, UNUSED)]
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(size)]
    tokens = [sp.id_to_piece(i) for i in range(size)] + CONTROL + USER_DEFINED
    types += [CONTROL_TYPE] * len(CONTROL) + [USER_DEFINED_TYPE] * len(USER_DEFINED)
    scores = [sp.get_score(i) for i in range(size)] + [0.0] * (len(CONTROL) + len(USER_DEFINED))
    special = with_special_tokens(tokens, types, scores)
    return {
        "model": "llama", "pre": "", "tokens": tokens, "types": types, "scores": scores, "bos": 1, "eos": 2,
        **results(lambda t: sp.encode(t) if t else [], lambda t: special(t, False), lambda t: special(t, True), corpus),
    }


def with_special_tokens(tokens, types, scores):
    """The same vocabulary in `tokenizers`: every way to put a token together from two others is a merge."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers
    ids = {token: i for i, token in enumerate(tokens)}
    mergeable = [t for t, kind in zip(tokens, types) if kind == NORMAL]
    mergeable.sort(key=lambda t: -scores[ids[t]])
    known = set(mergeable)
    merges = [(t[:cut], t[cut:]) for t in mergeable for cut in range(1, len(t)) if t[:cut] in known and t[cut:] in known]
    model = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback="<0x00>" in ids)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])

    def encode(text, as_text):
        tokenizer.encode_special_tokens = as_text
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="ascii")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(value.get('tokens', []))} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/data/tokenizer")
    out = parser.parse_args().out
    corpus = (out / "corpus.txt").read_bytes().decode("utf-8")
    dump(out / "cases.json", {"cases": CASES, "special_cases": SPECIAL_CASES})
    for pre, patterns in FAMILIES.items():
        dump(out / f"{pre}.json", byte_pair_golden(pre, patterns, corpus))
    lines, cases = texts(corpus)
    dump(out / "splits.json", {
        pre: splits(splitter_of(patterns), (*lines, *cases)) for pre, patterns in SPLITS_ONLY.items()})
    dump(out / "llama.json", sentencepiece_golden(corpus, vocab_size=1400, byte_fallback=True, character_coverage=0.995))
    dump(out / "llama_no_bytes.json", sentencepiece_golden(corpus, vocab_size=1100, character_coverage=0.98))
    dump(out / "llama_across_words.json", sentencepiece_golden(
        corpus, vocab_size=1400, byte_fallback=True, character_coverage=0.98, split_by_whitespace=False))


if __name__ == "__main__":
    main()
