"""METHODS: the self-supervised methods by name; a module is imported when its method is asked for.

To add one: a file that holds a :class:`~dse_monitor.trainers.method.Method` and its line below, or the same
file in a package of yours with an entry point in the group ``dse_monitor.methods``; docs/adding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dse_monitor.plugins import Registry

if TYPE_CHECKING:
    from dse_monitor.trainers.method import Method

METHODS: dict[str, str] = {
    "mocov3": "dse_monitor.trainers.methods.mocov3:MoCoV3",
    "densecl": "dse_monitor.trainers.methods.densecl:DenseCL",
    "byol": "dse_monitor.trainers.methods.byol:BYOL",
    "simsiam": "dse_monitor.trainers.methods.simsiam:SimSiam",
    "swav": "dse_monitor.trainers.methods.swav:SwAV",
    "dino": "dse_monitor.trainers.methods.dino:DINO",
    "esvit": "dse_monitor.trainers.methods.esvit:EsViT",
    "ibot": "dse_monitor.trainers.methods.ibot:IBOT",
    "mugs": "dse_monitor.trainers.methods.mugs:Mugs",
    "mae": "dse_monitor.trainers.methods.mae:MAE",
    "ijepa": "dse_monitor.trainers.methods.ijepa:IJEPA",
    "barlowtwins": "dse_monitor.trainers.methods.barlowtwins:BarlowTwins",
    "vicreg": "dse_monitor.trainers.methods.vicreg:VICReg",
    "vicregl": "dse_monitor.trainers.methods.vicregl:VICRegL",
    "mec": "dse_monitor.trainers.methods.mec:MEC",
    "resa": "dse_monitor.trainers.methods.resa:ReSA",
}


def load(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: no such method; the message lists those there are.
        PluginError: it is a plugin's and cannot be used.
    """
    try:
        return REGISTRY.load(name)
    except KeyError:
        known = ", ".join(REGISTRY.names())
        raise ValueError(f"there is no method {name!r}; the methods are {known}") from None


def check(name: str, method: Any) -> None:
    """The contract of a method that a plugin adds, as far as it can be seen without building it.

    Raises:
        TypeError: it is not a Method with a Recipe.
        ValueError: its recipe has no defaults, or lacks a preset that it names.
    """
    from dse_monitor.trainers.method import Method, Recipe

    if not isinstance(method, type) or not issubclass(method, Method):
        raise TypeError(f"expected a subclass of Method, found {method!r}")
    recipe_type = getattr(method, "recipe_type", None)
    if not isinstance(recipe_type, type) or not issubclass(recipe_type, Recipe):
        raise TypeError(f"recipe_type must be a subclass of Recipe, found {recipe_type!r}")
    try:
        official = recipe_type()  # pyright: ignore[reportCallIssue]  a method's own has defaults
        recipes = [official, *(getattr(recipe_type, preset)() for preset in recipe_type.presets)]
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{recipe_type.__name__} lacks a default or a preset: {error}") from error
    if any(type(recipe) is not recipe_type for recipe in recipes):
        raise ValueError(f"a preset of {recipe_type.__name__} returns another type")


REGISTRY: Registry[type[Method]] = Registry("dse_monitor.methods", "method", METHODS, check)
