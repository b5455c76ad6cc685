"""Writes files and folders that are complete or absent, each by one writer at a time.

A reader finds the old output or the new one, complete, whatever happened to the writer. Every output of featcache is
written here.

    regular  opens regular files only
    locks    locks on open files, on every platform
    files    a file that is complete or absent; CSV tables
    outputs  who may write at a path: `claim` and locks
    folders  a folder that is replaced as a whole
"""

from featcache.durable.files import (
    Whole,
    cell,
    csv_bytes,
    make_folders,
    real,
    sync_folder,
    text_of,
    write_all,
    write_bytes,
    write_csv,
    write_text,
    write_with,
)
from featcache.durable.folders import recover, sweep_folders, write_folder
from featcache.durable.outputs import claim, locked, output, writer_of
from featcache.durable.regular import kind_of, open_regular, read_regular

__all__ = [
    "Whole",
    "cell",
    "claim",
    "csv_bytes",
    "kind_of",
    "locked",
    "make_folders",
    "open_regular",
    "output",
    "read_regular",
    "real",
    "recover",
    "sweep_folders",
    "sync_folder",
    "text_of",
    "write_all",
    "write_bytes",
    "write_csv",
    "write_folder",
    "write_text",
    "write_with",
    "writer_of",
]
