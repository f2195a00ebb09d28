from prunella.config import ModelConfig, OptimConfig
from prunella.model.transformer import Transformer
from prunella.training_segment.optimizer import build_optimizer, set_learning_rate

SMALL = ModelConfig(vocab_size=257, seq_len=8, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, n_experts=2)


def test_matrices_decay_and_norms_do_not() -> None:
    model = Transformer(SMALL)

    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))

    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1), name


def test_learning_rate_is_set_in_every_group() -> None:
    optimizer = build_optimizer(Transformer(SMALL), OptimConfig())

    set_learning_rate(optimizer, 0.25)

    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
