"""Which tensor of a base file an adapter's module means, when one of the two has a longer path.

An encoder saved alone names `layer.0.q.weight` what the classifier around it names
`bert.layer.0.q.weight`. One prefix, added or removed, must explain every module of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from edge_pslora.errors import AdapterError
from edge_pslora.workspace.adapter_folder import Adapter
from edge_pslora.workspace.tensor_header import Header


def rename_between(adapter: Adapter, base: Header, base_name: str) -> Callable[[str], str]:
    """A function from a name in the adapter of a tensor to the name in the base.

    Raises:
        AdapterError: some module has no tensor in the base, or two prefixes would do.
    """
    names = [module.tensor for module in adapter.modules]
    return rename_among(names, base.specs, str(adapter.weights), base_name)


def rename_among(
    names: Sequence[str], known: Collection[str], where: str, base_name: str
) -> Callable[[str], str]:
    """`rename_between` for plain names: the adapter's `names` among the base's `known` ones.

    Raises:
        AdapterError: some name has no partner in `known`, or two prefixes would do.
    """
    known = frozenset(known)
    fits = [
        (removed, added)
        for removed, added in _candidates(names[0], known)
        if all(_apply(name, removed, added) in known for name in names)
    ]
    if len(fits) > 1 and ("", "") in fits:
        fits = [("", "")]  # the names as they are go before any guess
    if len(fits) != 1:
        missing = next((name for name in names if name not in known), names[0])
        raise AdapterError(
            f"{where}, {missing}",
            expected=f"{missing} in {base_name}",
            found="no such tensor, with no prefix either" if not fits else "several that could be",
            remedy="use the base model that the adapter was trained on",
        )
    removed, added = fits[0]

    def rename(name: str) -> str:
        renamed = _apply(name, removed, added)
        # a head stands beside the prefixed encoder: then its own name is right
        return renamed if renamed is not None and renamed in known else name

    return rename


def _candidates(name: str, known: Collection[str]) -> list[tuple[str, str]]:
    """(prefix to remove, prefix to add) under which `name` is one of `known`."""
    found = [("", other.removesuffix(name)) for other in known if f".{other}".endswith(f".{name}")]
    parts = name.split(".")
    for count in range(1, len(parts)):
        if ".".join(parts[count:]) in known:
            found.append((".".join(parts[:count]) + ".", ""))
    return sorted(found)


def _apply(name: str, removed: str, added: str) -> str | None:
    return added + name.removeprefix(removed) if name.startswith(removed) else None
