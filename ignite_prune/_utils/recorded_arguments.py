"""Objects that keep the arguments of their constructor, so that these can be written down again."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
_NOTHING: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


class RecordedArguments:
    """Base of classes whose objects keep the arguments that they were made with.

    Attributes:
        __signature__: of the constructor.

    Example:
        >>> class Power(RecordedArguments):
        ...     def __init__(self, base, exponent=2):
        ...         self.value = base**exponent
        >>> arguments_of(Power(3)), arguments_of(Power(3, exponent=4))
        ({'base': 3}, {'base': 3, 'exponent': 4})
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        signature = inspect.signature(cls.__init__)  # help() and editors would show that of __new__
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        made: T = object.__new__(cls)
        vars(made)["_arguments"] = (args, kwargs)
        return made


def arguments_of(value: RecordedArguments) -> dict[str, Any]:
    """Return the arguments that an object was made with, by name, without those that were left to their defaults."""
    args, kwargs = vars(value).get("_arguments", _NOTHING)
    signature = inspect.signature(type(value))
    found = signature.bind_partial(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return dict(found)
