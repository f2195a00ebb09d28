"""The tokenizer of a data set: trained on its own training text, or loaded.

Training is deterministic: the same text gives the same bytes for the same version of the library, whose version is in the
fingerprint. It sees training documents only, so nothing held out leaks into the vocabulary.
"""

import logging
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prunella.config import Config
from prunella.data.dtypes import DTYPES
from prunella.data.manifest import TRAIN
from prunella.data.tokenizer import END_OF_TEXT_NAMES, count_ids, end_of_text_id, parse_tokenizer
from prunella.data_prep.progress import show_progress
from prunella.data_prep.survey import Survey, read_again
from prunella.errors import ConfigError

logger = logging.getLogger(__name__)


def make_tokenizer(survey: Survey, config: Config) -> bytes:
    """The bytes of the data set's `tokenizer.json`.

    Raises:
        ConfigError: the loaded file is no tokenizer, lacks an end-of-text token, or has more ids than the model.
        DataCorrupt: the corpus is no longer the one that was surveyed.
    """
    if survey.loaded_tokenizer is None:
        return _train(survey, config)
    where = f"data.tokenizer: {config.data.tokenizer}"
    tokenizer = parse_tokenizer(survey.loaded_tokenizer, where)
    end_of_text_id(tokenizer, where)
    if count_ids(tokenizer) > config.model.vocab_size:
        raise ConfigError(
            f"{where}: its {count_ids(tokenizer)} token ids do not fit model.vocab_size={config.model.vocab_size}; "
            f"set model.vocab_size={count_ids(tokenizer)} or load a smaller tokenizer"
        )
    return survey.loaded_tokenizer


def dtype_for(vocab_size: int) -> str:
    """The smallest type of token ids on disk that holds `vocab_size` ids.

    Raises:
        ConfigError: none does.
    """
    for name, dtype in DTYPES.items():
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return name
    raise ConfigError(f"model.vocab_size: expected at most {2**32} (token ids are stored in 32 bits), found {vocab_size}")


def _train(survey: Survey, config: Config) -> bytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model.vocab_size,
        special_tokens=[END_OF_TEXT_NAMES[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    size_bytes = min(config.data.tokenizer_train_bytes, survey.size_bytes - survey.heldout_bytes)
    logger.info("tokenizer_training_started size_bytes=%s", size_bytes)
    with show_progress("vocabulary", size_bytes) as advance:
        tokenizer.train_from_iterator(_training_texts(survey, advance), trainer)
    logger.info("tokenizer_trained ids=%s asked=%s", count_ids(tokenizer), config.model.vocab_size)
    return str(tokenizer.to_str()).encode()


def _training_texts(survey: Survey, advance: Callable[[int], None]) -> Iterator[str]:
    """Training documents in order, the last one cut, up to `data.tokenizer_train_bytes`. Tells `advance` what it gives away."""
    left_bytes = survey.corpus.settings.tokenizer_train_bytes
    for document in read_again(survey):
        if survey.split_of(document.sha256) != TRAIN:
            continue
        advance(min(document.size_bytes, left_bytes))
        if document.size_bytes >= left_bytes:
            yield document.text.encode()[:left_bytes].decode(errors="ignore")
            return
        left_bytes -= document.size_bytes
        yield document.text
