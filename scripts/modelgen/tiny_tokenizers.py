"""Tiny trained tokenizers for the golden checkpoints: byte-level BPE (Qwen2's and OLMo's splits)
and SentencePiece BPE.

In: a folder, a vocabulary size. Out: the files a checkpoint carries (tokenizer.json, or
tokenizer.model, with tokenizer_config.json) and a function text → ids, which is the independent
implementation itself.
"""

import io
import json

CORPUS = """The curtain rises on an empty stage. Behind it, in the wings, sixty-four actors wait \
for a call.
Each scene needs only eight of them, and the prompter says which: "You, you and you; the others \
stay offstage."
A good stage manager knows the play, so the actor who is wanted next already stands by the door \
when the line is spoken.
A bad one sends a runner to the dressing rooms, and the audience waits, and waits, and wonders \
what is being paid for.
We don't keep all the actors on the stage; they'd never fit. We don't leave them all at home \
either; that's too slow.
def call(expert, layer):
    if expert in stage[layer]:
        return stage[layer][expert]
    return fetch(drive, expert, layer)
In 1604 the company had 12 players and 40 parts; in 2026 a model has 128 experts, calls 8, and \
reads 2.65 MB for each.
"""

PROMPTS = {
    "long": "The prompter calls eight of the actors; we don't see who is offstage, "
    "in 1604 or now, until the line.",
    "short": "def stage(12): naïve 幕 🎭!",
}

# The split rule that Qwen2's published tokenizer.json states.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def byte_level_bpe(folder, vocab_size, pre, more_special=()):
    """pre: 'qwen2' or 'olmo' (GPT-2's split). Returns (encode, n_tokens, eos_id)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "qwen2")
    if pre == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
        byte_level = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more_special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "add_bos_token": False,
            }
        )
    )
    eos = tokenizer.token_to_id("<|endoftext|>")
    return lambda text: tokenizer.encode(text).ids, tokenizer.get_vocab_size(), eos


def sentencepiece_bpe(folder, vocab_size):
    """Byte fallback, <s> = 1 put first as Mixtral does. Returns (encode, n_tokens, eos_id)."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
            }
        )
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda text: [1] + processor.encode(text), processor.vocab_size(), 2
