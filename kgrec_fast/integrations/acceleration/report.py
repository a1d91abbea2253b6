"""What `kgrec_fast.accelerate` found in a model, and what it did with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A layer that was swapped, or that looked like one that could be.

    Attributes:
        name: Its name in the model, as in ``named_modules``; empty for the model itself.
        class_name: Name of its class.
        interface: The layer that it looks like.
        methods: Names of the methods that were swapped; empty where none was.
        reason: Why none was; empty where it was swapped.
    """

    name: str
    class_name: str
    interface: str
    methods: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.name or 'the model itself'} ({self.class_name})"
        if self.methods:
            return f"{where}: swapped {', '.join(self.methods)} [{self.interface}]"
        return f"{where}: left alone, {self.reason}"


@dataclass(frozen=True)
class Report:
    """What was swapped in a model, what was not, and why; ``print`` shows it.

    Attributes:
        model: Name of the model's class.
        modules: Number of modules that were looked at.
        layers: Those that looked like a layer of KGRec.
    """

    model: str
    modules: int
    layers: tuple[Layer, ...]

    @property
    def swapped(self) -> tuple[str, ...]:
        """Names of the layers whose computations were swapped."""
        return tuple(layer.name for layer in self.layers if layer.methods)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.model}: none of its {self.modules} modules is a layer of KGRec"
        lines = [f"{self.model}: {len(self.swapped)} of {len(self.layers)} layers swapped"]
        return "\n  ".join([*lines, *map(str, self.layers)])
