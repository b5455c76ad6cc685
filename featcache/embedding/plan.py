"""The images of a pass as they are when it is planned: their files' stamps, and the contents that are known already."""

import os
from dataclasses import dataclass
from pathlib import Path

from featcache.identity import Json, digest_json
from featcache.images.cache import FileCache, Stamp, is_at_rest, stamp_of
from featcache.manifest import Manifest
from featcache.store import Store, check_identity, folder_of


@dataclass
class Plan:
    """n images to be embedded.

    Attributes:
        manifest: their names, files and columns.
        stamps: size, times and inode of each file.
        contents: sha256 of each; empty as long as it is not known.
    """

    manifest: Manifest
    stamps: list[Stamp]
    contents: list[str]

    @classmethod
    def of(cls, manifest: Manifest, cache: FileCache) -> "Plan":
        """Looks at the files of a manifest, and opens none."""
        stamps = [stamp_of(path) for path in manifest.paths]
        rows = zip(manifest.image_ids, manifest.paths, stamps, strict=True)
        contents = [
            "" if image_id in manifest.refused else cache.content(path, stamp) or "" for image_id, path, stamp in rows
        ]
        return cls(manifest, stamps, contents)

    def __len__(self) -> int:
        return len(self.stamps)

    def record(self, identity: Json, part_rows: int) -> Json:
        """What the finished parts of a stopped pass must agree with, to be continued: the same files in the same order,
        by name, place, size and time of change."""
        manifest = self.manifest
        rows = zip(manifest.image_ids, manifest.paths, self.stamps, strict=True)
        files = [[image_id, os.fspath(path), image_id in manifest.refused, *stamp] for image_id, path, stamp in rows]
        return {"identity": identity, "files_sha256": digest_json(files), "n_rows": len(self), "part_rows": part_rows}

    def is_published(self, store_path: Path, identity: Json, weights_source: str) -> bool:
        """Whether the store is what a pass would make of this plan: every file as it was seen, the same names, labels
        and columns, and no pass under way; and whether it says of a network that has learnt from images that it has.

        Raises:
            IdentityMismatch: it holds other vectors.
        """
        if not all(self.contents) or not store_path.exists() or folder_of(store_path).exists():
            return False
        with Store.open(store_path) as store:
            check_identity(store_path, store.identity, identity)
            same_images = store.image_ids == self.manifest.image_ids and store.content_sha256 == self.contents
            is_told = weights_source != "run" or store.weights_source == "run"
            return same_images and is_told and store.columns == self.manifest.columns and not store.failures

    def remember(self, cache: FileCache, planned_ns: int) -> None:
        """Keeps the content of the files that were at rest when the pass was planned: had one changed since, its times
        would show it."""
        cache.files.clear()
        for path, stamp, content in zip(self.manifest.paths, self.stamps, self.contents, strict=True):
            if content and is_at_rest(stamp, planned_ns):
                cache.keep(path, stamp, content)
