"""Operations and playbooks for the tests of the playbook."""

from resd.context import Operation, Playbook, PlaybookConfig


def add(content, section="misc"):
    return Operation("ADD", content, section)


def update(id_, content):
    return Operation("UPDATE", content, ids=(id_,))


def merge(ids, content):
    return Operation("MERGE", content, ids=tuple(ids))


def remove(id_):
    return Operation("REMOVE", ids=(id_,))


def holding(*entries, count=None, seed=0, **config):
    """A playbook that holds these entries."""
    book = Playbook(PlaybookConfig(**config), *([count] if count else []), seed=seed)
    book.entries = {entry.id: entry for entry in entries}
    book._serial = len(entries)
    return book


def contents(book):
    return [entry.content for entry in book.all()]


def ids(book):
    return [entry.id for entry in book.all()]


def confirmed(*entries, **config):
    return holding(*entries, admission="confirmed", **config)
