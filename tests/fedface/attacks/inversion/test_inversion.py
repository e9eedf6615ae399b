from pydantic import TypeAdapter

from fedface.attacks.inversion import (
    AnyFeatureInversion,
    AnyLabelInference,
    Decoder,
    GradientNorm,
    ModelCompletion,
    Optimisation,
)


def test_attacks_are_named_in_configurations() -> None:
    features, labels = TypeAdapter(AnyFeatureInversion), TypeAdapter(AnyLabelInference)
    assert features.validate_python({"name": "decoder"}) == Decoder()
    found = features.validate_python({"name": "optimisation", "bottom": {"name": "shadow"}})
    assert isinstance(found, Optimisation) and found.bottom.name == "shadow"
    assert labels.validate_python({"name": "gradient_norm"}) == GradientNorm()
    assert labels.validate_python({"name": "model_completion"}) == ModelCompletion()


def test_published_defaults_stand() -> None:
    completion, decoder, optimisation = ModelCompletion(), Decoder(), Optimisation()
    assert completion.epochs * completion.steps_per_epoch == 10240
    assert (completion.learning_rate, completion.alpha) == (2e-3, 0.75)
    assert (completion.unlabelled_weight, completion.temperature) == (50, 0.8)
    assert (decoder.epochs, decoder.batch_size, decoder.learning_rate) == (50, 32, 1e-3)
    assert (optimisation.steps, optimisation.learning_rate) == (1000, 0.05)
