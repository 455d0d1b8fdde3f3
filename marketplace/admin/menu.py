"""Which entries of the sidebar a user sees: those of the models that the user may view."""

from collections.abc import Callable

from django.http import HttpRequest

Check = Callable[[HttpRequest], bool]


def __getattr__(name: str) -> Check:
    """``marketplace_order`` is the check for the model Order of the app marketplace; unfold finds it by its path."""
    app, _, model = name.partition("_")
    if not model or name.startswith("_"):
        raise AttributeError(name)
    names = (f"{app}.view_{model}", f"{app}.change_{model}", f"{app}.add_{model}")
    return lambda request: any(request.user.has_perm(name) for name in names)
