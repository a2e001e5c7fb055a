"""What a command asks of a run, and whether it is the run that is there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from sayso.base.errors import UserError
from sayso.base.files import JsonObject


@dataclass(frozen=True)
class Asked:
    """The options of a command, and what is needed to compare them with an older run's.

    A config class may name fields that are no part of a run's identity: `portions`, how much is
    computed at once, and `may_grow`, how much in all.
    """

    options: JsonObject
    defaults: JsonObject = field(default_factory=dict[str, Any])
    portions: frozenset[str] = frozenset()
    may_grow: frozenset[str] = frozenset()
    canonical: Callable[[JsonObject], JsonObject] = dict
    """Brings the names in older options to the form that this version uses."""

    @property
    def unlike(self) -> frozenset[str]:
        return self.portions | self.may_grow


def asked(config: Any, options: Any = None) -> Asked:
    """What the dataclass `config` asks, with those of a plug-in; or plain `config`, a mapping."""
    if isinstance(config, Mapping):
        return Asked(_plain(config))
    parts = {"options": options} if options is not None else {}
    return Asked(
        _plain(asdict(config) | {name: asdict(part) for name, part in parts.items()}),
        _plain(_defaults(config) | {name: _defaults(part) for name, part in parts.items()}),
        frozenset(getattr(config, "portions", ())),
        frozenset(getattr(config, "may_grow", ())),
    )


def _defaults(config: Any) -> JsonObject:
    if not is_dataclass(config):
        return {}
    made = {f.name: f.default_factory() for f in fields(config) if f.default_factory != MISSING}
    return made | {f.name: f.default for f in fields(config) if f.default is not MISSING}


def _plain(values: Mapping[str, Any]) -> JsonObject:
    return json.loads(json.dumps(dict(values), default=str))


def continued(name: str, old: JsonObject, asked: Asked, *, finished: bool) -> JsonObject:
    """The options with which a run goes on that was begun with the options `old`.

    An option that `old` lacks came later: then it means its default. Portions may differ, and of an
    unfinished run what may grow may be more.

    Args:
        name: of the run, for what is said.
        old: its config.json.
        asked: what the command asks for.
        finished: whether the run is; then one that was begun with options that are no more is told
            as finished all the same.
    Raises: UserError: naming the options that differ, or those that are no more.
    """
    old = _filled(asked.canonical(old), asked.defaults)
    before, now = _flat(old), _flat(asked.options)
    changed = [
        f"{k} {_shown(before, k)} → {_shown(now, k)}"
        for k in now
        if _differs(before, now, k, asked)
    ]
    if changed:
        raise UserError(
            f"{name} exists with other options ({'; '.join(changed)}); choose another --name, or "
            "use the old options"
        )
    if (gone := sorted(before.keys() - now.keys())) and not finished:
        raise UserError(
            f"{name} was started with options that this version does not have "
            f"({', '.join(f'{key} {before[key]!r}' for key in gone)}); finish it with the version "
            "named in its env.json, or choose another --name"
        )
    _refuse_other_length(name, before, now, asked, finished=finished)
    return asked.options


def _differs(before: JsonObject, now: JsonObject, key: str, asked: Asked) -> bool:
    return key not in asked.unlike and (key not in before or before[key] != now[key])


def _shown(values: JsonObject, key: str) -> str:
    return repr(values[key]) if key in values else "nothing"


def _filled(old: JsonObject, defaults: JsonObject) -> JsonObject:
    """`old` with defaults for what it lacks, plug-in options too."""
    found = defaults | old
    inner = {
        k: v for k, v in defaults.items() if isinstance(v, dict) and isinstance(old.get(k), dict)
    }
    return found | {key: value | old[key] for key, value in inner.items()}


def _flat(values: JsonObject) -> JsonObject:
    """The options of a plug-in beside those of the stage, as `options.<name>`."""
    nested = values.get("options")
    inner = nested if isinstance(nested, dict) else {}
    own = {key: value for key, value in values.items() if key != "options" or value is not inner}
    return own | {f"options.{key}": value for key, value in inner.items()}


def _refuse_other_length(
    name: str, before: JsonObject, now: JsonObject, asked: Asked, *, finished: bool
) -> None:
    for key in asked.may_grow:
        old, new = before.get(key), now[key]
        if old is None or new == old:
            continue
        flag = f"--{key.replace('_', '-')}"
        if new < old:
            raise UserError(
                f"{name} was started with {flag} {old}, and {new} is less; give {flag} {old}, or "
                "choose another --name"
            )
        if finished:
            raise UserError(
                f"{name} is finished with {flag} {old} and has no checkpoints any more; to train "
                f"further, start from it: give --model {name} and another --name"
            )
