"""One emission to receivers that do nothing, as other event systems make it.

Each peer's set-up returns what its own loop calls once an iteration, with as much of that loop's surroundings as the
call needs. Its receivers take what that call hands them.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PEERS", "Peer", "find"]

DATA: Any = object()
OUTPUTS = {"loss": 0.5}


@dataclass(frozen=True)
class Peer:
    """A peer: its distribution, what is called of it, and ``make(count)`` that sets it up for so many receivers.

    What *make* returns are a statement and the names in it.
    """

    name: str
    package: str
    told: str
    make: Callable[[int], tuple[str, dict[str, Any]]]


def subclasses(base: Any, method: str, function: Callable[..., None], count: int) -> list[Any]:
    """Return an object each of so many classes derived from *base*, in which *function* is *method*."""
    return [type(f"Receiver{index}", (base,), {method: function})() for index in range(count)]


def torchtnt(count: int) -> tuple[str, dict[str, Any]]:
    from torchtnt.framework._callback_handler import CallbackHandler
    from torchtnt.framework.callback import Callback

    def receiver(self: Any, state: Any, unit: Any) -> None:
        pass

    handler = CallbackHandler(subclasses(Callback, "on_train_step_end", receiver, count))
    return "handler.on_train_step_end(data, outputs)", {"handler": handler}


def psygnal(count: int) -> tuple[str, dict[str, Any]]:
    from psygnal import Signal

    source: Any = type("Source", (), {"after_train_iter": Signal(object, int, object, dict)})()
    for _ in range(count):

        def receiver(runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            pass

        source.after_train_iter.connect(receiver)
    return "source.after_train_iter.emit(source, 3, data, outputs)", {"source": source}


def mmengine(count: int) -> tuple[str, dict[str, Any]]:
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    def receiver(self: Any, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        pass

    runner: Any = object.__new__(Runner)  # call_hook() reads its hooks and nothing else
    runner._hooks = subclasses(Hook, "after_train_iter", receiver, count)  # noqa: SLF001  # as register_hook() does
    call = "runner.call_hook('after_train_iter', batch_idx=3, data_batch=data, outputs=outputs)"
    return call, {"runner": runner}


def ignite(count: int) -> tuple[str, dict[str, Any]]:
    from ignite.engine import Engine, Events

    engine = Engine(lambda engine, batch: None)
    for _ in range(count):

        def receiver(engine: Any) -> None:
            pass

        engine.add_event_handler(Events.ITERATION_COMPLETED, receiver)
    return "engine._fire_event(event)", {"engine": engine, "event": Events.ITERATION_COMPLETED}


def lightning(count: int) -> tuple[str, dict[str, Any]]:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.call import _call_callback_hooks

    def receiver(self: Any, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=subclasses(Callback, "on_train_batch_end", receiver, count),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if len(trainer.callbacks) != count:
        raise RuntimeError(f"the Trainer has {len(trainer.callbacks)} callbacks of its own choice, not {count}.")
    trainer.strategy.connect(LightningModule())
    names = {"call": _call_callback_hooks, "trainer": trainer}
    return "call(trainer, 'on_train_batch_end', outputs, data, 3)", names


PEERS = (
    Peer("torchtnt", "torchtnt", "`CallbackHandler.on_train_step_end`", torchtnt),
    Peer("psygnal", "psygnal", "`SignalInstance.emit`, by position", psygnal),
    Peer("MMEngine", "mmengine-lite", "`Runner.call_hook`, of a Runner that has nothing but its hooks", mmengine),
    Peer("Ignite", "pytorch-ignite", "`Engine._fire_event`; handlers are given the engine alone", ignite),
    Peer("Lightning", "lightning", "`_call_callback_hooks`, with a profiler that does nothing", lightning),
)


def find(count: int) -> tuple[dict[str, timeit.Timer], dict[str, str]]:
    """Return a timer for each peer that can be set up for *count* receivers; and of the others, why they can't."""
    timers, left_out = {}, {}
    for peer in PEERS:
        try:
            statement, names = peer.make(count)
            timer = timeit.Timer(statement, globals={**names, "data": DATA, "outputs": OUTPUTS})
            timer.timeit(1)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on, and the report tells it
            left_out[peer.name] = f"{type(error).__name__}: {error}"
        else:
            timers[peer.name] = timer
    return timers, left_out
