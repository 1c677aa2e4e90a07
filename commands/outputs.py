"""What the commands will write, looked at before the hours of work that lead to it."""

from collections.abc import Iterable
from pathlib import Path

from commands import sample, test, train
from commands.session import Outputs, Session
from runtime.errors import UserError
from runtime.files import check_writable


def check(session: Session, wanted: Iterable[Outputs]) -> None:
    """Raises UserError where two files of a run have one name, and OSError where one `wanted` cannot be written."""
    session.processes.broadcast_from_main(lambda: _check(session, wanted))


def _check(session: Session, wanted: Iterable[Outputs]) -> None:
    keys: dict[Path, str] = {}
    for key, paths in (train.outputs(session) | test.outputs(session) | sample.outputs(session)).items():
        for path in paths:
            place = path.parent.resolve() / path.name
            if place in keys:
                both = " and ".join(dict.fromkeys((keys[place], key)))
                raise UserError(f"{path}: two files of this run would have this name, by {both}; change one of them")
            keys[place] = key
    for path in (path for outputs in wanted for paths in outputs.values() for path in paths):
        check_writable(path)
