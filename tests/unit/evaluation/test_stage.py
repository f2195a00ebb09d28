import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunella import config_text
from prunella.checkpoints import CheckpointWriter, TrainingState
from prunella.codec import digest
from prunella.config import BatchConfig, Config, DataConfig, EvaluationConfig, ModelConfig
from prunella.data.manifest import load_manifest
from prunella.data.reader import TokenReader, load_tokenizer
from prunella.data_prep import stage as data_prep
from prunella.errors import CheckpointInvalid, ConfigError
from prunella.evaluation import heldout, stage
from prunella.ledger import Ledger, open_ledger
from prunella.model.transformer import Transformer
from prunella.records import (
    CheckpointRef,
    DataPrepRequest,
    EvaluateRequest,
    EvaluationRecord,
    ExperimentRecord,
    FailedRecord,
    Failure,
    Part,
    Stage,
    TrainRequest,
    ValidationRecord,
    Verdict,
    from_bytes,
    to_bytes,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(
        steps_per_segment=10,
        segments=1,
        model=ModelConfig(
            vocab_size=400,
            seq_len=64,
            d_model=16,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            head_dim=8,
            n_experts=4,
            expert_ffn_dim=16,
        ),
        data=DataConfig(inputs=(str(Path(json.__file__).parent / "*.py"),), heldout_fraction=0.49, workers=1),
        batch=BatchConfig(global_sequences=2, micro_sequences=2),
        evaluation=EvaluationConfig(heldout_sequences=8, questions=20, batch_size=8, sample_tokens=6),
    )


@pytest.fixture(scope="module")
def experiment(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, str]:
    """An opened experiment with a real data set; its ledger and the data set's fingerprint."""
    ledger = open_ledger(str(tmp_path_factory.mktemp("root")), "demo")
    mapping = config_text.to_mapping(config)
    opened = ExperimentRecord(
        name="demo", opened_ns=1, config=mapping, config_digest=digest(mapping), faults=(), versions={"prunella": "test"}
    )
    ledger.put(ledger.experiment_key, opened)
    request = DataPrepRequest(
        stage=Stage.DATA_PREP, root=ledger.store.root, experiment="demo", config_digest="", output=ledger.dataset_key
    )
    return ledger, data_prep.run(config, request).fingerprint


def _trained(config: Config, seed: int) -> tuple[Transformer, torch.optim.AdamW]:
    model = Transformer(config.model)
    model.init_weights(seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens_BT = torch.randint(0, config.model.vocab_size, (1, 8), generator=torch.Generator().manual_seed(seed))
    model(tokens_BT).logits_BTV.square().mean().backward()
    optimizer.step()
    return model, optimizer


def _commit(experiment: tuple[Ledger, str], config: Config, scratch: Path, *, attempt: int, seed: int = 3) -> CheckpointRef:
    ledger, dataset = experiment
    request = TrainRequest(
        stage=Stage.TRAINING_SEGMENT,
        root=ledger.store.root,
        experiment="demo",
        config_digest=ledger.experiment().config_digest,
        output="unused",
        attempt=attempt,
        first_step=1,
        last_step=10,
        total_steps=10,
        dataset=dataset,
    )
    model, optimizer = _trained(config, seed)
    metrics = scratch / "metrics.jsonl"
    metrics.write_text('{"step": 10}\n')
    state = TrainingState(step=10, tokens=1280, batch=10, dataset=dataset, seed=config.seed, world_size=1)
    writer = CheckpointWriter(ledger, request, config, rank=0, world_size=1, scratch=scratch)
    writer.save(10, model, optimizer, state, 5.0, metrics)
    writer.wait()
    writer.close()
    return ledger.ref(ledger.candidates(0, attempt)[-1])


def _judge(ledger: Ledger, ref: CheckpointRef, *, verdict: Verdict = Verdict.ACCEPTED) -> None:
    is_accepted = verdict is Verdict.ACCEPTED
    failure = None if is_accepted else Failure(cause=CheckpointInvalid.cause, message="a test says so")
    record = ValidationRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=verdict,
        started_ns=1,
        ended_ns=2,
        failure=failure,
        checkpoint=ref,
        digest=DIGEST if is_accepted else None,
        checks=(),
    )
    ledger.put(ledger.verdict_key(ref.name), record)


@pytest.fixture(scope="module")
def verified(experiment: tuple[Ledger, str], config: Config, tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    ref = _commit(experiment, config, tmp_path_factory.mktemp("scratch"), attempt=0)
    _judge(experiment[0], ref)
    return ref


def _request(experiment: tuple[Ledger, str], ref: CheckpointRef, **changes: object) -> EvaluateRequest:
    ledger, dataset = experiment
    request = EvaluateRequest(
        stage=Stage.EVALUATION,
        root=ledger.store.root,
        experiment="demo",
        config_digest=ledger.experiment().config_digest,
        output="unused",
        checkpoint=ref,
        dataset=dataset,
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record(experiment: tuple[Ledger, str], config: Config, verified: CheckpointRef) -> EvaluationRecord:
    return stage.run(config, _request(experiment, verified))


def _model(config: Config) -> Transformer:
    return _trained(config, seed=3)[0].eval()


def test_an_evaluation_says_which_checkpoint_it_measured_and_with_what(record, verified, config) -> None:
    assert (record.verdict, record.checkpoint, record.digest) == (Verdict.ACCEPTED, verified, DIGEST)
    assert [score.task for score in record.scores] == ["prunella_continuation", "prunella_order"]
    for score in record.scores:
        assert (score.version, score.n, score.chance, score.few_shot) == ("1.0", 20, 0.25, 0)
        assert (score.batch_size, score.seed, score.dtype) == (8, config.seed, "float32")
        assert 0.0 <= score.ci95[0] <= score.acc <= score.ci95[1] <= 1.0


def test_the_record_survives_the_ledger(record) -> None:
    assert from_bytes(EvaluationRecord, to_bytes(record), "here") == record


def test_the_held_out_loss_is_the_models_own_on_the_first_sequences(record, experiment, config) -> None:
    ledger, dataset = experiment
    reader = TokenReader(ledger.store, load_manifest(ledger.store, dataset), "heldout")
    model = _model(config)

    losses = []
    for index in range(config.evaluation.heldout_sequences):
        tokens_T = torch.from_numpy(reader.sequence(index, config.model.seq_len))
        logits_TV = model(tokens_T[None, :-1]).logits_BTV[0].detach()
        losses += [-float(row.log_softmax(-1)[token]) for row, token in zip(logits_TV, tokens_T[1:], strict=True)]

    assert record.heldout_tokens == len(losses)
    assert record.heldout_loss_nats == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_bytes_of_tokens_add_up_to_the_held_out_text(experiment) -> None:
    ledger, dataset = experiment
    manifest = load_manifest(ledger.store, dataset)
    sizes = heldout.bytes_of_tokens(load_tokenizer(ledger.store, manifest))
    reader = TokenReader(ledger.store, manifest, "heldout")
    tokens = [*reader.sequence(0, reader.n_tokens - 1)]

    assert sizes[manifest.end_of_text] == 0
    assert sum(sizes[int(token)] for token in tokens) == manifest.heldout_bytes


def test_a_uniform_model_needs_the_bits_of_its_vocabulary(experiment, config) -> None:
    ledger, dataset = experiment
    manifest = load_manifest(ledger.store, dataset)

    def uniform(tokens_BT: Tensor) -> Tensor:
        return torch.zeros(*tokens_BT.shape, 400)

    loss = heldout.measure(
        uniform,
        TokenReader(ledger.store, manifest, "heldout"),
        load_tokenizer(ledger.store, manifest),
        sequences=10**6,
        seq_len=64,
        batch_size=8,
        device="cpu",
    )

    assert loss.loss_nats == pytest.approx(math.log(400))
    assert loss.bits_per_byte == pytest.approx(math.log2(400) * loss.tokens / loss.size_bytes)


def test_the_sample_continues_a_fixed_held_out_prompt(record, experiment, config, verified, tmp_path) -> None:
    other = _commit(experiment, config, tmp_path, attempt=1, seed=5)
    _judge(experiment[0], other)

    prompts = [stage.run(config, _request(experiment, ref)).sample.split(stage.SAMPLE_MARK)[0] for ref in (verified, other)]

    assert prompts[0] == prompts[1] == record.sample.split(stage.SAMPLE_MARK)[0]
    assert record.sample.split(stage.SAMPLE_MARK)[1]


def test_the_same_checkpoint_gets_the_same_record_but_for_time(record, experiment, config, verified) -> None:
    again = stage.run(config, _request(experiment, verified))

    timeless = {"started_ns": 0, "ended_ns": 0, "spans": ()}
    assert dataclasses.replace(again, **timeless) == dataclasses.replace(record, **timeless)


def test_the_whole_stage_is_one_span_of_evaluation(record) -> None:
    [span] = record.spans

    assert (span.part, span.start_ns, span.end_ns) == (Part.EVALUATION, record.started_ns, record.ended_ns)
    assert record.started_ns < record.ended_ns <= time.time_ns()


def test_a_loss_above_the_baseline_is_a_regression_and_the_record_stays_accepted(record, experiment, config, verified) -> None:
    ledger, _ = experiment
    better = dataclasses.replace(record, heldout_loss_nats=record.heldout_loss_nats - 0.5)
    sha256 = ledger.put("experiments/demo/better.json", better)
    baseline = {"baseline": "experiments/demo/better.json", "inputs": {"experiments/demo/better.json": sha256}}

    found = stage.run(config, _request(experiment, verified, **baseline))

    assert (found.verdict, found.is_regression) == (Verdict.ACCEPTED, True)
    assert "rose by 0.5000 nats" in found.regression


def test_a_baseline_that_is_not_there_is_an_error(experiment, config, verified) -> None:
    with pytest.raises(ConfigError, match="no evaluation to compare with"):
        stage.run(config, _request(experiment, verified, baseline="experiments/demo/absent.json"))


def test_a_baseline_that_failed_is_an_error(experiment, config, verified) -> None:
    key = "experiments/demo/failed.json"
    failure = Failure(cause=CheckpointInvalid.cause, message="a test says so")
    failed = FailedRecord(stage=Stage.EVALUATION, verdict=Verdict.UNKNOWN, started_ns=1, ended_ns=2, failure=failure)
    experiment[0].put(key, failed)

    with pytest.raises(ConfigError, match="that evaluation failed"):
        stage.run(config, _request(experiment, verified, baseline=key))


@pytest.mark.parametrize(("verdict", "attempt", "words"), [(None, 2, "no verdict"), (Verdict.REJECTED, 3, "verdict rejected")])
def test_only_a_verified_checkpoint_is_evaluated(experiment, config, tmp_path, verdict, attempt, words) -> None:
    ref = _commit(experiment, config, tmp_path, attempt=attempt)
    if verdict is not None:
        _judge(experiment[0], ref, verdict=verdict)

    with pytest.raises(CheckpointInvalid, match=rf"expected a verified one, found {words}"):
        stage.run(config, _request(experiment, ref))


def test_a_checkpoint_that_changed_after_its_verdict_is_refused(experiment, config, verified) -> None:
    changed = dataclasses.replace(verified, manifest_sha256="0" * 64)

    with pytest.raises(CheckpointInvalid, match="changed after it was validated"):
        stage.run(config, _request(experiment, changed))


def test_a_checkpoint_of_another_model_is_refused(experiment, config, verified) -> None:
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, d_model=32))

    with pytest.raises(CheckpointInvalid, match="does not fit this configuration"):
        stage.run(wider, _request(experiment, verified))


def test_an_experiment_may_go_without_questions_and_sample(experiment, config, verified) -> None:
    bare = dataclasses.replace(config, evaluation=EvaluationConfig(heldout_sequences=1, questions=0, sample_tokens=0))

    found = stage.run(bare, _request(experiment, verified))

    assert (found.scores, found.sample, found.heldout_tokens) == ((), "", config.model.seq_len)
