"""Everything featcache keeps goes through here: files and folders that are whole or absent, each by one writer.

A reader finds the old output or the new one, whole, whatever happened to its writer. Knows nothing of what the bytes
mean.

    regular  only regular files are read
    locks    locks on open files, on every platform
    files    a file, whole or absent, and tables in CSV
    outputs  who may write where
    folders  a folder, replaced as a whole
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
