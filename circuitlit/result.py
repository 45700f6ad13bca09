"""What every analysis returns: a frozen dataclass that saves and loads itself and becomes a data frame."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.plain_types import converter_of

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("circuitlit", "torch", "lightning", "transformers", "peft", "hydra-core", "wandb")  # that results depend on


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(ABC):
    """Base of all results. Fields hold plain types and further dataclasses of these, so that json holds all of them.

    Attributes:
        seconds: that it took; None where nobody looked.
        seconds_by_phase: of each phase.
        provenance: weights, settings, versions and machine that it comes from.
    """

    schema: ClassVar[str]  # name of what the file holds
    version: ClassVar[int] = 1  # raised with every change that older readers do not understand
    file: ClassVar[str]  # its name in a run's folder
    indent: ClassVar[int | None] = 1  # of the file; None puts long lists of numbers into one line

    seconds: float | None = None
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the file."""
        return {"schema": {"name": self.schema, "version": self.version}, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "this") -> Self:
        """The result that `to_dict` made plain.

        Args:
            content: as in the file.
            source: what it is called in an error.

        Raises:
            UserError: it is of another kind or version, or not whole.
        """
        from pydantic import ValidationError

        found = content.get("schema")
        known = found if isinstance(found, dict) else {"name": cls.schema, "version": 0}
        if (known.get("name"), known.get("version")) != (cls.schema, cls.version):
            raise UserError(
                f"{source} holds {known.get('name')} of version {known.get('version')}, this reads {cls.schema} of "
                f"version {cls.version}; run the command again"
            )
        try:
            return converter_of(cls).validate_python({key: value for key, value in content.items() if key != "schema"})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"{source} is damaged: '{place}': {first['msg'].lower()}; run the command again") from error

    def replaced(self, **changes: Any) -> Self:
        """The same with some fields changed, bound to what it is bound to."""
        made = replace(self, **changes)
        for name in vars(self).keys() - {one.name for one in fields(self)}:
            object.__setattr__(made, name, vars(self)[name])
        return made

    def save(self, folder: Path | str) -> Path:
        """Write `file` into a folder, which is made; returns its path."""
        path = Path(folder) / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict(), self.indent)
        return path

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what `save` wrote: a folder, or the file itself.

        Raises:
            UserError: no such file, or one of another kind or version.
        """
        path = Path(folder)
        path = path / cls.file if path.is_dir() else path
        return cls.from_dict(read_json(path), str(path))

    @abstractmethod
    def rows(self) -> Iterable[dict[str, Any]]:
        """What the frame holds, a dictionary a row."""

    def to_frame(self) -> pd.DataFrame:
        """The main table of the result."""
        import pandas as pd

        return pd.DataFrame(list(self.rows()))

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name)) for f in fields(self)]
        plain = [f"{name}={value!r}" for name, value in shown if isinstance(value, str | int | float)]
        return f"{type(self).__name__}({', '.join(plain)})"

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(notebook=True)


def read_json(path: Path, mend: str = "name the folder of a finished run") -> dict[str, Any]:
    """A file's object; `mend` says what to do where there is none.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {mend}")
    return content


def version(package: str) -> str:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
