"""The HDF5 format: one published, read-only file of vectors and their names. The only user of h5py.

`FORMAT.md` beside this folder states the format. A store is never appended to: a pass leaves part files, which are
packed into a new file that replaces the old one by a rename. Knows nothing of images or networks: an identity is JSON
that it keeps and compares. Opening costs milliseconds; vectors are read when asked for.

    schema      names, limits, arrays in and out of HDF5
    conditions  which rows are meant
    validation  whether a file may be read at all
    opening     a file held open, by whichever process
    reader      Store: a published file
    parts       the folder of a pass under way, its lock and its status
    lookup      vectors by the digest of their image
    writer      parts into a store
    select      some rows of a store
    variety     whether the vectors of different images differ
    describing  what is inside
    verifying   a store against its recorded digests
    export      a store, or some of it, for other tools
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
