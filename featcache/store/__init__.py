"""The HDF5 format: one read-only file of vectors and their names. The only user of h5py.

`FORMAT.md` beside this folder specifies the format. A store is never appended to: a pass writes part files, which are
packed into a new file that replaces the old one by a rename. Opening takes milliseconds; vectors are read on demand.

    schema      names, limits, and arrays in HDF5
    conditions  conditions on columns that select rows
    validation  checks of a file before it is read
    opening     opens a file once per process
    reader      Store: a published file
    parts       part files of an unfinished pass: retry, lock, status
    lookup      finds vectors by the digest of their image
    writer      packs parts into a store
    select      selects rows of a store
    variety     checks that vectors of different images differ
    describing  `info`: the content of a store
    verifying   `verify`: a store against its recorded digests
    export      `export`: rows for other tools
"""

from featcache.store.conditions import matching
from featcache.store.describing import describe
from featcache.store.lookup import KnownVectors
from featcache.store.parts import Part, PartFolder, Status, check_unlocked, folder_of, held_identity, read_part, status
from featcache.store.reader import Store, check_identity
from featcache.store.schema import (
    BOUNDARY_VIEWS,
    CANARY,
    DEPTH,
    EMBEDDED,
    FAILED,
    KERNELS,
    REUSED,
    VERSION,
    VIEW_PARAMETERS,
    VIEWS,
    WEIGHTS_FILE,
    WEIGHTS_READ,
)
from featcache.store.select import blocks, digests_of, gather, publish_rows, texts_of
from featcache.store.variety import Variety
from featcache.store.verifying import Verified, verify
from featcache.store.writer import Counts, publish

__all__ = [
    "BOUNDARY_VIEWS",
    "CANARY",
    "DEPTH",
    "EMBEDDED",
    "FAILED",
    "KERNELS",
    "REUSED",
    "VERSION",
    "VIEWS",
    "VIEW_PARAMETERS",
    "WEIGHTS_FILE",
    "WEIGHTS_READ",
    "Counts",
    "KnownVectors",
    "Part",
    "PartFolder",
    "Status",
    "Store",
    "Variety",
    "Verified",
    "blocks",
    "check_identity",
    "check_unlocked",
    "describe",
    "digests_of",
    "folder_of",
    "gather",
    "held_identity",
    "matching",
    "publish",
    "publish_rows",
    "read_part",
    "status",
    "texts_of",
    "verify",
]
