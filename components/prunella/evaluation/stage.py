"""Evaluation of one verified checkpoint: how good it is, and whether it fell behind the promoted one before it.

Reads the checkpoint in full in a fresh process, on one device, in float32. Measures the held-out loss, the accuracy on
offline multiple-choice tasks and any named task of lm-evaluation-harness, and writes down a sample of text. It trusts the
validation stage's verdict, and refuses a checkpoint that has none. It never un-verifies: a worse checkpoint gets an accepted
record that says `is_regression`, and the policy decides what follows.
"""

import dataclasses
import itertools
import logging
import time
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from prunella import checkpoints
from prunella.checkpoint_reader import Sizes, check_same
from prunella.config import Config
from prunella.data.manifest import HELDOUT, DatasetManifest, load_manifest
from prunella.data.reader import TokenReader, load_tokenizer
from prunella.errors import CheckpointInvalid, ConfigError, KeyMissing
from prunella.evaluation import generation, heldout, tasks
from prunella.evaluation.generation import Logits
from prunella.evaluation.harness import CheckpointLM
from prunella.evaluation.questions import shape_for, split_documents
from prunella.evaluation.regression import find_regression
from prunella.evaluation.scores import task_score
from prunella.ledger import Ledger, open_ledger
from prunella.model.transformer import Transformer
from prunella.records import (
    EvaluateRequest,
    EvaluationRecord,
    FailedRecord,
    Part,
    Span,
    Stage,
    TaskScore,
    ValidationRecord,
    Verdict,
    stage_record_from_bytes,
)

logger = logging.getLogger(__name__)

#: Arithmetic of every evaluation; weights are float32 in the checkpoint, whatever training computes in.
_DTYPE = "float32"
#: Held-out tokens that questions are made from, at most. Source: own choice 2026-11: a million is about 800 source files.
_QUESTION_TOKENS = 1_000_000
#: Tokens of held-out text that the sample continues.
_PROMPT_TOKENS = 32
#: Stands between the prompt and what the model wrote.
SAMPLE_MARK = " \u25b8 "


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model ready to be measured, and the held-out text to measure it on."""

    logits: Logits
    tokenizer: Tokenizer
    reader: TokenReader
    documents: list[list[int]]
    end_of_text: int
    device: str

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))


def run(config: Config, request: EvaluateRequest) -> EvaluationRecord:
    """Measure `request.checkpoint` and compare it with `request.baseline`.

    Raises:
        CheckpointInvalid: the checkpoint is not verified, or does not fit the configured model.
        ConfigError: the held-out split is too small, a task is unknown or its data is missing, or the baseline is none.
        DataCorrupt: the data set does not hold what was committed.
    """
    started_ns = time.time_ns()
    torch.set_num_threads(config.parallel.threads_per_rank)
    ledger = open_ledger(request.root, request.experiment, settings=config.storage)
    verdict = _accepted_verdict(ledger, request)
    baseline = _baseline(ledger, request)
    subject = _subject(config, ledger, request)
    loss = _heldout_loss(config, subject)
    scores = _scores(config, subject, request.dataset)
    sample = _sample(config, subject)
    regression = find_regression(loss_nats=loss.loss_nats, scores=scores, baseline=baseline, bounds=config.evaluation)
    _log(request, loss, scores, regression)
    ended_ns = time.time_ns()
    return EvaluationRecord(
        stage=Stage.EVALUATION,
        verdict=Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=ended_ns,
        spans=(Span(part=Part.EVALUATION, start_ns=started_ns, end_ns=ended_ns),),
        checkpoint=request.checkpoint,
        digest=str(verdict.digest),
        heldout_loss_nats=loss.loss_nats,
        bits_per_byte=loss.bits_per_byte,
        heldout_tokens=loss.tokens,
        scores=scores,
        is_regression=bool(regression),
        regression=regression,
        sample=sample,
    )


def _accepted_verdict(ledger: Ledger, request: EvaluateRequest) -> ValidationRecord:
    name = request.checkpoint.name
    verdict = ledger.validation(name)
    if verdict is None or verdict.verdict is not Verdict.ACCEPTED or verdict.digest is None:
        found = "no verdict" if verdict is None else f"verdict {verdict.verdict}"
        raise CheckpointInvalid(
            f"checkpoint {name}: expected a verified one, found {found}; "
            "only verified checkpoints are evaluated: validate it first"
        )
    if verdict.checkpoint != request.checkpoint:
        raise CheckpointInvalid(
            f"checkpoint {name}: the verdict is on manifest {verdict.checkpoint.manifest_sha256}, "
            f"the request names {request.checkpoint.manifest_sha256}; it changed after it was validated: validate it again"
        )
    return verdict


def _baseline(ledger: Ledger, request: EvaluateRequest) -> EvaluationRecord | None:
    key = request.baseline
    if key is None:
        return None
    sha256 = request.inputs.get(key)
    try:
        data = ledger.read_verified(key, sha256) if sha256 else ledger.store.get(key)
    except KeyMissing as error:
        raise ConfigError(f"{key}: no evaluation to compare with; name that of a promoted checkpoint, or none") from error
    record = stage_record_from_bytes(EvaluationRecord, data, key)
    if isinstance(record, FailedRecord):
        raise ConfigError(
            f"{key}: that evaluation failed, nothing to compare with; name that of a promoted checkpoint, or none"
        )
    return record


def _subject(config: Config, ledger: Ledger, request: EvaluateRequest) -> Subject:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    manifest = load_manifest(ledger.store, request.dataset)
    model = _model(config, ledger, request).to(device)
    reader = TokenReader(ledger.store, manifest, HELDOUT)
    return Subject(
        logits=lambda tokens_BT: model(tokens_BT).logits_BTV,
        tokenizer=load_tokenizer(ledger.store, manifest),
        reader=reader,
        documents=_documents(config, reader, manifest),
        end_of_text=manifest.end_of_text,
        device=device,
    )


def _model(config: Config, ledger: Ledger, request: EvaluateRequest) -> Transformer:
    tensors, _ = checkpoints.read_full(ledger, request.checkpoint)
    weights = checkpoints.model_tensors(tensors)
    model = Transformer(config.model).eval().requires_grad_(False)
    check_same(_sizes(model.state_dict()), _sizes(weights), request.checkpoint.name)
    model.load_state_dict(weights)
    return model


def _sizes(tensors: dict[str, Tensor]) -> Sizes:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _documents(config: Config, reader: TokenReader, manifest: DatasetManifest) -> list[list[int]]:
    seq_len = config.model.seq_len
    count = min(reader.n_sequences(seq_len), -(-_QUESTION_TOKENS // seq_len))
    tokens = itertools.chain.from_iterable(reader.sequence(index, seq_len)[:-1].tolist() for index in range(count))
    return split_documents(list(tokens), manifest.end_of_text)


def _heldout_loss(config: Config, subject: Subject) -> heldout.HeldoutLoss:
    return heldout.measure(
        subject.logits,
        subject.reader,
        subject.tokenizer,
        sequences=config.evaluation.heldout_sequences,
        seq_len=config.model.seq_len,
        batch_size=config.evaluation.batch_size,
        device=subject.device,
    )


def _scores(config: Config, subject: Subject, dataset: str) -> tuple[TaskScore, ...]:
    settings = config.evaluation
    shape = shape_for(questions=settings.questions, choices=settings.choices, seq_len=config.model.seq_len)
    chosen = tasks.named_tasks(settings.tasks, few_shot=settings.few_shot)
    if settings.questions:
        chosen += tasks.own_tasks(
            subject.documents, subject.tokenizer, shape, few_shot=settings.few_shot, seed=config.seed, dataset=dataset
        )
    if not chosen:
        return ()
    model = CheckpointLM(
        subject.logits,
        subject.tokenizer,
        seq_len=config.model.seq_len,
        end_of_text=subject.end_of_text,
        batch_size=settings.batch_size,
        seed=config.seed,
        device=subject.device,
    )
    results = tasks.run_tasks(model, chosen, seed=config.seed)
    return tuple(
        task_score(
            task.task_name,
            results,
            chance=tasks.chance_level(task),
            batch_size=settings.batch_size,
            seed=config.seed,
            dtype=_DTYPE,
        )
        for task in chosen
    )


def _sample(config: Config, subject: Subject) -> str:
    if not config.evaluation.sample_tokens:
        return ""
    document = next(iter(subject.documents), [subject.end_of_text])
    prompt = document[: min(_PROMPT_TOKENS, config.model.seq_len // 2)]
    stream = generation.generate(
        subject.logits,
        prompt,
        seq_len=config.model.seq_len,
        sampling=dataclasses.replace(generation.SAMPLE, seed=config.seed),
        device=subject.device,
    )
    written = itertools.islice(stream, config.evaluation.sample_tokens)
    tokens = list(itertools.takewhile(lambda token: token != subject.end_of_text, written))
    return subject.decode(prompt) + SAMPLE_MARK + subject.decode(tokens)


def _log(request: EvaluateRequest, loss: heldout.HeldoutLoss, scores: tuple[TaskScore, ...], regression: str) -> None:
    accuracies = " ".join(f"{score.task}={score.acc:.3f}" for score in scores)
    logger.info(
        "checkpoint_evaluated name=%s step=%d heldout_loss_nats=%.4f bits_per_byte=%.4f %s",
        request.checkpoint.name,
        request.checkpoint.step,
        loss.loss_nats,
        loss.bits_per_byte,
        accuracies,
    )
    if regression:
        logger.warning("quality_regressed name=%s %s", request.checkpoint.name, regression)
