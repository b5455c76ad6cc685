"""The list of images to embed: from a folder, a folder of classes, a CSV, or one file. Images are not opened, except to
see whether a file without a suffix is DICOM.

`image_id` is the path relative to the folder given, with `/` between its parts: the same base name in two folders is
two images. Names keep their bytes, also when they are not UTF-8 (surrogateescape). Files that are not images are
skipped and counted by reason, never silently.

    housekeeping  system files, and featcache's own output
    listing       lists the files of a folder
    columns       reads columns and paths of a table
    companions    finds masks and thumbnails beside images
    layout        reads subsets and classes from folder names
    manifest      Manifest: images with their names and columns
    datasets      Indiana and Kermany chest X-rays as manifests
    covid         COVID-19 collections as manifests
    survey        bit depths and masks, from pixels
    check         `check`: counts, unreadable files, leakage
"""

from featcache.manifest.manifest import Manifest, outside

__all__ = ["Manifest", "outside"]
