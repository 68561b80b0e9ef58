# SPDX-License-Identifier: Apache-2.0
"""The files of a rosbag2, opened and read by the ``rosbags`` library, with errors made readable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from omnistream_ros.evaluation.recordings import RecordingError

#: Suffix of a storage file -> the bytes that it begins with.
_STORAGE = {".mcap": b"\x89MCAP0\r\n", ".db3": b"SQLite format 3\0"}


class BagReader:
    """The files of one bag as one stream of messages, with every error of theirs made readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[list[Reader]] = []
        self._types = get_typestore(Stores.LATEST)
        self._files = self._find_files(path)
        #: topic -> (type, message count)
        self.topics: dict[str, tuple[str, int]] = {}
        self.duration_ns = 0
        names = [path.name] if path.is_file() else [file.name for file in path.iterdir()]
        self.storage = "mcap" if any(".mcap" in name for name in names) else "sqlite3"
        starts, ends = [], []
        with self._open() as readers:
            for reader in readers:
                for connection in reader.connections:
                    self._learn(connection)
                    _, count = self.topics.get(connection.topic, ("", 0))
                    self.topics[connection.topic] = (
                        connection.msgtype,
                        count + connection.msgcount,
                    )
                if reader.message_count:
                    starts.append(reader.start_time)
                    ends.append(reader.end_time)
        if starts:
            self.duration_ns = max(ends) - min(starts)

    def _learn(self, connection: Connection) -> None:
        """Add a message type that ROS does not come with, from the definition inside the bag."""
        definition = connection.msgdef
        known = connection.msgtype in self._types.fielddefs
        if not known and definition.format == MessageDefinitionFormat.MSG:
            types = get_types_from_msg(definition.data, connection.msgtype)
            new = {k: v for k, v in types.items() if k not in self._types.fielddefs}
            # A definition that cannot be read only matters if its topic is asked for.
            with contextlib.suppress(TypesysError):
                self._types.register(new)

    @staticmethod
    def _find_files(path: Path) -> list[Path]:
        if path.is_file() or (path / "metadata.yaml").exists():
            return [path]
        # A bag whose recorder was killed has no metadata.yaml; its finished files can still be
        # read.
        files = sorted(file for file in path.iterdir() if file.suffix in _STORAGE)
        if not files:
            raise RecordingError(f"{path} holds no metadata.yaml, .mcap or .db3 file: not a bag")
        return files

    @contextlib.contextmanager
    def _open(self) -> Iterator[list[Reader]]:
        """One reader per file. They are kept for the next use: opening parses all metadata anew."""
        readers = self._idle.pop() if self._idle else [self._open_file(f) for f in self._files]
        try:
            yield readers
        finally:
            self._idle.append(readers)

    @staticmethod
    def _open_file(file: Path) -> Reader:
        # Each storage library has its own errors, some of them plain struct or index errors.
        try:
            reader = Reader(file)
            reader.open()
        except Exception as error:
            raise RecordingError(
                _not_of_its_kind(file)
                or f"{file} cannot be opened as a bag: {_sentence(error)}. A bag that was not "
                "closed or was cut short can often be repaired: `ros2 bag reindex`, `mcap recover`"
            ) from error
        return reader

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive time in ns, message) of some topics, in the order of reception.

        Raises:
            RecordingError: the bag is damaged at this point.
        """
        with self._open() as readers:
            for reader in readers:
                wanted = [c for c in reader.connections if c.topic in topics]
                if wanted:
                    yield from self._read(reader, wanted)

    def _read(
        self, reader: Reader, wanted: list[Connection], start: int | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        source = reader.messages(connections=wanted, start=start)
        count = 0
        while True:
            try:
                connection, received, raw = next(source)
                message = self._types.deserialize_cdr(raw, connection.msgtype)
            except StopIteration:
                return
            except Exception as error:  # as in _open
                raise RecordingError(
                    f"{self.path} is damaged after {count} messages of "
                    f"{', '.join(sorted({c.topic for c in wanted}))}: {error}"
                ) from error
            count += 1
            yield connection.topic, received, message

    def first(self, topic: str) -> Any | None:
        """The first message of a topic, or None."""
        return next((message for _, _, message in self.messages([topic])), None)

    def last(self, topic: str) -> Any | None:
        """The last message received of a topic, or None, without reading what is before it."""
        with self._open() as readers:
            for reader in reversed(readers):
                wanted = [c for c in reader.connections if c.topic == topic]
                window_ns = 10**9
                while wanted and reader.message_count:
                    start = reader.end_time - window_ns
                    found = None
                    for _, _, found in self._read(reader, wanted, start):  # noqa: B007
                        pass
                    if found is not None:
                        return found
                    if start < reader.start_time:
                        break
                    window_ns *= 8
        return None


def _not_of_its_kind(path: Path) -> str:
    """What to say of a file that does not begin as its name promises; empty where it does."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        begin = _STORAGE.get(file.suffix)
        if begin is None or not file.is_file():
            continue
        with file.open("rb") as content:
            found = content.read(len(begin))
        if not found:
            return f"{file} is empty: its recorder did not write or close it (damaged)"
        if not begin.startswith(found):
            return f"{file} is not a bag: it does not begin as a {file.suffix} file does"
    return ""


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
