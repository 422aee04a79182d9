"""Evaluator with metrics of its own kind, by duck type, and with torchmetrics'."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventrunner.errors import OptionError
from eventrunner.training.evaluator import Evaluator


class Mean:
    """The mean of what it was given."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, value: Tensor) -> None:
        self.values.extend(value.reshape(-1).tolist())

    def compute(self) -> Tensor:
        return torch.tensor(sum(self.values) / len(self.values))

    def reset(self) -> None:
        self.values = []


class Distance(Mean):
    """The mean of differences."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update((preds - target).abs())


class Constant:
    """Computes what it was made with."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def update(self, *args: Any, **kwargs: Any) -> None: ...

    def compute(self):
        return self.result

    def reset(self) -> None: ...


class MMEngineStyle:
    """What MMEngine calls a metric."""

    def process(self, data_batch: Any, data_samples: Any) -> None: ...

    def evaluate(self, size: int) -> dict[str, float]:
        return {}


def preds_and_target() -> tuple[Tensor, Tensor]:
    """Two vectors whose distance is 1 on average."""
    return torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])


class TestOutputs:
    def test_a_tuple_becomes_arguments(self) -> None:
        """update(*outputs), over batches, until computed."""
        evaluator = Evaluator({"distance": Distance()})
        evaluator.process(preds_and_target())
        evaluator.process((torch.tensor([0.0]), torch.tensor([4.0])))

        assert evaluator.evaluate() == {"distance": 2.0}

    def test_a_dict_becomes_keyword_arguments(self) -> None:
        """update(**outputs)."""
        evaluator = Evaluator({"distance": Distance()})
        preds, target = preds_and_target()
        evaluator.process({"target": target, "preds": preds})

        assert evaluator.evaluate() == {"distance": 1.0}

    @pytest.mark.parametrize("outputs", [torch.tensor([1.0, 3.0]), torch.tensor(2.0)])
    def test_anything_else_is_the_one_argument(self, outputs: Tensor) -> None:
        """update(outputs)."""
        evaluator = Evaluator({"mean": Mean()})
        evaluator.process(outputs)

        assert evaluator.evaluate() == {"mean": 2.0}

    def test_every_metric_gets_the_outputs(self) -> None:
        """Results come in the order of the dict."""
        evaluator = Evaluator({"b": Distance(), "a": Distance()})
        evaluator.process(preds_and_target())

        assert list(evaluator.evaluate().items()) == [("b", 1.0), ("a", 1.0)]

    def test_reset_forgets_what_came_before(self) -> None:
        """A second validation starts from nothing."""
        evaluator = Evaluator({"mean": Mean()})
        evaluator.process(torch.tensor(100.0))
        evaluator.reset()
        evaluator.process(torch.tensor(1.0))

        assert evaluator.evaluate() == {"mean": 1.0}

    @pytest.mark.parametrize(
        ("outputs", "form", "given"),
        [
            (torch.ones(2), "(outputs)", "a tensor of shape (2,)"),
            ((1, 2, 3), "(*outputs)", "a tuple of 3"),
            ({"preds": 1, "y": 2}, "(**outputs)", "a mapping with the keys preds, y"),
            ([1], "(outputs)", "an object of type list"),
        ],
    )
    def test_outputs_that_dont_fit_say_what_val_step_should_return(self, outputs: Any, form: str, given: str) -> None:
        """The metric's own TypeError propagates, with a note."""
        with pytest.raises(TypeError, match="update") as caught:
            Evaluator({"distance": Distance()}).process(outputs)

        assert caught.value.__notes__ == [
            f"raised by update{form} of metric 'distance', where outputs is what val_step returned, {given}: "
            "val_step should return what update takes, a tuple for several arguments."
        ]

    def test_another_error_of_a_metric_is_left_alone(self) -> None:
        """Only a TypeError may come from the wrong arguments."""
        with pytest.raises(RuntimeError) as caught:
            Evaluator({"distance": Distance()}).process((torch.ones(2), torch.ones(3)))

        assert not hasattr(caught.value, "__notes__")


class TestNames:
    def test_a_dict_names_its_metrics(self) -> None:
        """Its keys are known at once, so that they can be checked before a run."""
        assert Evaluator({"accuracy": Mean(), "loss": Mean()}).names() == ("accuracy", "loss")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("Mean", "mean"),
            ("BinaryAccuracy", "binary_accuracy"),
            ("MulticlassF1Score", "multiclass_f1_score"),
            ("AUROC", "auroc"),
            ("SSIMLoss", "ssim_loss"),
            ("R2Score", "r2_score"),
        ],
    )
    def test_one_metric_is_named_after_its_class(self, name: str, expected: str) -> None:
        """In snake_case, with acronyms in one piece."""
        metric = type(name, (Mean,), {})()
        evaluator = Evaluator(metric)
        evaluator.process(torch.tensor(1.0))

        assert evaluator.names() == (expected,)
        assert evaluator.evaluate() == {expected: 1.0}

    def test_the_callers_dict_is_not_kept(self) -> None:
        """A metric added later is not evaluated."""
        metrics: dict[str, Any] = {"mean": Mean()}
        evaluator = Evaluator(metrics)
        metrics["other"] = Mean()

        assert evaluator.names() == ("mean",)

    @pytest.mark.parametrize("annotation", [dict, dict[str, float], "dict[str, Tensor]", "typing.Mapping", Mapping])
    def test_a_metric_that_says_it_computes_a_mapping_has_no_names_yet(self, annotation: Any) -> None:
        """Its keys are known after the first compute."""

        def compute(self: Any) -> Any:
            return {"map_50": torch.tensor(0.5), "map_75": 0.25}

        compute.__annotations__["return"] = annotation
        metric = type("Detection", (Constant,), {"compute": compute})(None)
        evaluator = Evaluator({"box": metric, "mean": Constant(1)})
        before = evaluator.names()
        results = evaluator.evaluate()

        assert before is None
        assert results == {"box/map_50": 0.5, "box/map_75": 0.25, "mean": 1.0}
        assert evaluator.names() == ("box/map_50", "box/map_75", "mean")


class TestResults:
    @pytest.mark.parametrize(
        "value",
        [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)],
    )
    def test_one_number_becomes_a_float(self, value: Any) -> None:
        """Python's numbers and tensors of one element."""
        result = Evaluator({"x": Constant(value)}).evaluate()["x"]

        assert type(result) is float
        assert result == 0.5

    def test_mappings_are_flattened_to_any_depth(self) -> None:
        """Each level adds a slash."""
        result = Evaluator({"x": Constant({"a": 1, "b": {"c": True}})}).evaluate()

        assert result == {"x/a": 1.0, "x/b/c": 1.0}

    @pytest.mark.parametrize(
        ("value", "what"),
        [
            (torch.ones(3), "'x' computed a tensor of shape (3,)"),
            ({"per_class": torch.ones(2, 2)}, "'x/per_class' computed a tensor of shape (2, 2)"),
            (torch.ones(0), "'x' computed a tensor of shape (0,)"),
            (None, "'x' computed an object of type NoneType"),
            ("0.5", "'x' computed an object of type str"),
            ([0.5], "'x' computed an object of type list"),
            ((0.5, 0.5), "'x' computed a tuple of 2"),
        ],
    )
    def test_what_is_not_one_number_is_refused(self, value: Any, what: str) -> None:
        """The error names the metric and the shape or type."""
        message = f"metric {what}; it must reduce to one number, or to a dict of numbers by name."
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            Evaluator({"x": Constant(value)}).evaluate()

    def test_two_results_of_one_name_are_refused(self) -> None:
        """Neither is dropped in silence."""
        evaluator = Evaluator({"x": Constant({"a": 1}), "x/a": Constant(2)})
        with pytest.raises(
            OptionError, match=r"^two metrics of the evaluator report 'x/a'; each needs a name of its own"
        ):
            evaluator.evaluate()


class TestErrors:
    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ({}, "the evaluator was given an empty dict; it needs at least one metric, by name."),
            ({1: Mean()}, "the evaluator's metrics need names that are strings, not 1."),
            ({"": Mean()}, "the evaluator's metrics need names that are strings, not ''."),
            (
                {"accuracy": nn.Identity()},
                "the evaluator's 'accuracy' is of type Identity, which has no update, compute, reset; "
                "a metric has update, compute and reset.",
            ),
            (
                {"type": "Accuracy"},
                "the evaluator was given a config dict of type 'Accuracy'; pass the objects by name, such as "
                "dict(accuracy=Accuracy(...)).",
            ),
            (
                [Mean()],
                "the evaluator is of type list, which has no update, compute, reset; "
                "a metric has update, compute and reset.",
            ),
            ({"mean": Mean}, "the evaluator's 'mean' is the class Mean, where an object is needed: Mean(...)."),
            (Mean, "the evaluator is the class Mean, where an object is needed: Mean(...)."),
            (
                MMEngineStyle(),
                "the evaluator is of type MMEngineStyle, with MMEngine's process and evaluate; "
                "a metric has update, compute and reset here.",
            ),
        ],
    )
    def test_what_is_no_metric_is_refused_at_construction(self, metrics: Any, message: str) -> None:
        """The error names the key and what is missing."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            Evaluator(metrics)


class TestDevice:
    def test_metrics_that_can_move_do(self) -> None:
        """A module goes to the device, a plain object stays."""

        class Counter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("total", torch.zeros(()))

            update = compute = reset = lambda self: None

        counter = Counter()
        Evaluator({"counter": counter, "mean": Mean()}).to(torch.device("meta"))

        assert counter.total.device.type == "meta"


class TestTorchmetrics:
    def test_a_metric_evaluates_as_it_does_alone(self) -> None:
        """The first screen's accuracy."""
        from torchmetrics import Accuracy

        evaluator = Evaluator({"accuracy": Accuracy(task="multiclass", num_classes=3)})
        evaluator.process((torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])))

        assert evaluator.names() == ("accuracy",)
        assert evaluator.evaluate() == {"accuracy": 0.75}

    def test_a_collection_alone_keeps_its_own_keys(self) -> None:
        """Prefix and order are the collection's, and names() is what evaluate() reports."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

        evaluator = Evaluator(MetricCollection({"se": MeanSquaredError(), "ae": MeanAbsoluteError()}, prefix="x_"))
        names = evaluator.names()
        evaluator.process(preds_and_target())

        assert evaluator.evaluate() == {"x_ae": 1.0, "x_se": 1.0}
        assert names == evaluator.names() == ("x_ae", "x_se")

    def test_a_collection_in_a_dict_is_named_under_its_key(self) -> None:
        """Its keys come after a slash."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

        evaluator = Evaluator({"error": MetricCollection([MeanAbsoluteError(), MeanSquaredError()])})
        evaluator.process(preds_and_target())

        assert evaluator.names() == tuple(evaluator.evaluate())
        assert evaluator.names() == ("error/MeanAbsoluteError", "error/MeanSquaredError")

    @pytest.mark.parametrize("alone", [True, False])
    def test_a_wrapper_that_computes_a_dict_has_no_names_yet(self, alone: bool) -> None:
        """In a collection or alone, its keys are known after the first compute."""
        from torchmetrics import Accuracy, ClasswiseWrapper, MetricCollection

        wrapper = ClasswiseWrapper(Accuracy(task="multiclass", num_classes=2, average=None))
        evaluator = Evaluator(wrapper if alone else MetricCollection([wrapper]))
        before = evaluator.names()
        evaluator.process((torch.tensor([0, 1]), torch.tensor([0, 0])))

        assert before is None
        assert sorted(evaluator.evaluate().values()) == [0.0, 0.5]

    def test_a_wrong_number_of_outputs_gets_the_note(self) -> None:
        """Through torchmetrics' wrapping of update, too."""
        from torchmetrics import MeanSquaredError

        with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
            Evaluator(MeanSquaredError()).process(torch.ones(2))

        assert caught.value.__notes__[0].startswith("raised by update(outputs) of metric 'mean_squared_error', where")

    def test_a_metric_of_many_numbers_is_refused(self) -> None:
        """One accuracy per class can't be logged under one name."""
        from torchmetrics import Accuracy

        evaluator = Evaluator({"accuracy": Accuracy(task="multiclass", num_classes=2, average=None)})
        evaluator.process((torch.tensor([0, 1]), torch.tensor([0, 1])))
        with pytest.raises(OptionError, match=r"^metric 'accuracy' computed a tensor of shape \(2,\); it must reduce"):
            evaluator.evaluate()

    @pytest.mark.slow
    def test_the_evaluator_does_not_import_it(self) -> None:
        """A process that only imports the module has no torchmetrics."""
        code = "import sys, eventrunner.training.evaluator; sys.exit('torchmetrics' in sys.modules)"

        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_metric_under_two_names_is_refused() -> None:
    """It would be updated twice for each batch, and be wrong as both."""
    metric = Mean()
    with pytest.raises(OptionError) as caught:
        Evaluator({"a": Mean(), "b": metric, "c": metric})
    assert str(caught.value) == (
        "the evaluator has one metric both as 'b' and as 'c', which would take each batch in twice; give each name an "
        "object of its own."
    )


class Later(Mean):
    """Would take nothing in."""

    async def update(self, value: Tensor) -> None:  # type: ignore[override]
        raise AssertionError


class Bitwise(Mean):
    """Would compute nothing."""

    def compute(self) -> Any:
        yield 1.0


@pytest.mark.parametrize(
    ("metric", "what"), [(Later(), "update gives a coroutine"), (Bitwise(), "compute gives a generator")]
)
def test_a_metric_of_which_nothing_would_run_is_refused(metric: Any, what: str) -> None:
    """An update that nobody awaits would leave it empty."""
    with pytest.raises(OptionError) as caught:
        Evaluator({"a": metric})
    assert str(caught.value) == (
        f"the evaluator's 'a' is of type {type(metric).__name__}, whose {what}, of which nothing runs until it is "
        "driven; write a plain method."
    )
