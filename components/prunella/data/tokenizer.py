"""How a committed tokenizer is put to use: the one place that sets the switches its file does not carry."""

from tokenizers import Tokenizer

from prunella.errors import ConfigError

#: Names under which known byte-level BPE tokenizers carry their end-of-text token, most usual first. The first is ours.
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def parse_tokenizer(data: bytes, where: str) -> Tokenizer:
    """A tokenizer that neither cuts, pads, nor reads special tokens in text.

    Raises:
        ConfigError: `data` is no tokenizer of the `tokenizers` library.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # all that the library (0.23) raises for a malformed file is a bare `Exception`
        if type(error) not in (Exception, UnicodeDecodeError):
            raise
        raise ConfigError(f"{where}: not a tokenizer.json of the `tokenizers` library: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer, where: str) -> int:
    """The id that ends each document.

    Raises:
        ConfigError: the tokenizer has no token by a known name.
    """
    for name in END_OF_TEXT_NAMES:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise ConfigError(
        f"{where}: the tokenizer has no end-of-text token; expected one of {', '.join(END_OF_TEXT_NAMES)}; "
        "add it as a special token"
    )


def count_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: what an embedding needs. Larger than the entries where ids have holes."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1
